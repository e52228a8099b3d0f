"""What is deployed: the U-Net of RAM-DSIR, whose deepest and penultimate maps training asks for by name."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import nn

from common.networks.blocks import (
    LEVELS,
    check_image,
    check_options,
    conv_norm_relu,
    crop,
    init_convolutions,
    make_norm,
    pad_to_multiple,
)

from .layers import HalveAndUpsample


class Encoder(nn.Module):
    """Five levels of three convolutions, the first of each without activation; a max pool of 2 between levels.

    Shape:
        ``(B, C, *spatial)``, sizes multiples of 16, to five maps ``(B, w * 2**i, *spatial / 2**i)``, the finest first.
    """

    def __init__(self, spatial_dims: int = 2, in_channels: int = 3, width: int = 16, norm: str = "batch") -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        before = in_channels
        for level in range(LEVELS):
            after = width * 2**level
            self.blocks.append(
                nn.Sequential(
                    Pool["max", spatial_dims](2) if level > 0 else nn.Identity(),
                    Conv["conv", spatial_dims](before, after, 3, padding=1),
                    make_norm(norm, spatial_dims, after),
                    *conv_norm_relu(spatial_dims, after, after, 3, norm),
                    *conv_norm_relu(spatial_dims, after, after, 3, norm),
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

    def __init__(self, spatial_dims: int, channels: int, norm: str, first: bool = False) -> None:
        super().__init__()
        wide = [] if first else conv_norm_relu(spatial_dims, 2 * channels, channels, 3, norm)
        self.reduce = nn.Sequential(*wide)
        self.halve = HalveAndUpsample(spatial_dims, channels, channels // 2)
        self.act = nn.Sequential(make_norm(norm, spatial_dims, channels // 2), nn.ReLU(inplace=True))
        self.merge = nn.Sequential(*conv_norm_relu(spatial_dims, channels, channels, 3, norm))

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = self.act(self.halve(self.reduce(x)))
        return self.merge(torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    """Four levels up, from the deepest map to the penultimate one.

    Shape:
        the encoder's five maps to ``(B, 2w, *spatial)``, not negative.
    """

    def __init__(self, spatial_dims: int = 2, width: int = 16, norm: str = "batch") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DecoderBlock(spatial_dims, width * 2**level, norm, first=level == LEVELS - 1)
            for level in range(LEVELS - 1, 0, -1)
        )

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = maps[-1]
        for i, block in enumerate(self.blocks):
            x = block(x, maps[len(maps) - 2 - i])
        return x


class UNet(nn.Module):
    """U-Net whose decoder ends in a map of ``2 * width`` channels at full resolution: what SgCG contrasts.

    Source: the network of Zhou et al., "Generalizable Medical Image Segmentation via Random Amplitude Mixup and
    Domain-Specific Image Restoration" (RAM-DSIR), ECCV 2022, which SgCG (ICLR 2025 submission) keeps. Departures: three
    dimensions; instance and group norm; any image size (far edges repeated up to a multiple of 16, then cropped).

    Args:
        in_channels: image channels C.
        out_channels: classes K.
        width: channels of the first level; each level has twice those of the one above.
        norm: ``batch``; ``instance`` or ``group`` (8 groups) for batches too small for statistics.

    Shape:
        ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.

    Raises:
        ValueError: unknown option; an image of another shape than ``(B, C, *spatial)``.
    """

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 3, out_channels: int = 2, width: int = 16, norm: str = "batch"
    ) -> None:
        super().__init__()
        check_options(spatial_dims, norm)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.encoder = Encoder(spatial_dims, in_channels, width, norm)
        self.decoder = Decoder(spatial_dims, width, norm)
        self.head = Conv["conv", spatial_dims](2 * width, out_channels, 3, padding=1)
        init_convolutions(self)

    def features(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The deepest map ``(B, 16w, *spatial / 16)``, sizes rounded up, and the penultimate ``(B, 2w, *spatial)``.

        The deepest map of an image of 16 or less in all axes is two long in the last one.
        """
        check_image(image, self.spatial_dims, self.in_channels)
        maps = self.encoder(pad_to_multiple(image))
        return maps[-1], crop(self.decoder(maps), image.shape[2:])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image)[1])
