"""Dice and cross-entropy where the labels are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch.nn.modules.loss import _Loss


class DiceCERegionLoss(_Loss):
    r"""Half the sum of Dice loss and cross-entropy over the voxels whose label is not negative.

    .. math:: \tfrac12 \left[ 1 - \frac1K \sum_k \frac{2 \sum_i m_i p_{ik} y_{ik} + \epsilon}
              {\sum_i m_i (p_{ik}^2 + y_{ik}) + \epsilon} - \frac{\sum_i m_i \log p_{i y_i}}{\sum_i m_i} \right]

    with m the mask of known labels, sums over the whole batch, and :math:`\epsilon` 1e-5. Both halves are libraries':
    MONAI's :class:`~monai.losses.DiceLoss` and torch's cross-entropy, with ``ignore_index``.

    Source: Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023.

    Shape:
        logits ``(B, K, *spatial)``, labels ``(B, *spatial)``; a float32 scalar, 0 where no label is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True, batch=True, ignore_index=-1)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits, labels = logits.float(), labels.clamp(min=-1)
        if (labels < 0).all():
            return logits.sum() * 0
        return (F.cross_entropy(logits, labels, ignore_index=-1) + self.dice(logits, labels[:, None])) / 2
