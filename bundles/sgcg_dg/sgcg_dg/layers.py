"""What the U-Net and the restoration branch share beyond the blocks that all networks are built of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class HalveAndUpsample(nn.Module):
    """A 1x1 convolution and linear upsampling by 2.

    The method upsamples first. Both are linear over different axes, so the result is the same, for a quarter of the
    convolution.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear", align_corners=False)
