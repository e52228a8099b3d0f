"""Dice and cross-entropy where the labels are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.utils import one_hot
from torch.nn.modules.loss import _Loss


class DiceCERegionLoss(_Loss):
    r"""Half the sum of Dice loss and cross-entropy over the voxels whose label is not negative.

    .. math:: \tfrac12 \left[ 1 - \frac1K \sum_k \frac{2 \sum_i m_i p_{ik} y_{ik} + \epsilon}
              {\sum_i m_i (p_{ik}^2 + y_{ik}) + \epsilon} - \frac{\sum_i m_i \log p_{i y_i}}{\sum_i m_i} \right]

    with m the mask of known labels and sums over the whole batch. MONAI's masked Dice has no counterpart with
    cross-entropy, and masks logits before the softmax.

    Source: Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023.

    Args:
        include_background: whether the Dice of class 0 counts.

    Shape:
        logits ``(B, K, *spatial)``, labels ``(B, *spatial)``; a float32 scalar, 0 where no label is known.
    """

    def __init__(self, include_background: bool = True, smooth: float = 1e-5) -> None:
        super().__init__()
        self.first = 0 if include_background else 1
        self.smooth = smooth

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        known = (labels >= 0)[:, None]
        count = known.sum()
        if count == 0:
            return logits.sum() * 0
        ce = F.cross_entropy(logits, labels.clamp(min=-1), ignore_index=-1, reduction="sum") / count
        truth = one_hot(labels.clamp(min=0)[:, None], logits.shape[1]) * known
        found = logits.softmax(1) * known
        axes = (0, *range(2, logits.ndim))
        shared = (found * truth).sum(axes)[self.first :]
        size = (found.square() + truth).sum(axes)[self.first :]
        return (ce + 1 - ((2 * shared + self.smooth) / (size + self.smooth)).mean()) / 2
