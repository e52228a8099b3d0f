"""The anatomical latent: prior and posterior blocks, sampling, and the feature enhancement module (FEM)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.description import described


@described()
class LatentBlock(nn.Module):
    """Flatten and three linear layers, from a feature map to mean and log-variance of a diagonal Gaussian.

    Source: Huang et al., ACM MM 2024, section 3.3 (D = 32; the widths are not given). Departures: the map is pooled to
    ``pool`` x ``pool`` first, so that the block does not depend on the image size; ``pool=null`` is the literal flatten
    of a map of ``size`` x ``size``. Log-variances are clamped to [-10, 10].

    Shape:
        ``(B, A, h, w)`` to two tensors ``(B, D)``.
    """

    def __init__(
        self,
        feat_dim: int = 256,
        latent_dim: int = 32,
        hidden: Sequence[int] = (256, 128),
        pool: int | None = 8,
        size: int = 32,
    ) -> None:
        super().__init__()
        side = size if pool is None else pool
        self.pool = nn.Identity() if pool is None else nn.AdaptiveAvgPool2d(pool)
        self.layers = nn.Sequential(
            nn.Linear(feat_dim * side * side, hidden[0]), nn.ReLU(inplace=True),
            nn.Linear(hidden[0], hidden[1]), nn.ReLU(inplace=True),
            nn.Linear(hidden[1], 2 * latent_dim),
        )  # fmt: skip

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, logvar = self.layers(self.pool(features).flatten(1)).chunk(2, dim=1)
        return mean, logvar.clamp(-10.0, 10.0)


def sample_latent(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """Reparameterised draw: mean + exp(logvar / 2) * noise."""
    return mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)


@described()
class FeatureEnhancement(nn.Module):
    r"""FEM: scale and shift every feature channel by functions of the latent.

    .. math:: f'_t = (1 + \beta_t(z)) f_t + \alpha_t(z)

    Source: Huang et al., ACM MM 2024, Eq. 2 (FiLM). Departures: the 1 + of ``residual=True`` makes a fresh module the
    identity, where the printed form starts near zero features.

    Shape:
        features ``(B, A, h, w)``, latent ``(B, D)``; returns ``(B, A, h, w)``.
    """

    def __init__(self, feat_dim: int = 256, latent_dim: int = 32, hidden: int = 128, residual: bool = True) -> None:
        super().__init__()
        self.scale = _mlp(latent_dim, hidden, feat_dim)
        self.shift = _mlp(latent_dim, hidden, feat_dim)
        self.residual = residual

    def forward(self, features: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        scale, shift = self.scale(latent)[..., None, None], self.shift(latent)[..., None, None]
        return features * (scale + 1.0 if self.residual else scale) + shift


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden), nn.ReLU(inplace=True),
        nn.Linear(hidden, outputs),
    )  # fmt: skip
