"""Count, mean and covariance of sets of features: of one batch, and of two sets together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Moments(NamedTuple):
    """Count ``(*, C)``, mean ``(*, C, A)``, biased covariance ``(*, C, A, A)`` or ``(*, C, A)`` (diagonal) or None."""

    count: torch.Tensor
    mean: torch.Tensor
    cov: torch.Tensor | None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Moments:
        """The tensors changed one by one."""
        return Moments(*(None if t is None else change(t) for t in self))

    def capped(self, max_count: int | None, new: Moments) -> Moments:
        """The same Gaussians, counting for ``max_count`` at the most where ``new`` has pixels to add."""
        if max_count is None:
            return self
        return self._replace(count=torch.where(new.count > 0, self.count.clamp(max=max_count), self.count))

    def packed(self) -> torch.Tensor:
        """All numbers in one float64 vector, which holds float32 exactly."""
        return torch.cat([t.double().flatten() for t in self if t is not None])

    def unpack(self, packed: torch.Tensor) -> Moments:
        """The moments that ``packed`` was made of, in the shapes of these."""
        parts = iter(packed.split([t.numel() for t in self if t is not None]))
        return self.each(lambda t: next(parts).view(t.shape))


def batch_moments(features: torch.Tensor, place: torch.Tensor, like: Moments) -> Moments:
    r"""Moments of one batch, in two passes: mean, then centred product, since :math:`E[x^2]-\mu^2` cancels in float32.

    Args:
        features: ``(N, A)``; taken to the number format of ``like.mean`` where that is wider.
        place: index of each pixel in ``like.count.flatten()``; -1 leaves it out.
        like: moments of the shapes to return.
    """
    size, shape = like.count.numel(), like.count.shape
    count = torch.bincount(place + 1, minlength=size + 1)[1:]
    dtype = torch.promote_types(features.dtype, like.mean.dtype)
    mean = features.new_zeros(size, features.shape[1], dtype=dtype)
    cov = None if like.cov is None else features.new_zeros(size, *like.cov.shape[len(shape):], dtype=dtype)
    for k in count.nonzero().flatten().tolist():
        rows = features[place == k].to(dtype)  # a copy, so that it may be centred in place
        mean[k] = rows.mean(0)
        rows -= mean[k]
        if cov is not None:
            cov[k] = rows.T @ rows / len(rows) if cov.ndim == 3 else rows.square_().mean(0)
    return Moments(count.view(shape), mean.view_as(like.mean), None if cov is None else cov.view_as(like.cov))


def merge_moments(old: Moments, new: Moments) -> Moments:
    r"""Moments of two sets together, in float64: exact, whatever the order and the partition.

    .. math:: \mu = \mu_1 + w\,\delta, \quad \Sigma = (1-w)\,\Sigma_1 + w\,\Sigma_2 + w(1-w)\,\delta\delta^\top,
              \qquad w = \tfrac{n_2}{n_1+n_2}, \ \delta = \mu_2 - \mu_1

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    total = old.count.double() + new.count.double()
    share = (new.count / total.clamp(min=1))[..., None]  # counts are whole: the clamp only meets 0 / 0
    delta = new.mean.double() - old.mean.double()
    mean = old.mean + share * delta
    if old.cov is None or new.cov is None:
        return Moments(total, mean, None)
    apart = delta.square()
    if old.cov.ndim > old.mean.ndim:
        share, apart = share[..., None], delta[..., :, None] * delta[..., None, :]
    cov = old.cov + share * (new.cov.double() - old.cov.double()) + share * (1 - share) * apart
    return Moments(total, mean, cov)
