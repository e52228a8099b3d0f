"""Symmetric KL divergence between the predictions of two views of one image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss


class SymmetricKLLoss(_Loss):
    r"""KL(p_a‖p_b) + KL(p_b‖p_a) of two predictions, averaged over all elements (channels too).

    .. math:: \frac1{|E|} \sum_{e \in E} (p_{b,e} - p_{a,e})\,(\log p_{b,e} - \log p_{a,e})

    with E all elements of the maps. Every summand is non-negative and vanishes where the predictions agree; both sides
    receive a gradient. Source: Zhou et al., "Generalizable Medical Image Segmentation via Random Amplitude Mixup and
    Domain-Specific Image Restoration", ECCV 2022, in the form of its code: element mean, no temperature, no
    stop-gradient. Departures: logarithms are formed from logits, where the code takes them of probabilities and gets
    0 · (-inf) once one underflows. Of sigmoid channels this is, as there, the half of p alone, without that of 1 - p.

    Args:
        activation: ``sigmoid`` (channels may overlap) or ``softmax`` (channels exclude each other).

    Shape:
        both logits ``(B, K, *spatial)``; returns a float32 scalar (float64 stays float64), ``0`` when there is no
        element.

    Raises:
        ValueError: unknown activation, shapes that differ or have no channels, or a softmax over one channel (it is 1
            whatever the logits).
    """

    def __init__(self, activation: str = "sigmoid") -> None:
        super().__init__()
        if activation not in ("sigmoid", "softmax"):
            raise ValueError(f"activation must be 'sigmoid' or 'softmax', got {activation!r}.")
        self.activation = activation

    def forward(self, logits_a: torch.Tensor, logits_b: torch.Tensor) -> torch.Tensor:
        if logits_a.shape != logits_b.shape or logits_a.ndim < 2:
            shapes = f"{tuple(logits_a.shape)} and {tuple(logits_b.shape)}"
            raise ValueError(f"expected two logits of one shape (B, K, *spatial), got {shapes}.")
        if self.activation == "softmax" and logits_a.shape[1] < 2:
            raise ValueError(f"softmax needs 2 channels or more, got {tuple(logits_a.shape)}; use 'sigmoid' for one.")
        logits_a, logits_b = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (logits_a, logits_b))
        if self.activation == "sigmoid":
            log_a, log_b = F.logsigmoid(logits_a), F.logsigmoid(logits_b)
        else:
            log_a, log_b = F.log_softmax(logits_a, dim=1), F.log_softmax(logits_b, dim=1)
        # p from log p: the two factors then have one sign, whatever the rounding
        return ((log_b.exp() - log_a.exp()) * (log_b - log_a)).sum() / max(logits_a.numel(), 1)
