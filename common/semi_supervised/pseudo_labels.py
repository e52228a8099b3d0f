"""From the teacher's logits to labels that can be learned from."""

from __future__ import annotations

import torch
from monai.transforms import KeepLargestConnectedComponent
from torch import nn


class PseudoLabels(nn.Module):
    """Class of the highest probability, its largest component per class, and the probability of the label.

    Args:
        largest_component: keep one component of each class; what falls away becomes background,
            with the probability of that.
    """

    def __init__(self, largest_component: bool = True) -> None:
        super().__init__()
        self.keep = KeepLargestConnectedComponent(is_onehot=False) if largest_component else None

    @torch.no_grad()
    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``(B, K, *spatial)`` to labels and confidence ``(B, *spatial)``."""
        chances = logits.float().softmax(1)
        labels = chances.max(1).indices  # `argmax` along channels is ten times slower on a CPU
        if self.keep is not None:
            labels = torch.stack([self.keep(one[None])[0] for one in labels]).as_subclass(torch.Tensor).long()
        return labels, chances.gather(1, labels[:, None])[:, 0]
