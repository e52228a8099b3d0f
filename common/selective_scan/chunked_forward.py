r"""The selective scan in plain PyTorch operations and two levels; what stands here can be scripted and exported.

A segment of ``T * n`` tokens is seen as n chunks of T, and a step is taken in all chunks at once, so that a Python step
works on a tile ``(rows, channels, N, n)``. From a zero state each chunk gives its end state; with the decay of whole
chunks those give every chunk's true first state; from there the steps are taken again, now to be read out.

Every exponential is of one step or of a sum of steps, never of minus such a sum: with ``A <= 0`` none can overflow, as
``exp(-cumsum)`` does in float32 already at initialisation. It is ``exp2`` of ``A`` scaled by ``log2(e)``, because
torch's ``exp`` on the CPU takes up to four times as long.

A row is a group of channels that share B and C, of one element of the batch: rows = batch * groups.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def plan(rows: int, channels: int, state: int, length: int, cuda: bool) -> tuple[int, int, int]:
    """How many steps make a chunk, how many chunks a segment, and how many channels of each row a tile.

    The CPU wants tiles that stay in its caches and chunk axes long enough for its vectors; a GPU wants few launches, so
    as many chunks as steps, as long as the two arrays of a segment that the backward holds stay below 512 MiB.
    """
    steps = max(1, int(math.sqrt(length)))
    if cuda:
        fits = max(1, 67108864 // (rows * channels * state * steps))
        return steps, min(fits, (length + steps - 1) // steps), channels
    steps = min(16, steps)
    chunks = min(128, (length + steps - 1) // steps)
    return steps, chunks, max(1, min(channels, 131072 // (rows * state * chunks)))


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    sizes: tuple[int, int, int],
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The output and, for the backward, the chunks' first states by segment and block of channels.

    Uses only operations that autograd can follow, so that a scripted network can be trained too, if with more memory.
    """
    rows, (steps, chunks, block), length = rows_of(u, B), sizes, u.shape[2]
    u_row, delta_row, B_row, C_row = by_row(u, rows), by_row(delta, rows), by_row(B, rows), by_row(C, rows)
    shift = by_row_parameter(delta_bias, u, rows)
    rate = by_row_parameter(A, u, rows) * 1.4426950408889634  # log2(e), for exp2
    blocks = range(0, u_row.shape[1], block)
    h = [rate.narrow(1, c, min(block, u_row.shape[1] - c)) * 0 for c in blocks]
    kept: list[Tensor] = []
    parts: list[Tensor] = []
    for start in range(0, length, steps * chunks):
        size = min(steps * chunks, length - start)
        B_t, C_t = by_step(B_row.narrow(2, start, size), steps, 1), by_step(C_row.narrow(2, start, size), steps, 1)
        ys: list[Tensor] = []
        for i, c in enumerate(blocks):
            width = h[i].shape[1]
            dt = delta_row.narrow(1, c, width).narrow(2, start, size) + shift.narrow(1, c, width)
            dt = F.softplus(dt) if delta_softplus else dt
            w_t = by_step(dt * u_row.narrow(1, c, width).narrow(2, start, size), steps, 2)
            dt_t, rate_c = by_step(dt, steps, 2), rate.narrow(1, c, width).unsqueeze(3)
            first = first_states(dt_t, w_t, B_t, rate_c, h[i])
            y, h[i] = _read_out(dt_t, w_t, B_t, C_t, rate_c, first)
            ys.append(y.narrow(2, 0, size))
            if keep:
                kept.append(first)
        parts.append(torch.cat(ys, 1))
    y = torch.cat(parts, 2).view(u.shape)
    return y if D is None else y + D.unsqueeze(1) * u, kept


def rows_of(u: Tensor, B: Tensor) -> int:
    """Batch times groups, whether B has an axis of groups or not."""
    return u.shape[0] * (B.shape[1] if B.dim() == 4 else 1)


def by_row(x: Tensor, rows: int) -> Tensor:
    """Batch and groups in one axis: ``(rows, D / G, L)`` of u, ``(rows, N, L)`` of B."""
    return x.reshape(rows, -1, x.shape[-1])


def by_row_parameter(x: Tensor | None, u: Tensor, rows: int) -> Tensor:
    """A parameter of the channels, ``(D,)`` or ``(D, N)``, as ``(rows, D / G, 1 or N)``; zero where there is none."""
    if x is None:
        return u.new_zeros(rows, u.shape[0] * u.shape[1] // rows, 1)
    return x.reshape(1, u.shape[1], -1).expand(u.shape[0], -1, -1).reshape(rows, u.shape[0] * u.shape[1] // rows, -1)


def by_step(x: Tensor, steps: int, axis: int) -> list[Tensor]:
    """``(rows, k, l)`` as the tensors ``(rows, k, n)`` of each step, and an axis of size one inserted in those.

    The end is filled with zeros. A step of size zero neither decays nor adds: it keeps the state.
    """
    x = F.pad(x, [0, -x.shape[2] % steps])
    x = x.view(x.shape[0], x.shape[1], -1, steps).permute(3, 0, 1, 2).contiguous()
    return x.unsqueeze(axis + 1).unbind(0)


def first_states(dt: list[Tensor], w: list[Tensor], B: list[Tensor], rate: Tensor, h: Tensor) -> Tensor:
    """Each chunk's state before its first step, ``(rows, channels, N, n)``, from that of the segment."""
    h = h.unsqueeze(3)
    if dt[0].shape[3] == 1:
        return h
    end, total = w[0] * B[0], dt[0]
    for t in range(1, len(dt)):
        end = torch.addcmul(w[t] * B[t], (dt[t] * rate).exp2_(), end)
        total = total + dt[t]
    return carry((total * rate).exp2_(), end, h)


def carry(decay: Tensor, end: Tensor, h: Tensor) -> Tensor:
    """The states before each chunk: ``h`` before the first, then ``decay * before + end``, by doubling the distance."""
    chunks = end.shape[3]
    x = torch.cat([h, end.narrow(3, 0, chunks - 1)], 3)  # x[c] = state before c, so far only from chunk c - 1
    decay = torch.cat([torch.ones_like(h), decay.narrow(3, 0, chunks - 1)], 3)
    distance = 1
    while distance < chunks:
        rest = chunks - distance
        far, near = decay.narrow(3, distance, rest), x.narrow(3, 0, rest)
        x = torch.cat([x.narrow(3, 0, distance), torch.addcmul(x.narrow(3, distance, rest), far, near)], 3)
        decay = torch.cat([decay.narrow(3, 0, distance), far * decay.narrow(3, 0, rest)], 3)
        distance *= 2
    return x


def _read_out(
    dt: list[Tensor], w: list[Tensor], B: list[Tensor], C: list[Tensor], rate: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """The segment's output ``(rows, channels, n * T)`` without skip and gate, and its last state."""
    ys: list[Tensor] = []
    for t in range(len(dt)):
        h = torch.addcmul(w[t] * B[t], (dt[t] * rate).exp2_(), h)
        ys.append((h * C[t]).sum(2))
    return torch.stack(ys, 3).flatten(2), h.select(3, h.shape[3] - 1)
