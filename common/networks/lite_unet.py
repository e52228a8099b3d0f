"""A U-Net on the ImageNet features of EfficientNet-Lite0: the network for few labelled slices on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described
from common.networks.blocks import check_image, conv_norm_relu

from .efficientnet_lite import EfficientNetLite0

__all__ = ["LiteUNet"]

LEVELS = (16, 24, 40, 112)  # channels of the encoder at strides 2, 4, 8 and 16
SLOPE = 0.1  # of the ReLU below 0


class LiteDecoder(nn.Module):
    """From the encoder's maps to one at stride 2: enlarged to the next skip, that beside it, two convolutions.

    Shape:
        maps of :data:`LEVELS`, the finest first, to ``(B, 3/2 width, H / 2, W / 2)``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [4 * width, 3 * width, 2 * width, 3 * width // 2]
        before, self.blocks = 0, nn.ModuleList()
        for skip, after in zip(reversed(LEVELS), widths, strict=True):
            self.blocks.append(_block(before + skip, after))
            before = after

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = maps[-1]
        for index, block in enumerate(self.blocks):
            if index > 0:
                skip = maps[len(maps) - 1 - index]
                x = torch.cat([_enlarge(x, [skip.shape[2], skip.shape[3]]), skip], dim=1)
            x = block(x)
        return x


@described(leave_out=["weights"])
class LiteUNet(nn.Module):
    """U-Net whose way down is EfficientNet-Lite0 to stride 16, with a 1x1 classifier on ``width`` channels.

    Source: Ronneberger et al., "U-Net" (MICCAI 2015), with the encoder of :class:`EfficientNetLite0`; the way up has 4,
    3, 2, 3/2 and 1 times ``width`` channels, group norm and leaky ReLU, and enlarges bilinearly. Two dimensions.

    Args:
        in_channels: image channels C.
        out_channels: classes K.
        width: channels A at full resolution, an even number.
        weights: of the encoder: ``imagenet``, a path, or null, as :class:`EfficientNetLite0` takes them.
        value_range: the image's values that become -1 and 1 for the encoder; those beyond are clipped.

    Shape:
        ``(B, C, H, W)`` of any size to logits ``(B, K, H, W)``. ``decoder`` is given the encoder's maps, of which the
        last is the deepest, ``(B, 112, H / 16, W / 16)`` with sizes rounded up; ``classifier`` the penultimate map.

    Raises:
        ValueError: an image of another shape; as :class:`EfficientNetLite0`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 16,
        weights: str | None = None,
        value_range: Sequence[float] = (-1.2, 2.2),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = EfficientNetLite0(in_channels, LEVELS, 16, weights, value_range)
        self.decoder = LiteDecoder(width)
        self.last = _block(3 * width // 2, width)
        self.classifier = nn.Conv2d(width, out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_image(image, 2, self.in_channels)
        x = self.decoder(self.encoder(image))
        return self.classifier(self.last(_enlarge(x, [image.shape[2], image.shape[3]])))


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        *conv_norm_relu(2, before, after, 3, "group", SLOPE), *conv_norm_relu(2, after, after, 3, "group", SLOPE)
    )


def _enlarge(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
