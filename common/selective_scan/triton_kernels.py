"""The Triton kernels behind `triton_backend`: a scan in three steps, split over chunks of tokens.

A program handles one chunk of one channel, on tiles ``(N, tokens)``. The state entering each chunk is found first (what
a chunk adds from an empty state, then the carry over the chunks), so that chunks run side by side; backward does the
same with the adjoint, from the right. Only exponentials of non-positive numbers are taken. A token past the end has
step 0, which leaves the state alone. Pointers to inputs that were not given are None.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["adjoint_starts", "carry", "chunk_ends", "gradients", "outputs"]


@triton.jit
def _compose(decay_1, state_1, decay_2, state_2):
    """First ``h -> decay_1 h + state_1``, then the second: associative, but not commutative."""
    return decay_1 * decay_2, decay_2 * state_1 + state_2


@triton.jit
def _softplus(x):
    """log(1 + e^x), with log1p(e) as 2 artanh(e / (2 + e)): 1 + e would lose the digits of a small e."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))))))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def _place(channels, groups, chunks):
    """Which chunk, (batch, channel) row, channel and (batch, group) a program of one chunk of one channel works on."""
    pid = tl.program_id(0)
    row = (pid // chunks).to(tl.int64)
    channel = row % channels
    return pid % chunks, row, channel, row // channels * groups + channel // (channels // groups)


@triton.jit
def _row(pointer, row, t, length):
    """Values of one (batch, channel) row at the tokens ``t``, 0 past the end."""
    return tl.load(pointer + row * length + t, mask=t < length, other=0.0).to(tl.float32)


@triton.jit
def _raw_step(delta, bias, row, channel, t, length):
    x = _row(delta, row, t, length)
    if bias is not None:
        x += tl.load(bias + channel).to(tl.float32)
    return x


@triton.jit
def _step(delta, bias, row, channel, t, length, SOFTPLUS: tl.constexpr):
    """The step size dt at the tokens ``t``, 0 past the end."""
    x = _raw_step(delta, bias, row, channel, t, length)
    if SOFTPLUS:
        x = _softplus(x)
    return tl.where(t < length, x, 0.0)


@triton.jit
def _tile(pointer, group, n, states, t, length):
    """B or C of one (batch, group): ``(N, tokens)``."""
    offsets = (group * states + n[:, None]) * length + t[None, :]
    return tl.load(pointer + offsets, mask=(n[:, None] < states) & (t[None, :] < length), other=0.0).to(tl.float32)


@triton.jit
def _vector(pointer, row, n, states):
    return tl.load(pointer + row * states + n, mask=n < states, other=0.0).to(tl.float32)


@triton.jit
def _skipped(y, skip, channel, value):
    """``y`` plus what goes past the scan."""
    if skip is not None:
        y += tl.load(skip + channel).to(tl.float32) * value
    return y


@triton.jit
def chunk_ends(
    u, delta, A, B, bias, ends, steps, channels, groups, states, length, chunks,
    SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """The state at the end of a chunk that began empty, and the sum of its steps."""
    chunk, row, channel, group = _place(channels, groups, chunks)
    local, n = tl.arange(0, TOKENS), tl.arange(0, STATES)
    t = chunk * TOKENS + local
    dt = _step(delta, bias, row, channel, t, length, SOFTPLUS)
    after = _step(delta, bias, row, channel, t + 1, length, SOFTPLUS)
    remaining = tl.cumsum(tl.where(local + 1 < TOKENS, after, 0.0), 0, reverse=True)
    decay = tl.exp(_vector(A, channel, n, states)[:, None] * remaining[None, :])
    drive = (dt * _row(u, row, t, length))[None, :] * _tile(B, group, n, states, t, length)
    tl.store(ends + (row * chunks + chunk) * states + n, tl.sum(decay * drive, 1), mask=n < states)
    tl.store(steps + row * chunks + chunk, tl.sum(dt, 0))


@triton.jit
def carry(
    ends, steps, A, bounds, channels, states, chunks,
    REVERSE: tl.constexpr, TOKENS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Fill ``bounds (rows, chunks + 1, N)``, the values at chunk boundaries, from the first slot (last if reversed)."""
    row = tl.program_id(0).to(tl.int64)
    local, n = tl.arange(0, TOKENS), tl.arange(0, STATES)
    rate = _vector(A, row % channels, n, states)
    slots = bounds + row * (chunks + 1) * states
    value = _vector(slots, chunks if REVERSE else 0, n, states)
    tiles = tl.cdiv(chunks, TOKENS)
    for i in range(0, tiles):
        chunk = ((tiles - 1 - i) if REVERSE else i) * TOKENS + local
        inside = (n[:, None] < states) & (chunk[None, :] < chunks)
        step = tl.load(steps + row * chunks + chunk, mask=chunk < chunks, other=0.0)
        end = tl.load(ends + (row * chunks + chunk[None, :]) * states + n[:, None], mask=inside, other=0.0)
        decay, state = tl.associative_scan((tl.exp(rate[:, None] * step[None, :]), end), 1, _compose, reverse=REVERSE)
        state += decay * value[:, None]
        slot = chunk if REVERSE else chunk + 1
        tl.store(slots + slot[None, :] * states + n[:, None], state, mask=inside)
        last = local == (0 if REVERSE else TOKENS - 1)
        value = tl.sum(tl.where(last[None, :], state, 0.0), 1)


@triton.jit
def outputs(
    u, delta, A, B, C, skip, bias, bounds, out, channels, groups, states, length, chunks,
    SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """The output of a chunk, from the state that enters it."""
    chunk, row, channel, group = _place(channels, groups, chunks)
    n, t = tl.arange(0, STATES), chunk * TOKENS + tl.arange(0, TOKENS)
    dt = _step(delta, bias, row, channel, t, length, SOFTPLUS)
    value = _row(u, row, t, length)
    decay = tl.exp(_vector(A, channel, n, states)[:, None] * dt[None, :])
    drive = (dt * value)[None, :] * _tile(B, group, n, states, t, length)
    decay, state = tl.associative_scan((decay, drive), 1, _compose)
    state += decay * _vector(bounds, row * (chunks + 1) + chunk, n, states)[:, None]
    y = _skipped(tl.sum(state * _tile(C, group, n, states, t, length), 0), skip, channel, value)
    tl.store(out + row * length + t, y, mask=t < length)


@triton.jit
def adjoint_starts(
    delta, A, C, bias, out_grad, starts, steps, channels, groups, states, length, chunks,
    SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """The adjoint at a chunk's first token with none from the right, and the steps from there to the next chunk's."""
    chunk, row, channel, group = _place(channels, groups, chunks)
    local, n = tl.arange(0, TOKENS), tl.arange(0, STATES)
    t = chunk * TOKENS + local
    dt = _step(delta, bias, row, channel, t, length, SOFTPLUS)
    since = tl.cumsum(tl.where(local > 0, dt, 0.0), 0)
    decay = tl.exp(_vector(A, channel, n, states)[:, None] * since[None, :])
    y_grad = _row(out_grad, row, t, length)
    start = tl.sum(decay * _tile(C, group, n, states, t, length) * y_grad[None, :], 1)
    tl.store(starts + (row * chunks + chunk) * states + n, start, mask=n < states)
    tl.store(steps + row * chunks + chunk, tl.sum(_step(delta, bias, row, channel, t + 1, length, SOFTPLUS), 0))


@triton.jit
def _channel_gradients(
    u, delta, A, B_before, B_tile, C_tile, skip, bias, out_grad, bounds, adjoints,
    u_grad, delta_grad, A_parts, skip_parts, bias_parts,
    place, row, channel, chunk, chunks, n, states, before, t, length, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """Store a channel's own gradients; return what it adds to those of B and C.

    ``kept`` is what the decay leaves of the state before, scanned for itself: as the new state less what is added to
    it, it would have no digits left where the decay is strong.
    """
    rate = _vector(A, channel, n, states)[:, None]
    value = _row(u, row, t, length)
    dt = _step(delta, bias, row, channel, t, length, SOFTPLUS)
    after = _step(delta, bias, row, channel, t + 1, length, SOFTPLUS)
    y_grad = _row(out_grad, row, t, length)
    drive_before = _step(delta, bias, row, channel, before, length, SOFTPLUS) * _row(u, row, before, length)
    decay = tl.exp(rate * dt[None, :])
    decay, kept = tl.associative_scan((decay, decay * drive_before[None, :] * B_before), 1, _compose)
    kept += decay * _vector(bounds, row * (chunks + 1) + chunk, n, states)[:, None]
    state = kept + (dt * value)[None, :] * B_tile
    pull = C_tile * y_grad[None, :]
    decay, adjoint = tl.associative_scan((tl.exp(rate * after[None, :]), pull), 1, _compose, reverse=True)
    adjoint += decay * _vector(adjoints, row * (chunks + 1) + chunk + 1, n, states)[:, None]
    tl.store(A_parts + place * states + n, tl.sum(adjoint * kept * dt[None, :], 1), mask=n < states)
    drive_grad = tl.sum(adjoint * B_tile, 0)
    step_grad = drive_grad * value + tl.sum(adjoint * kept * rate, 0)
    if SOFTPLUS:
        step_grad *= tl.sigmoid(_raw_step(delta, bias, row, channel, t, length))
    tl.store(delta_grad + row * length + t, step_grad, mask=t < length)
    if bias is not None:
        tl.store(bias_parts + place, tl.sum(tl.where(t < length, step_grad, 0.0), 0))
    tl.store(u_grad + row * length + t, _skipped(drive_grad * dt, skip, channel, y_grad), mask=t < length)
    if skip is not None:
        tl.store(skip_parts + place, tl.sum(y_grad * value, 0))
    return adjoint * (dt * value)[None, :], state * y_grad[None, :]


@triton.jit
def gradients(
    u, delta, A, B, C, skip, bias, out_grad, bounds, adjoints,
    u_grad, delta_grad, A_parts, B_parts, C_parts, skip_parts, bias_parts,
    channels, groups, states, length, chunks,
    SOFTPLUS: tl.constexpr, TOKENS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk of up to ``CHANNELS`` channels of a group; sums over chunks are left in parts."""
    per_group = channels // groups
    blocks = tl.cdiv(per_group, CHANNELS)
    pid = tl.program_id(0)
    chunk = pid % chunks
    part = (pid // chunks).to(tl.int64)
    block, group = part % blocks, part // blocks
    batch = group // groups
    local, n = tl.arange(0, TOKENS), tl.arange(0, STATES)
    t = chunk * TOKENS + local
    before = tl.where(local > 0, t - 1, length)  # the token before within the chunk, else one past the end: 0
    B_before = _tile(B, group, n, states, before, length)
    B_tile, C_tile = _tile(B, group, n, states, t, length), _tile(C, group, n, states, t, length)
    B_grad = tl.zeros((STATES, TOKENS), tl.float32)
    C_grad = tl.zeros((STATES, TOKENS), tl.float32)
    for i in range(0, tl.minimum(per_group - block * CHANNELS, CHANNELS)):
        channel = group % groups * per_group + block * CHANNELS + i
        B_more, C_more = _channel_gradients(
            u, delta, A, B_before, B_tile, C_tile, skip, bias, out_grad, bounds, adjoints,
            u_grad, delta_grad, A_parts, skip_parts, bias_parts,
            (batch * chunks + chunk) * channels + channel, batch * channels + channel, channel,
            chunk, chunks, n, states, before, t, length, SOFTPLUS,
        )  # fmt: skip
        B_grad += B_more
        C_grad += C_more
    offsets = (part * states + n[:, None]) * length + t[None, :]
    inside = (n[:, None] < states) & (t[None, :] < length)
    tl.store(B_parts + offsets, B_grad, mask=inside)
    tl.store(C_parts + offsets, C_grad, mask=inside)
