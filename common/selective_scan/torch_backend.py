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
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The formula of ``selective_scan`` in two levels; it can be differentiated once.

    Args: as in ``selective_scan``.
    """
    inputs = (u, delta, A, B, C, D, delta_bias)
    rows = chunked_forward.rows_of(u, B)
    channels = u.shape[0] * u.shape[1] // rows
    sizes = chunked_forward.plan(rows, channels, A.shape[1], u.shape[2], u.is_cuda)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _Scan.apply(*inputs, delta_softplus, sizes)
    return chunked_forward.forward(*inputs, delta_softplus, sizes, False)[0]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus, sizes):
        inputs = (u, delta, A, B, C, D, delta_bias)
        y, first = chunked_forward.forward(*inputs, delta_softplus, sizes, True)
        ctx.save_for_backward(*inputs, *first)
        ctx.options = delta_softplus, sizes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, y_grad):
        saved = ctx.saved_tensors  # asked for once: each time unpacks all, which gradient checkpointing allows once
        return *chunked_backward.backward(*saved[:7], *ctx.options, saved[7:], y_grad), None, None
