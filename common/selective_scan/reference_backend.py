"""The selective scan as it is written: one step after the other. The oracle of the other backends, not for speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """The formula of ``selective_scan``, differentiated by autograd, any number of times.

    Args: as in ``selective_scan``.
    """
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    h, ys = u.new_zeros(u.shape[0], *A.shape), []
    # unbind, because the gradient of x[..., t] fills a whole tensor for each t, quadratic in the length
    steps = (dt.unbind(2), (dt * u).unbind(2), each_channel(B, u).unbind(3), each_channel(C, u).unbind(3))
    for dt_t, w_t, B_t, C_t in zip(*steps, strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + w_t[..., None] * B_t
        ys.append((h * C_t).sum(2))
    y = torch.stack(ys, 2)
    return y if D is None else y + D[:, None] * u


def each_channel(x: Tensor, u: Tensor) -> Tensor:
    """``(B, N, L)`` or ``(B, G, N, L)`` as ``(B, D, N, L)``, of groups; as ``(B, 1, N, L)`` of one."""
    if x.dim() == 3:
        return x.unsqueeze(1)
    return x if x.shape[1] == 1 else x.repeat_interleave(u.shape[1] // x.shape[1], 1)
