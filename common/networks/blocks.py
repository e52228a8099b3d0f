"""What the encoder-decoder networks have in common: steps, norms, first weights, the checks and any image size."""

from __future__ import annotations

from math import gcd

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm
from torch import nn

__all__ = [
    "LEVELS", "NORMS", "check_image", "check_options", "conv_norm_relu", "crop", "init_convolutions", "make_norm",
    "pad_to_multiple",
]  # fmt: skip

NORMS = ("batch", "instance")  # what `norm` of a network may be; `group` is for networks that have no choice
LEVELS = 5  # four times halved, so sizes are padded to multiples of 16


def check_options(spatial_dims: int, norm: str) -> None:
    """Raise ValueError unless the network is of two or three dimensions and the norm one of ``NORMS``."""
    if spatial_dims not in (2, 3) or norm not in NORMS:
        raise ValueError(f"spatial_dims must be 2 or 3 and norm one of {NORMS}, got {spatial_dims} and {norm!r}.")


def check_image(image: torch.Tensor, spatial_dims: int, in_channels: int) -> None:
    """Raise ValueError unless the image is ``(B, in_channels, *spatial)``; it can be scripted."""
    if image.dim() != spatial_dims + 2 or image.shape[1] != in_channels:
        raise ValueError(
            f"expected an image (B, {in_channels}, *spatial) with {spatial_dims} spatial axes, "
            f"got shape {list(image.shape)}."
        )


def conv_norm_relu(
    spatial_dims: int, before: int, after: int, kernel: int, norm: str, slope: float = 0.0
) -> list[nn.Module]:
    """The step the networks are made of; the convolution keeps its bias, as published, though the norm takes it.

    Args:
        slope: of the ReLU below 0.
    """
    conv = Conv["conv", spatial_dims](before, after, kernel, padding=kernel // 2)
    relu = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return [conv, make_norm(norm, spatial_dims, after), relu]


def make_norm(norm: str, spatial_dims: int, channels: int) -> nn.Module:
    """A norm of weight 1 and bias 0; 8 groups, or as many as divide the channels.

    ``instance`` is a group norm of one channel a group: the same numbers, with a sixth less time for a training step
    on CPU.
    """
    if norm == "batch":
        return Norm[norm, spatial_dims](channels)
    return nn.GroupNorm(channels if norm == "instance" else gcd(8, channels), channels)


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
        if x.shape[axis + 2] != length:  # the gradient of a slice, even of the whole, is a copy into zeros
            x = x.narrow(axis + 2, 0, length)
    return x
