"""Cross-entropy of a linear head in expectation over Gaussian changes of its input, in closed form."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss

from common.description import described

from .class_statistics import check_whole

REDUCTIONS = ("mean", "class", "none")


def margin_tables(
    weight: torch.Tensor, mean_shift: torch.Tensor | None, cov: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""What a feature's change, of mean :math:`\Delta_y` and covariance :math:`\Sigma_y`, does to each pair of classes.

    .. math:: m_{yj} = (w_j - w_y)^\top \Delta_y, \qquad q_{yj} = (w_j - w_y)^\top \Sigma_y\, (w_j - w_y)

    Only differences of rows of the weight enter, so that a vector added to all of them changes nothing; the diagonals
    are 0. The gradient reaches ``weight`` alone.

    Args:
        weight: :math:`w_j`, the rows of the linear head, ``(K, A)``.
        mean_shift: :math:`\Delta_y`, ``(K, A)``; None for none.
        cov: :math:`\Sigma_y`, ``(K, A, A)``, or the diagonals ``(K, A)``; None for none.

    Shape:
        returns m and q, both ``(K, K)`` with the label's class first, in float32 under autocast too (a float64 weight
        keeps them in float64).

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_tables(weight, mean_shift, cov)
    with torch.autocast(weight.device.type, enabled=False):
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        apart = weight[None] - weight[:, None]  # w_j - w_y at [y, j]
        linear = quadratic = apart.new_zeros(apart.shape[:2])
        if mean_shift is not None:
            linear = (apart @ mean_shift.detach().to(weight.dtype)[:, :, None]).squeeze(2)
        if cov is not None:
            cov = cov.detach().to(weight.dtype)
            moved = apart @ cov if cov.ndim == 3 else apart * cov[:, None]
            quadratic = torch.linalg.vecdot(moved, apart)
        return linear, quadratic


@described()
class ExpectedCrossEntropyLoss(_Loss):
    r"""Cross-entropy of a linear head, its input being augmented by a Gaussian: a closed upper bound of the mean.

    A voxel of label y with feature f and logits :math:`o = W f + b` stands for all features
    :math:`\tilde f \sim N(f + \lambda \Delta_y, \lambda \Sigma_y)`. With the logarithm outside the expectation (Jensen)
    and the Gaussian's moment generating function,

    .. math:: E\Bigl[\log \sum_j e^{(w_j - w_y)^\top \tilde f + b_j - b_y}\Bigr]
              \le \log \sum_j e^{\tilde o_j - \tilde o_y}, \qquad
              \tilde o_j = o_j + \lambda\, (w_j - w_y)^\top \Delta_y
              + \frac{\lambda}{2} (w_j - w_y)^\top \Sigma_y\, (w_j - w_y)

    that is cross-entropy with a margin for each pair of classes, :math:`\tilde o_y = o_y`. A margin knows of the voxel
    only its label: it is one K x K table a step, looked up; no feature is ever drawn. At
    :math:`\lambda = 0`, and for a class whose shift and covariance are zeros (one not seen yet), it is plain
    cross-entropy. ISDA is the case ``mean_shift=None``, the covariance being that of the labelled features themselves.

    Source: Li et al., "Transferable Semantic Augmentation for Domain Adaptation", CVPR 2021, where the shift is the
    difference of two domains' class means and the covariance the target's; Wang et al., "Implicit Semantic Data
    Augmentation for Deep Networks" (ISDA), NeurIPS 2019, for the term of the covariance. Of TransMedSeg (2025), which
    takes this to segmentation, it is a reconstruction: the abstract and the figure captions name an expected
    transferable cross-entropy and its upper bound, the equations were not at hand.
    Departures: the margin, :math:`\tilde o_j - o_j`, is clamped, and where the upper end bites the value may lie
    below the expectation; the K x K tables stand for the products voxel by voxel. A ramp of :math:`\lambda` is up to
    the caller.

    Args:
        max_margin: the clamp on both sides, above 0; ``math.inf`` for none. A margin at the clamp has no gradient.
        reduction: ``mean`` over the voxels that count, ``class`` is the mean of the means of the classes, or ``none``.

    Shape:
        logits ``(B, K, *spatial)`` or ``(N, K)`` of 2 or more classes; labels ``(B, *spatial)`` or ``(N,)``, whole
        numbers, those below 0 ignored; weight ``(K, A)``, ``head.weight.flatten(1)`` for a convolution; strength
        :math:`\lambda \ge 0`; mean_shift ``(K, A)`` or None and cov ``(K, A, A)``, ``(K, A)`` or None, both detached.
        Returns a scalar, or the labels' shape with zeros where ignored for ``none``, in float32 under autocast too
        (float64 logits stay float64); zero with zero gradient when no voxel counts.

    Raises:
        ValueError: an option or the strength is out of its range, the shapes do not fit, or a label is K or more.
    """

    def __init__(self, max_margin: float = 10.0, reduction: str = "mean") -> None:
        super().__init__()
        if not max_margin > 0:
            raise ValueError(f"max_margin must be above 0, got {max_margin}.")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.")
        self.max_margin, self.reduction = max_margin, reduction

    def margins(
        self, weight: torch.Tensor, strength: float, mean_shift: torch.Tensor | None, cov: torch.Tensor | None
    ) -> torch.Tensor:
        """What is added to each logit, ``(K, K)`` with the label's class first: clamped, with 0 on the diagonal."""
        if not 0 <= strength < math.inf:
            raise ValueError(f"strength must be a number of at least 0, got {strength}.")
        linear, quadratic = margin_tables(weight, mean_shift, cov)
        return (strength * linear + 0.5 * strength * quadratic).clamp(-self.max_margin, self.max_margin)

    def forward(
        self, logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, strength: float,
        mean_shift: torch.Tensor | None = None, cov: torch.Tensor | None = None,
    ) -> torch.Tensor:
        _check(logits, labels, weight)
        logits, labels = logits.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)  # without MONAI's meta
        with torch.autocast(logits.device.type, enabled=False):
            scores = logits.flatten(2) if logits.ndim > 2 else logits.T[None]  # (B, K, voxels)
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
            target = (labels.flatten(1) if logits.ndim > 2 else labels[None]).long()
            margin = self.margins(weight, strength, mean_shift, cov).to(scores.dtype)
            value = F.cross_entropy(_look_up(scores, target, margin), target.clamp(min=-1), ignore_index=-1,
                                    reduction="none")
            if self.reduction == "none":
                return value.reshape(labels.shape)
            if self.reduction == "class":
                counted = [target == c for c in range(len(margin))]
                means = [value[voxels].mean() for voxels in counted if voxels.any()]
                return torch.stack(means).mean() if means else value.sum()
            return value.sum() / (target >= 0).sum().clamp(min=1)


