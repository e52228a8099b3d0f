"""What is deployed: the U-Net of RAM-DSIR, whose deepest and penultimate maps training asks for by name."""

from __future__ import annotations

import torch
from torch import nn

from common.description import described
from common.networks.blocks import LEVELS, check_image, conv_norm_relu, crop, init_convolutions, pad_to_multiple

from .layers import HalveAndUpsample


class Encoder(nn.Module):
    """Five levels of three convolutions, the first of each without activation; a max pool of 2 between levels.

    Shape:
        ``(B, C, *spatial)``, sizes multiples of 16, to five maps ``(B, w * 2**i, *spatial / 2**i)``, the finest first.
    """

    def __init__(self, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        before = in_channels
        for level in range(LEVELS):
            after = width * 2**level
            self.blocks.append(
                nn.Sequential(
                    nn.MaxPool2d(2) if level > 0 else nn.Identity(),
                    nn.Conv2d(before, after, 3, padding=1),
                    nn.BatchNorm2d(after),
                    *conv_norm_relu(2, after, after, 3, "batch"),
                    *conv_norm_relu(2, after, after, 3, "batch"),
                )
            )
            before = after

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = []
        x = image
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class DecoderBlock(nn.Module):
    """A level up: (3x3 to ``channels``), upsampling, 1x1 to half of them, the skip beside it, 3x3.

    Shape:
        x ``(B, channels, *s)``, or twice the channels unless ``first``; skip ``(B, channels / 2, *2s)``; returns
        ``(B, channels, *2s)``.
    """

    def __init__(self, channels: int, first: bool = False) -> None:
        super().__init__()
        wide = [] if first else conv_norm_relu(2, 2 * channels, channels, 3, "batch")
        self.reduce = nn.Sequential(*wide)
        self.halve = HalveAndUpsample(channels, channels // 2)
        self.act = nn.Sequential(nn.BatchNorm2d(channels // 2), nn.ReLU(inplace=True))
        self.merge = nn.Sequential(*conv_norm_relu(2, channels, channels, 3, "batch"))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.act(self.halve(self.reduce(x)))
        return self.merge(torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """Four levels up, from the deepest map to the penultimate one.

    Shape:
        the encoder's five maps to ``(B, 2w, *spatial)``, not negative.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(width * 2**level, first=level == LEVELS - 1)
            for level in range(LEVELS - 1, 0, -1)
        )

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = maps[-1]
        for i, block in enumerate(self.blocks):
            x = block(x, maps[len(maps) - 2 - i])
        return x


@described()
class UNet(nn.Module):
    """U-Net whose decoder ends in a map of ``2 * width`` channels at full resolution: what SgCG contrasts.

    Source: the network of Zhou et al., "Generalizable Medical Image Segmentation via Random Amplitude Mixup and
    Domain-Specific Image Restoration" (RAM-DSIR), ECCV 2022, which SgCG (ICLR 2025 submission) keeps. Departure: any
    image size (far edges repeated up to a multiple of 16, then cropped).

    Args:
        in_channels: image channels C.
        out_channels: regions K.
        width: channels of the first level; each level has twice those of the one above.

    Shape:
        ``(B, C, H, W)`` to logits ``(B, K, H, W)``. ``decoder`` is given the encoder's maps, of which the last is the
        deepest, ``(B, 16w, H / 16, W / 16)`` with sizes rounded up; ``classifier`` the penultimate, ``(B, 2w, H, W)``.

    Raises:
        ValueError: an image of another shape.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 2, width: int = 16) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = Encoder(in_channels, width)
        self.decoder = Decoder(width)
        self.classifier = nn.Conv2d(2 * width, out_channels, 3, padding=1)
        init_convolutions(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_image(image, 2, self.in_channels)
        maps = self.encoder(pad_to_multiple(image))
        return self.classifier(crop(self.decoder(maps), image.shape[2:]))
