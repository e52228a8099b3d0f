"""Symmetric KL divergence between the predictions of two views of one image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss


class SymmetricKLLoss(_Loss):
    r"""KL(p_a‖p_b) + KL(p_b‖p_a) of two predictions of sigmoid channels, averaged over all elements (channels too).

    .. math:: \frac1{|E|} \sum_{e \in E} (p_{b,e} - p_{a,e})\,(\log p_{b,e} - \log p_{a,e})

    with E all elements of the maps. Every summand is non-negative and vanishes where the predictions agree; both sides
    receive a gradient. Source: Zhou et al., "Generalizable Medical Image Segmentation via Random Amplitude Mixup and
    Domain-Specific Image Restoration", ECCV 2022, in the form of its code: element mean, no temperature, no
    stop-gradient. Departures: logarithms are formed from logits, where the code takes them of probabilities and gets
    0 · (-inf) once one underflows. As there, this is the half of p alone, without that of 1 - p.

    Shape:
        both logits ``(B, K, *spatial)``; returns a float32 scalar (float64 stays float64), ``0`` when there is no
        element.

    Raises:
        ValueError: shapes that differ or have no channels.
    """

    def __init__(self) -> None:
        super().__init__()  # takes nothing: the base class would let a `reduction` pass, of no effect

    def forward(self, logits_a: torch.Tensor, logits_b: torch.Tensor) -> torch.Tensor:
        if logits_a.shape != logits_b.shape or logits_a.ndim < 2:
            shapes = f"{tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
            raise ValueError(f"expected two logits of one shape (B, K, *spatial), got {shapes}.")
        logits_a, logits_b = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (logits_a, logits_b))
        log_a, log_b = F.logsigmoid(logits_a), F.logsigmoid(logits_b)
        # p from log p: the two factors then have one sign, whatever the rounding
        return ((log_b.exp() - log_a.exp()) * (log_b - log_a)).sum() / max(logits_a.numel(), 1)
