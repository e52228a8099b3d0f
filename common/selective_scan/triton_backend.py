"""Selective scan on CUDA by kernels of our own in Triton, which comes with CUDA builds of torch."""

from __future__ import annotations

import importlib
import os
from functools import cache

import torch
from torch.autograd.function import once_differentiable

from .probe import fault_of

__all__ = ["scan", "unavailable"]

TOKENS = 64  # of a chunk; fewer where N is large or L is small
TILE = 2048  # elements of the largest tile (N, tokens)
CHANNELS = 16  # whose gradients of B and C one program adds up: the partial sums then take twice the memory of u


def unavailable() -> str | None:
    """Why the kernels cannot be used here, or None when they can; they are compiled and run once to find out.

    With ``TRITON_INTERPRET=1`` they run on CPU tensors in Triton's interpreter: slow, for tests.
    """
    if _interpreting():
        return _probe("cpu")
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.cuda.get_device_capability() < (7, 5):
        return f"the CUDA device has capability {torch.cuda.get_device_capability()}, Triton needs (7, 5)"
    return _probe("cuda")


def scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """The scan of `selective_scan`, computed in float32 whatever the dtype.

    Raises:
        TypeError: a float64 input, whose digits the kernels would drop.
        ValueError: the tensors are not on a CUDA device.
    """
    if u.dtype == torch.float64:
        raise TypeError("the triton backend computes in float32; use backend='torch' for float64 tensors.")
    if not (u.is_cuda or _interpreting()):
        raise ValueError(f"the triton backend needs CUDA tensors, got tensors on {u.device}.")
    B, C = (x.unsqueeze(1) if x.dim() == 3 else x for x in (B, C))
    return _Scan.apply(u, delta, A, B, C, D, delta_bias, delta_softplus)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias, softplus):
        tensors = [x if x is None else x.contiguous() for x in (u, delta, A, B, C, D, bias)]
        out, bounds = _forward(*tensors, softplus)
        ctx.save_for_backward(*tensors, bounds)
        ctx.softplus = softplus
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, out_grad):
        # what a hook gives back for them may lie in memory in another order
        saved = [x if x is None else x.contiguous() for x in ctx.saved_tensors]
        return *_backward(*saved, ctx.softplus, out_grad.contiguous()), None


def _forward(u, delta, A, B, C, D, bias, softplus):
    """The output, and the states at the chunk boundaries ``(rows, chunks + 1, N)``."""
    kernels, (batch, channels, length), (groups, states) = _kernels(), u.shape, B.shape[1:3]
    tokens, block, chunks = _plan(length, states)
    rows, tile = batch * channels, {"TOKENS": tokens, "STATES": block}
    shape = (channels, groups, states, length, chunks)
    ends, steps = u.new_empty(rows, chunks, states, dtype=torch.float32), u.new_empty(rows, chunks, dtype=torch.float32)
    bounds, out = u.new_zeros(rows, chunks + 1, states, dtype=torch.float32), torch.empty_like(u)
    with torch.cuda.device_of(u):
        kernels.chunk_ends[rows * chunks,](u, delta, A, B, bias, ends, steps, *shape, SOFTPLUS=softplus, **tile)
        kernels.carry[rows,](ends, steps, A, bounds, channels, states, chunks, REVERSE=False, **tile)
        kernels.outputs[rows * chunks,](u, delta, A, B, C, D, bias, bounds, out, *shape, SOFTPLUS=softplus, **tile)
    return out, bounds


def _backward(u, delta, A, B, C, D, bias, bounds, softplus, out_grad):
    """The gradients of the seven inputs, None for those not given."""
    kernels, (batch, channels, length), (groups, states) = _kernels(), u.shape, B.shape[1:3]
    tokens, block, chunks = _plan(length, states)
    rows, tile = batch * channels, {"TOKENS": tokens, "STATES": block}
    shape = (channels, groups, states, length, chunks)

    def empty(*size):
        return u.new_empty(size, dtype=torch.float32)

    starts, steps, adjoints = empty(rows, chunks, states), empty(rows, chunks), empty(rows, chunks + 1, states)
    adjoints[:, -1] = 0
    blocks = -(-channels // groups // CHANNELS)
    B_parts, C_parts = (empty(batch, groups, blocks, states, length) for _ in range(2))
    A_parts = empty(batch, chunks, channels, states)
    D_parts, bias_parts = (None if x is None else empty(batch, chunks, channels) for x in (D, bias))
    u_grad, delta_grad = torch.empty_like(u), torch.empty_like(delta)
    with torch.cuda.device_of(u):
        kernels.adjoint_starts[rows * chunks,](
            delta, A, C, bias, out_grad, starts, steps, *shape, SOFTPLUS=softplus, **tile
        )
        kernels.carry[rows,](starts, steps, A, adjoints, channels, states, chunks, REVERSE=True, **tile)
        kernels.gradients[batch * groups * blocks * chunks,](
            u, delta, A, B, C, D, bias, out_grad, bounds, adjoints,
            u_grad, delta_grad, A_parts, B_parts, C_parts, D_parts, bias_parts, *shape,
            SOFTPLUS=softplus, CHANNELS=CHANNELS, **tile,
        )  # fmt: skip
    A_grad, D_grad, bias_grad = (
        None if x is None else parts.sum((0, 1)).to(x.dtype)
        for x, parts in ((A, A_parts), (D, D_parts), (bias, bias_parts))
    )
    return u_grad, delta_grad, A_grad, B_parts.sum(2).to(B), C_parts.sum(2).to(C), D_grad, bias_grad


def _plan(length: int, states: int) -> tuple[int, int, int]:
    """Tokens of a chunk, states of a tile (both powers of two) and the number of chunks."""
    block = _power_of_two(states)
    tokens = min(TOKENS, max(TILE // block, 1), max(_power_of_two(length), 16))
    return tokens, block, -(-length // tokens)


def _power_of_two(number: int) -> int:
    """The smallest that is not below ``number``."""
    return 1 << (number - 1).bit_length()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _kernels():
    """The kernels' module; imported late because it needs triton, which a CPU installation lacks."""
    return importlib.import_module(".triton_kernels", __package__)


@cache
def _probe(device: str) -> str | None:
    return fault_of(scan, device)
