"""Contrast between pixels and classes whose features are Gaussian, in closed form."""

from __future__ import annotations

import torch
from torch.nn.modules.loss import _Loss

from common.description import described

from .class_statistics import GaussianStats, check_whole

REDUCTIONS = ("pixel", "class", "none")
CHUNK = 4096  # pixels taken at once: it bounds the memory and leaves the result as it is


@described()
class GaussianContrastiveLoss(_Loss):
    r"""Pixel-to-class contrast in expectation over Gaussian classes: a closed upper bound.

    .. math:: L_i = \log \sum_c e^{z_{ic}} - \frac{q_i^\top \mu_y}{\tau}, \qquad
              z_{ic} = \frac{q_i^\top \mu_c}{\tau} + \frac{s_{ic}}2, \qquad
              s_{ic} = \frac{q_i^\top \Sigma_c\, q_i}{\tau^2}

    that is cross-entropy plus :math:`s_{iy}/2`. It bounds the contrast of :math:`q_i` with one positive
    and infinitely many negatives drawn from the Gaussians from above, the tighter the smaller s: by
    :math:`\tfrac12 p_y^2 s_y` in the limit. Without a covariance it is plain cross-entropy over the prototypes.

    The gradient, :math:`(\sum_c p_c \mu_c - \mu_y)/\tau + \sum_c p_c \Sigma_c q / \tau^2` with p the softmax of
    z, is formed in the forward pass, chunk by chunk, where the products :math:`\Sigma_c q` are at hand: half the matrix
    products of a second pass, and all that is kept for the backward pass is N x A numbers.

    Source: Eq. 4-12 of "SgCG: Semantic-guided Contrastive Generalization for Medical Image Segmentation", 2024.
    Departures: Eq. 4 lacks an expectation over the positive in print; the covariance is used in full where the
    statistics have it; classes without statistics leave the sum, and their pixels the mean, since a mean of zeros would
    count as a class.

    Args:
        temperature: :math:`\tau > 0`. At 100, with features of unit length, the loss is a constant to 1 %; below 0.2
            the quadratic term dominates and the bound is loose.
        reduction: ``pixel``, the mean over pixels; ``class``, the mean of the means of the classes present; ``none``.

    Shape:
        features ``(N, A)``, labels ``(N,)`` whole numbers, those below 0 ignored; statistics of C classes, detached.
        Returns a scalar, or ``(N,)`` with zeros where ignored for ``none``, in float32 under autocast too (float64
        features stay float64); zero with zero gradient when no pixel counts. It can be differentiated once only.

    Raises:
        ValueError: an option is out of its range, the shapes do not fit, or a label is C or more.
    """

    def __init__(self, temperature: float = 0.5, reduction: str = "pixel") -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.")
        self.temperature, self.reduction = temperature, reduction

    def forward(self, features: torch.Tensor, labels: torch.Tensor, stats: GaussianStats) -> torch.Tensor:
        classes, width = stats.mean.shape
        if features.ndim != 2 or features.shape[1] != width or labels.shape != features.shape[:1]:
            raise ValueError(
                f"expected features (N, {width}) and labels (N,), got {(*features.shape,)} and {(*labels.shape,)}."
            )
        check_whole(labels, classes, "labels")
        features, labels = features.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)  # without MONAI's meta
        with torch.autocast(features.device.type, enabled=False):
            known = stats.valid.cumsum(0)  # the place of each class among the valid ones, from 1
            place = torch.where(stats.valid, known - 1, -1)[labels.long().clamp(min=0)]
            place = torch.where(labels < 0, -1, place)
            used = (place >= 0).nonzero().flatten()
            q = features if len(used) == len(features) else features.index_select(0, used)
            place = place[used]
            value = self._value(q.to(torch.promote_types(q.dtype, torch.float32)), place, stats)
            if self.reduction == "none":
                return value.new_zeros(len(features)).index_put((used,), value)
            if self.reduction == "pixel":
                return value.sum() / max(len(value), 1)
            count = torch.bincount(place, minlength=1)
            return (value / (count[place] * (count > 0).sum())).sum()

    def _value(self, q: torch.Tensor, place: torch.Tensor, stats: GaussianStats) -> torch.Tensor:
        """Loss of each pixel, ``place`` being its class among the valid ones."""
        mean = stats.mean.detach()[stats.valid].to(q.dtype) / self.temperature
        cov = None if stats.cov is None else stats.symmetric_cov().detach()[stats.valid].to(q.dtype)
        cov = None if cov is None else cov * (1 / self.temperature**2)
        return _Contrast.apply(q, place, mean, cov, torch.is_grad_enabled() and q.requires_grad)


class _Contrast(torch.autograd.Function):
    """``logsumexp(q.mean + q.cov.q / 2) - q.mean_y`` per pixel; the gradient is formed along with the value."""

    @staticmethod
    def forward(ctx, q, labels, mean, cov, with_gradient):
        value = q.new_empty(len(q))
        slope = torch.empty_like(q) if with_gradient else None
        for start in range(0, len(q), CHUNK):
            part = slice(start, start + CHUNK)
            value[part] = _contrast(q[part], labels[part, None], mean, cov, slope[part] if with_gradient else None)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # with create_graph, where the gradient would pass for a constant
            raise RuntimeError("GaussianContrastiveLoss can be differentiated once only: it has no second derivative.")
        (slope,) = ctx.saved_tensors
        return slope * grad[:, None], None, None, None, None


def _contrast(
    q: torch.Tensor, labels: torch.Tensor, mean: torch.Tensor, cov: torch.Tensor | None, slope: torch.Tensor | None
) -> torch.Tensor:
    """Value of one chunk, ``(n,)``; its gradient is written to ``slope``, ``(n, A)``, unless that is None."""
    linear = q @ mean.T
    forms, moved = (None, None) if cov is None else _forms(q, cov)
    z = linear if cov is None else torch.add(linear, forms, alpha=0.5)
    total = torch.logsumexp(z, dim=1, keepdim=True)
    if slope is not None:
        p = torch.exp(z - total)
        if cov is None:
            slope.zero_()
        elif moved is None:
            torch.mm(p, cov, out=slope).mul_(q)
        else:
            torch.mul(moved[0], p[:, :1], out=slope)
            for c in range(1, len(moved)):
                slope.addcmul_(moved[c], p[:, c : c + 1])
        slope.addmm_(p.scatter_add_(1, labels, -torch.ones_like(p[:, :1])), mean)
    return (total - linear.gather(1, labels)).squeeze(1)


def _forms(q: torch.Tensor, cov: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
    """The quadratic forms ``(n, C)``, and for a full covariance the products with ``q``, C times ``(n, A)``."""
    if cov.ndim == 2:
        return (q.square() @ cov.T).clamp_(min=0), None
    moved = [q @ matrix for matrix in cov]
    return torch.stack([torch.linalg.vecdot(t, q) for t in moved], dim=1).clamp_(min=0), moved
