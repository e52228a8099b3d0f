"""What the U-Net and the restoration branch share beyond the blocks that all networks are built of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import nn


class HalveAndUpsample(nn.Module):
    """A 1x1 convolution and linear upsampling by 2.

    The method upsamples first. Both are linear over different axes, so the result is the same, for a quarter (an
    eighth in three dimensions) of the convolution.
    """

    def __init__(self, spatial_dims: int, before: int, after: int) -> None:
        super().__init__()
        self.conv = Conv["conv", spatial_dims](before, after, 1)
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.conv(x), scale_factor=2.0, mode=self.mode, align_corners=False)