def _look_up(scores: torch.Tensor, target: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    """``scores[b, :, i] + margin[target[b, i]]``, and the scores alone where the target is below 0.

    As a product with one-hot labels, since the gradient of the table is then a product too: that of an index adds all
    voxels into K x K places one after the other, in no fixed order on a GPU.
    """
    classes = torch.arange(len(margin), device=target.device)[:, None]
    return torch.baddbmm(scores, margin.T.expand(len(scores), -1, -1), (target[:, None] == classes).to(scores.dtype))


def _check(logits: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> None:
    fits = logits.ndim > 1 and labels.shape == (logits.shape[0], *logits.shape[2:])
    if not fits or logits.shape[1] < 2 or weight.shape[:1] != logits.shape[1:2]:
        raise ValueError(
            "expected logits (B, K, *spatial) with K of 2 or more, labels (B, *spatial) and weight (K, A), got "
            f"{(*logits.shape,)}, {(*labels.shape,)} and {(*weight.shape,)}."
        )
    check_whole(labels, logits.shape[1], "labels")


def _check_tables(weight: torch.Tensor, mean_shift: torch.Tensor | None, cov: torch.Tensor | None) -> None:
    found = {"weight": weight, "mean_shift": mean_shift, "cov": cov}
    shapes = {name: tuple(t.shape) for name, t in found.items() if t is not None}
    classes, width = shapes["weight"] if weight.ndim == 2 else (-1, -1)
    full, rows = (classes, width, width), (classes, width)
    if weight.ndim != 2 or shapes.get("mean_shift", rows) != rows or shapes.get("cov", rows) not in (full, rows):
        raise ValueError(
            "expected weight (K, A), mean_shift (K, A) or None and cov (K, A, A), (K, A) or None, got "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}; of a convolution take "
            "weight.flatten(1)."
        )
