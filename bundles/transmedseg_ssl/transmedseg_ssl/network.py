"""What is deployed: a U-Net; for volumes :class:`common.networks.VNet`. Both end in a classifier linear per voxel."""

from __future__ import annotations

from monai.networks.blocks import ADN
from monai.networks.nets import BasicUNet
from torch import nn

from common.description import described
from common.networks.blocks import check_options, make_norm


@described()
class UNet(BasicUNet):
    """MONAI's U-Net of five levels, whose last map has ``width`` channels.

    Source: the U-Net of the semi-supervised literature on ACDC (16 to 256 channels). Departure: its classifier is 1x1,
    as the bound of the expected cross-entropy needs, not 3x3.

    Args:
        norm: ``batch`` or ``instance``.

    Shape:
        ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.

    Raises:
        ValueError: unknown option.
    """

    __jit_unused_properties__ = ["classifier"]

    def __init__(
        self, spatial_dims: int = 2, in_channels: int = 1, out_channels: int = 2, width: int = 16,
        norm: str = "instance", dropout: float = 0.0,
    ) -> None:
        check_options(spatial_dims, norm)
        features = [width * 2**level for level in (0, 1, 2, 3, 4, 0)]
        super().__init__(spatial_dims, in_channels, out_channels, features, norm="batch", dropout=dropout)
        if norm != "batch":
            for block in [part for part in self.modules() if isinstance(part, ADN)]:
                block.N = make_norm(norm, spatial_dims, block.N.num_features)

    @property
    def classifier(self) -> nn.Module:
        """The last layer, linear per voxel."""
        return self.final_conv
