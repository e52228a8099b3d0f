"""What the U-Net and the restoration branch are built of."""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm
from torch import nn

NORMS = ("batch", "instance", "group")
LEVELS = 5  # four times halved, so sizes are padded to multiples of 16


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


def conv_norm_relu(spatial_dims: int, before: int, after: int, kernel: int, norm: str) -> list[nn.Module]:
    """The step the whole network is made of; the convolution keeps its bias, as published, though the norm takes it."""
    conv = Conv["conv", spatial_dims](before, after, kernel, padding=kernel // 2)
    return [conv, make_norm(norm, spatial_dims, after), nn.ReLU(inplace=True)]


def make_norm(norm: str, spatial_dims: int, channels: int) -> nn.Module:
    """A norm of weight 1 and bias 0; 8 groups, or as many as divide the channels."""
    if norm == "group":
        return Norm["group", spatial_dims](num_groups=gcd(8, channels), num_channels=channels)
    return Norm[norm, spatial_dims](channels, affine=True)


def init_convolutions(module: nn.Module) -> None:
    """Kaiming-normal weights by fan-out."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def pad_to_multiple(image: torch.Tensor) -> torch.Tensor:
    """Repeat the far edges until every size is a multiple of 16; an edge can be repeated however small the image is."""
    pads = [-size % 16 for size in image.shape[2:]]
    if max(image.shape[2:]) <= 16:
        pads[-1] += 16  # a deepest map of one pixel would have no variance to normalise by
    if sum(pads) == 0:
        return image
    both_ends: list[int] = []
    for pad in pads[::-1]:
        both_ends += [0, pad]
    return F.pad(image, both_ends, mode="replicate")


def crop(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The first ``size`` pixels of each spatial axis."""
    for axis, length in enumerate(size):
        x = x.narrow(axis + 2, 0, length)
    return x
