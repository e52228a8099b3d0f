"""CS, the convolutional network of Diff-CL and the one that is deployed: a V-Net with high-frequency Mamba blocks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from common.description import described
from common.networks.blocks import LEVELS
from common.networks.high_frequency_mamba import HighFrequencyMamba
from common.networks.vnet import VNet

__all__ = ["ConvolutionalNetwork"]


@described()
class ConvolutionalNetwork(VNet):
    """V-Net, some of whose encoder stages end in a :class:`~common.networks.HighFrequencyMamba` block.

    Every block is the identity at first, and is drawn after all other weights: the untrained network gives what
    :class:`~common.networks.VNet` gives from the same seed.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408), which put a high-frequency Mamba
    module into CS and do not say where, how many, or of what size.

    Args:
        spatial_dims, in_channels, out_channels, width, norm, dropout: as for :class:`~common.networks.VNet`.
        mamba_stages: which of the five stages end in a block; stage k is a grid ``2 ** (k - 1)`` times coarser than the
            image, so the scans of early stages are long. None of them leaves the plain V-Net.
        high_pass, cutoff, scan, d_state, expand: of the blocks.

    Shape:
        ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.

    Raises:
        ValueError: a stage outside 1 to 5 or named twice; an unknown option; an image of another shape.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        width: int = 16,
        norm: str = "batch",
        dropout: float = 0.0,
        mamba_stages: Sequence[int] = (4, 5),
        high_pass: str = "fft_gaussian",
        cutoff: float = 0.25,
        scan: str = "bidirectional",
        d_state: int = 8,
        expand: int = 1,
    ) -> None:
        if len(set(mamba_stages)) != len(mamba_stages) or not set(mamba_stages) <= set(range(1, LEVELS + 1)):
            raise ValueError(f"mamba_stages must be different stages of 1 to {LEVELS}, got {list(mamba_stages)}.")
        super().__init__(spatial_dims, in_channels, out_channels, width, norm, dropout)
        for level in sorted(stage - 1 for stage in mamba_stages):
            block = HighFrequencyMamba(
                width * 2**level, spatial_dims, high_pass, cutoff, scan=scan, d_state=d_state, expand=expand
            )
            self.encoder[level] = nn.Sequential(self.encoder[level], block)
