"""KL divergence between diagonal Gaussians given by mean and log-variance."""

from __future__ import annotations

import torch
from torch.nn.modules.loss import _Loss


def gaussian_kl(
    mean_p: torch.Tensor, logvar_p: torch.Tensor, mean_q: torch.Tensor, logvar_q: torch.Tensor
) -> torch.Tensor:
    r"""KL(p‖q) of two diagonal Gaussians, for each latent dimension: ``(B, D)`` in float32 (float64 stays float64).

    .. math:: \tfrac12 \left[ \log\sigma_q^2 - \log\sigma_p^2
              + e^{\log\sigma_p^2 - \log\sigma_q^2} + (\mu_p-\mu_q)^2 e^{-\log\sigma_q^2} - 1 \right]
    """
    shapes = {tuple(t.shape) for t in (mean_p, logvar_p, mean_q, logvar_q)}
    if len(shapes) > 1:
        raise ValueError(f"means and log-variances must have one shape, got {sorted(shapes)}.")
    dtype = torch.promote_types(mean_p.dtype, torch.float32)
    mean_p, logvar_p, mean_q, logvar_q = (t.to(dtype) for t in (mean_p, logvar_p, mean_q, logvar_q))
    delta = logvar_p - logvar_q
    return 0.5 * (torch.expm1(delta) - delta + (mean_p - mean_q) ** 2 * torch.exp(-logvar_q))


class GaussianKLLoss(_Loss):
    r"""KL divergence between two diagonal Gaussians, summed over the latent and averaged over the batch.

    .. math:: \tfrac12 \sum_d \left[ \log\frac{\sigma_{q,d}^2}{\sigma_{p,d}^2}
              + \frac{\sigma_{p,d}^2 + (\mu_{p,d}-\mu_{q,d})^2}{\sigma_{q,d}^2} - 1 \right]

    Source: Huang et al., "Anatomical Prior Guided Spatial Contrastive Learning", ACM MM 2024, Eq. 1: KL(p‖q) with p the
    image's prior and q the label's posterior, the reverse of the probabilistic U-Net's.

    Shape:
        all four inputs ``(B, D)``; returns a float32 scalar, zero exactly when the two Gaussians are equal.

    Raises:
        ValueError: the shapes differ.
    """

    def forward(
        self, mean_p: torch.Tensor, logvar_p: torch.Tensor, mean_q: torch.Tensor, logvar_q: torch.Tensor
    ) -> torch.Tensor:
        kl = gaussian_kl(mean_p, logvar_p, mean_q, logvar_q)
        return kl.mean(0).clamp(min=0.0).sum()  # rounding must not make it negative
