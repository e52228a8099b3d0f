"""High-frequency Mamba: a residual block that looks where the image changes, then mixes over the whole image."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from common.networks.blocks import check_image
from common.networks.mamba import MambaBlock

__all__ = ["FILTERS", "HighFrequencyMamba", "HighPass"]

FILTERS = ("fft_gaussian", "none")


class HighPass(nn.Module):
    r"""What is left of an image without its low frequencies; a constant image leaves nothing.

    ``fft_gaussian`` multiplies the spectrum by :math:`1 - e^{-|k|^2 / 2\sigma^2}`, with each axis of :math:`k` scaled
    to [-1, 1]; ``none`` is the image itself.

    Args:
        kind: one of `FILTERS`.
        cutoff: :math:`\sigma`.

    Shape:
        ``(B, C, *spatial)`` of two or three spatial axes, any size, to the same; the spectrum is taken in float32 for
        shorter dtypes.
    """

    def __init__(self, kind: str = "fft_gaussian", cutoff: float = 0.25) -> None:
        super().__init__()
        if kind not in FILTERS or cutoff <= 0:
            raise ValueError(f"the filter must be one of {FILTERS} and cutoff above 0, got {kind!r} and {cutoff}.")
        self.kind = kind
        self.cutoff = cutoff

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if self.kind == "none" else self._filter_spectrum(image)

    def _filter_spectrum(self, image: torch.Tensor) -> torch.Tensor:
        x = image if image.dtype == torch.float64 else image.float()
        axes = list(range(2, x.dim()))
        spectrum = torch.fft.rfftn(x, dim=axes)
        square = torch.zeros(spectrum.shape[2:], dtype=x.dtype, device=x.device)
        for axis in axes:
            k = torch.arange(spectrum.shape[axis], dtype=x.dtype, device=x.device)
            k = torch.minimum(k, x.shape[axis] - k) * (2.0 / x.shape[axis])  # the sign is lost in the square
            square = square + k.square().view([-1] + [1] * (x.dim() - 1 - axis))
        gain = -torch.expm1(-square / (2 * self.cutoff**2))
        return torch.fft.irfftn(spectrum * gain, s=x.shape[2:], dim=axes).to(image.dtype)


class HighFrequencyMamba(nn.Module):
    r"""Attention drawn from high frequencies, a selective scan over the attended image, a residual that starts at 0.

    .. math:: m = \sigma(\mathrm{Conv}_1(\mathrm{GELU}(\mathrm{DWConv}_3(\mathrm{HighPass}(x))))), \quad
              y = x + s\,\mathrm{Conv}_1(\mathrm{Mamba}(\mathrm{LN}(x \odot (1 + m))))

    With the learnable scalar :math:`s = 0` at first the block is the identity, so it can be put into a network at any
    place.

    Source: written from the abstract and the figure captions of Diff-CL (arXiv 2503.09408), which name a high-frequency
    Mamba module with a high-frequency attention and give no formula: a reconstruction.

    Args:
        channels: of the image, C.
        high_pass: one of `FILTERS`.
        cutoff: of the filter, as a share of the highest frequency.
        scan: one of `common.networks.mamba.SCANS`, the orders in which the voxels are scanned.
        d_state, expand: of the `MambaBlock`.

    Shape:
        ``(B, C, *spatial)`` to the same, of any size.

    Raises:
        ValueError: an unknown option; an image of another shape.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int = 3,
        high_pass: str = "fft_gaussian",
        cutoff: float = 0.25,
        scan: str = "tri_axial",
        d_state: int = 16,
        expand: int = 2,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        conv = Conv["conv", spatial_dims]
        self.channels = channels
        self.spatial_dims = spatial_dims
        self.high_pass = HighPass(high_pass, cutoff)
        self.attention = nn.Sequential(
            conv(channels, channels, 3, padding=1, groups=channels),
            nn.GELU(),
            conv(channels, channels, 1),
            nn.Sigmoid(),
        )
        self.norm = nn.LayerNorm(channels)
        self.mamba = MambaBlock(channels, d_state=d_state, expand=expand, scan=scan, spatial_dims=spatial_dims)
        self.mix = conv(channels, channels, 1)
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        check_image(image, self.spatial_dims, self.channels)
        attended = image * (1 + self.attention(self.high_pass(image)))
        tokens = self.mamba(self.norm(attended.flatten(2).transpose(1, 2)), image.shape[2:])
        return image + self.scale * self.mix(tokens.transpose(1, 2).reshape(image.shape))
