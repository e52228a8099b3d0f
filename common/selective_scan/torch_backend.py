"""The selective scan by plain PyTorch operations, with a backward that recomputes: for every machine and dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import chunked_backward, chunked_forward


def unavailable() -> None:
    """Usable everywhere."""
    return None


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The formula of ``selective_scan`` in two levels; it can be differentiated once.

    Args: as in ``selective_scan``; ``return_last_state`` returns the state ``(B, D, N)`` after the last step as well.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    rows = chunked_forward.rows_of(u, B)
    channels = u.shape[0] * u.shape[1] // rows
    sizes = chunked_forward.plan(rows, channels, A.shape[1], u.shape[2], u.is_cuda)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        y, h = _Scan.apply(*inputs, delta_softplus, sizes)
    else:
        y, h, _ = chunked_forward.forward(*inputs, delta_softplus, sizes, False)
    return (y, h) if return_last_state else y


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus, sizes):
        inputs = (u, delta, A, B, C, D, z, delta_bias)
        y, h, first = chunked_forward.forward(*inputs, delta_softplus, sizes, True)
        ctx.save_for_backward(*inputs, *first)
        ctx.options = delta_softplus, sizes
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx, y_grad, h_grad):
        inputs, first = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        return *chunked_backward.backward(*inputs, *ctx.options, first, y_grad, h_grad), None, None
