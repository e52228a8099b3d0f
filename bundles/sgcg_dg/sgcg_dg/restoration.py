"""What only training needs: the branch that restores an image from the deepest map of its amplitude-mixed view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.description import described
from common.networks.blocks import LEVELS, crop, init_convolutions

from .layers import HalveAndUpsample


class DomainNormReLU(nn.Module):
    """A batch norm for each domain, then a ReLU; only the norm of the domain at hand is used and updated."""

    def __init__(self, channels: int, domains: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(domains))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor, domain: int) -> torch.Tensor:
        return self.relu(self.norms[domain](x))


class RestorationBlock(nn.Module):
    """3x3 to half the channels, upsampling and 1x1, 3x3; a domain-specific norm and a ReLU after each."""

    def __init__(self, channels: int, domains: int) -> None:
        super().__init__()
        half = channels // 2
        self.first = nn.Conv2d(channels, half, 3, padding=1)
        self.up = HalveAndUpsample(half, half)
        self.last = nn.Conv2d(half, half, 3, padding=1)
        self.acts = nn.ModuleList(DomainNormReLU(half, domains) for _ in range(3))

    def forward(self, x: torch.Tensor, domain: int) -> torch.Tensor:
        for step, act in zip((self.first, self.up, self.last), self.acts, strict=True):
            x = act(step(x), domain)
        return x


@described()
class RestorationDecoder(nn.Module):
    """Domain-specific image restoration: an image of one domain from the deepest map alone, without skips.

    Convolutions are shared by the domains, batch norms are not, so that the shared encoder has to keep what an image
    shows and the norms hold how its domain looks.

    Source: Zhou et al., RAM-DSIR (ECCV 2022). Departure: the crop of images of any size.

    Args:
        out_channels: image channels C.
        width: the U-Net's.
        domains: number of source domains.

    Shape:
        deepest map ``(B, 16w, *s)``, all of one domain, and a size to images ``(B, C, *size)`` in -1 .. 1.

    Raises:
        ValueError: the domain is not one of 0 .. domains - 1; the map has other channels; ``size`` exceeds ``16s``.
    """

    def __init__(self, out_channels: int = 3, width: int = 16, domains: int = 3) -> None:
        super().__init__()
        self.in_channels = width * 2 ** (LEVELS - 1)
        self.domains = domains
        self.blocks = nn.ModuleList(
            RestorationBlock(width * 2**level, domains) for level in range(LEVELS - 1, 0, -1)
        )
        self.head = nn.Conv2d(width, out_channels, 3, padding=1)
        init_convolutions(self)

    def forward(self, deep: torch.Tensor, domain: int, size: Sequence[int]) -> torch.Tensor:
        if not 0 <= domain < self.domains:
            raise ValueError(f"domain must be one of 0 .. {self.domains - 1}, got {domain}.")
        full = [16 * length for length in deep.shape[2:]]
        if deep.shape[1] != self.in_channels or len(size) != len(full) or any(map(int.__gt__, size, full)):
            raise ValueError(
                f"expected a deepest map (B, {self.in_channels}, *s) and sizes of at most 16 s = {full}; got a map "
                f"{tuple(deep.shape)} and sizes {list(size)}."
            )
        x = deep
        for block in self.blocks:
            x = block(x, domain)
        return crop(torch.tanh(self.head(x)), list(size))
