"""V-Net without residuals, whose last layer is linear per voxel: the network of the semi-supervised literature."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Dropout
from torch import nn

from common.description import described
from common.networks.blocks import LEVELS, check_image, check_options, conv_norm_relu, crop, make_norm, pad_to_multiple

__all__ = ["VNet"]

SLOPE = 0.1  # of the ReLU below 0
CONVOLUTIONS = (1, 2, 3, 3, 3)  # of each level on the way down; the way up mirrors them


@described()
class VNet(nn.Module):
    """V-Net of plain convolutions, its skips added, with a 1x1 classifier on ``width`` channels at full resolution.

    A step down halves the image and doubles the channels (convolution of stride 2), a step up does the reverse
    (transposed convolution). A norm and a leaky ReLU follow every convolution but the classifier.

    Source: the network of Yu et al., "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium
    Segmentation" (UA-MT), MICCAI 2019, after Milletari et al., "V-Net", 3DV 2016: 9.45 million parameters in three
    dimensions. Departures: the leak of the ReLU, since all of 8 channels can die on the voxels of one class, which is
    then never found again; two dimensions; any image size (far edges repeated up to a multiple of 16, then cropped);
    weights and biases in instance norm too.

    Args:
        in_channels: image channels C.
        out_channels: classes K.
        width: channels of the first level, the embedding width A of the classifier's input; each level has twice those
            of the one above.
        norm: ``batch``, or ``instance`` where batches are small or mix kinds of images.
        dropout: probability with which training drops a channel of the deepest map, and of the last one.

    Shape:
        ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.

    Raises:
        ValueError: unknown option; an image of another shape than ``(B, C, *spatial)``.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 16,
        norm: str = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_options(spatial_dims, norm)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.downs, self.encoder = nn.ModuleList([nn.Identity()]), nn.ModuleList()
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        widths = [width * 2**level for level in range(LEVELS)]
        for level, after in enumerate(widths):
            if level > 0:
                self.downs.append(_resample("conv", spatial_dims, widths[level - 1], after, norm))
            before = after if level > 0 else in_channels
            self.encoder.append(_stage(spatial_dims, before, after, CONVOLUTIONS[level], norm))
        for level in reversed(range(LEVELS - 1)):
            after = widths[level]
            self.ups.append(_resample("convtrans", spatial_dims, widths[level + 1], after, norm))
            self.decoder.append(_stage(spatial_dims, after, after, CONVOLUTIONS[level], norm))
        self.dropout = Dropout["dropout", spatial_dims](dropout)
        self.classifier = Conv["conv", spatial_dims](width, out_channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_image(image, self.spatial_dims, self.in_channels)
        x = pad_to_multiple(image)
        skips: list[torch.Tensor] = []
        for down, stage in zip(self.downs, self.encoder):  # noqa: B905, TorchScript's zip knows no `strict`
            x = stage(down(x))
            skips.append(x)
        x = self.dropout(skips.pop())
        for up, stage in zip(self.ups, self.decoder):  # noqa: B905
            x = stage(up(x) + skips.pop())
        return self.classifier(crop(self.dropout(x), image.shape[2:]))


def _stage(spatial_dims: int, before: int, after: int, count: int, norm: str) -> nn.Sequential:
    """``count`` blocks of a convolution of kernel 3, a norm and a leaky ReLU."""
    befores = [before] + [after] * (count - 1)
    return nn.Sequential(*(nn.Sequential(*conv_norm_relu(spatial_dims, b, after, 3, norm, SLOPE)) for b in befores))


def _resample(kind: str, spatial_dims: int, before: int, after: int, norm: str) -> nn.Sequential:
    """A step to the next level, ``conv`` down or ``convtrans`` up: kernel and stride 2, a norm and a leaky ReLU."""
    conv = Conv[kind, spatial_dims](before, after, 2, stride=2)
    return nn.Sequential(conv, make_norm(norm, spatial_dims, after), nn.LeakyReLU(SLOPE, inplace=True))
