"""KL divergence between diagonal Gaussians given by mean and log-variance."""

from __future__ import annotations

import torch
from torch.nn.modules.loss import _Loss

DIRECTIONS = ("prior_posterior", "posterior_prior", "symmetric")


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

    Source: Huang et al., "Anatomical Prior Guided Spatial Contrastive Learning", ACM MM 2024, Eq. 1 (p = image prior,
    q = label posterior). Departures: the direction is an option; free bits (Kingma et al. 2016) keep the first
    ``free_bits`` nats of each latent dimension (mean over the batch) out of the gradient.

    Args:
        direction: ``prior_posterior`` is KL(p‖q) as printed; ``posterior_prior`` is KL(q‖p), as in the probabilistic
            U-Net; ``symmetric`` is their mean.
        free_bits: nats per latent dimension that cost nothing (a constant in the value, no gradient).

    Shape:
        all four inputs ``(B, D)``; returns a float32 scalar, zero exactly when the two Gaussians are equal
        (and ``free_bits`` is 0).

    Raises:
        ValueError: the shapes differ, the direction is unknown, or ``free_bits`` is negative.
    """

    def __init__(self, direction: str = "prior_posterior", free_bits: float = 0.0) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}.")
        if free_bits < 0:
            raise ValueError(f"free_bits must not be negative, got {free_bits}.")
        self.direction = direction
        self.free_bits = free_bits

    def forward(
        self, mean_p: torch.Tensor, logvar_p: torch.Tensor, mean_q: torch.Tensor, logvar_q: torch.Tensor
    ) -> torch.Tensor:
        if self.direction == "prior_posterior":
            kl = gaussian_kl(mean_p, logvar_p, mean_q, logvar_q)
        elif self.direction == "posterior_prior":
            kl = gaussian_kl(mean_q, logvar_q, mean_p, logvar_p)
        else:
            forward, backward = (mean_p, logvar_p, mean_q, logvar_q), (mean_q, logvar_q, mean_p, logvar_p)
            kl = 0.5 * (gaussian_kl(*forward) + gaussian_kl(*backward))
        return kl.mean(0).clamp(min=self.free_bits).sum()
