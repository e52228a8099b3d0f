"""Gaussian statistics of the features of each class, gathered batch by batch without keeping the features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
import torch.distributed as dist
from torch import nn

from common.description import described

from .moments import Moments, batch_moments, merge_moments

COVARIANCES = ("full", "diag", "none")


@dataclass(frozen=True)
class GaussianStats:
    """One Gaussian per class, as the losses read it.

    Args:
        mean: ``(C, A)``.
        cov: biased covariance ``(C, A, A)``, its diagonal ``(C, A)``, or None.
        count: pixels behind each class, ``(C,)``.
        valid: the classes that a loss may use, bool ``(C,)``.

    Raises:
        ValueError: the shapes do not fit together.
    """

    mean: torch.Tensor
    cov: torch.Tensor | None
    count: torch.Tensor
    valid: torch.Tensor

    def __post_init__(self) -> None:
        found = {name: tuple(t.shape) for name, t in vars(self).items() if t is not None}
        classes, width = found["mean"] if self.mean.ndim == 2 else (-1, -1)
        covariances = ((classes, width, width), (classes, width))
        fits = found["count"] == found["valid"] == (classes,) and found.get("cov", covariances[0]) in covariances
        if not fits or self.valid.dtype != torch.bool:
            raise ValueError(
                "expected mean (C, A), cov (C, A, A) or (C, A) or None, count (C,) and a boolean valid (C,), got "
                f"{', '.join(f'{name} {shape}' for name, shape in found.items())} with valid of {self.valid.dtype}."
            )

    def symmetric_cov(self) -> torch.Tensor | None:
        """The covariance without the asymmetry that rounding leaves in a full one."""
        return self.cov if self.cov is None or self.cov.ndim == 2 else (self.cov + self.cov.mT) / 2


@described()
class ClassStatistics(nn.Module):
    r"""Online count, mean and biased covariance of the features of each class, for each of several groups.

    :func:`.merge_moments` is exact and free of order, so updates image by image, batch by batch or domain by domain
    give the moments of all features together. Counts are float64 (a float32 counter stops at :math:`2^{24}`) and the
    moments at least float32; ``.half()`` and the like leave these formats alone. Updates belong to training:
    :meth:`update` does nothing after ``eval()``.

    Source: Eq. 1-3 of "SgCG: Semantic-guided Contrastive Generalization for Medical Image Segmentation", 2024.
    Departures: none without ``max_count``.

    Several processes: with a process group of more than one rank, updates collect in a second set of buffers
    (``new_...``). :meth:`sync` gathers these from all ranks, folds them in rank order into ``mean``, ``cov`` and
    ``count``, and empties them: the former are then the same on all ranks, bit by bit, and hold each pixel once however
    often one synchronises. :meth:`pooled` reads both sets. Call :meth:`sync` on all ranks, once a step between update
    and loss: what is not yet synchronised is one rank's own, and has no place in a checkpoint that all ranks load.

    Args:
        num_classes: C.
        feat_dim: A.
        cov: ``full``, ``diag`` or ``none``.
        max_count: the most that the past may count for, per group and class, when an update (with several processes:
            what one :meth:`sync` gathers) is added, so that the mean goes on following the features: m new pixels
            always weigh m / (max_count + m) or more. At least ``min_count``. None: all pixels weigh the same for ever.
        min_count: classes with fewer pixels are not ``valid``.
        groups: G, for example the source domains.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self, num_classes: int, feat_dim: int, cov: str = "full", max_count: int | None = None, min_count: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if cov not in COVARIANCES:
            raise ValueError(f"cov must be one of {COVARIANCES}, got {cov!r}.")
        numbers = {"num_classes": num_classes, "feat_dim": feat_dim, "min_count": min_count, "groups": groups}
        if max_count is not None:
            numbers["max_count"] = max_count
        if bad := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
            raise ValueError(f"expected numbers of at least 1, got {', '.join(bad)}.")
        if max_count is not None and max_count < min_count:
            raise ValueError(f"max_count={max_count} would keep classes below min_count={min_count}.")
        self.max_count, self.min_count = max_count, min_count
        shape = {"full": (feat_dim, feat_dim), "diag": (feat_dim,), "none": None}[cov]
        for prefix in ("", "new_"):  # what all ranks agree on; what this rank has added since
            self.register_buffer(f"{prefix}count", torch.zeros(groups, num_classes, dtype=torch.float64))
            self.register_buffer(f"{prefix}mean", torch.zeros(groups, num_classes, feat_dim))
            self.register_buffer(f"{prefix}cov", None if shape is None else torch.zeros(groups, num_classes, *shape))

    @torch.no_grad()
    def update(self, features: torch.Tensor, labels: torch.Tensor, group: int | torch.Tensor | None = None) -> None:
        """Add pixels; nothing in eval mode.

        Args:
            features: ``(N, A)``.
            labels: whole numbers ``(N,)``; those below 0 are ignored.
            group: one group for all, or whole numbers ``(N,)``; may be left out when there is one group.

        Raises:
            ValueError: the shapes do not fit, or a label or a group is out of its range.
        """
        if not self.training:
            return
        features, labels = features.as_subclass(torch.Tensor), labels.as_subclass(torch.Tensor)  # without MONAI's meta
        place = self._place(features, labels, group)
        with torch.autocast(features.device.type, enabled=False):
            moments = batch_moments(features, place, self._part())
            prefix = "new_" if _distributed() else ""
            self._store(prefix, merge_moments(self._part(prefix).capped(self.max_count, moments), moments))

    @torch.no_grad()
    def sync(self) -> None:
        """Fold what all ranks have added since the last time; nothing without a process group of several ranks."""
        if not _distributed():
            return
        own = self._part("new_")
        ranks = [torch.empty_like(own.packed()) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, own.packed())
        added = reduce(merge_moments, map(own.unpack, ranks))
        self._store("", merge_moments(self._part().capped(self.max_count, added), added))
        self._part("new_").each(torch.Tensor.zero_)

    @torch.no_grad()
    def pooled(self) -> GaussianStats:
        """All groups together, in tensors of their own; the covariance includes the scatter between the groups."""
        seen = self._all()
        groups = [seen.each(lambda t, g=g: t[g]) for g in range(len(seen.count))]
        count, mean, cov = reduce(merge_moments, groups)
        cov = None if cov is None else cov.to(self.mean.dtype)
        return GaussianStats(mean.to(self.mean.dtype), cov, count, count >= self.min_count)

    @torch.no_grad()
    def between_group_scatter(self) -> torch.Tensor:
        r"""How far apart the groups' means lie, as a share of the variance of their class.

        .. math:: \frac1{|K|} \sum_{c \in K} \frac1{|G_c|} \sum_{g \in G_c}
                  \frac{\lVert \mu_{gc} - \bar\mu_c \rVert^2}{\operatorname{tr} \Sigma_c}, \qquad
                  \bar\mu_c = \frac1{|G_c|} \sum_{g \in G_c} \mu_{gc}

        :math:`G_c`: the groups with at least ``min_count`` pixels of class c, each of the same weight; K: the classes
        seen in two groups or more; :math:`\Sigma_c`: the pooled covariance. NaN when K is empty.

        Raises:
            ValueError: there is no covariance.
        """
        if self.cov is None:
            raise ValueError("the scatter is a share of the covariance, and these statistics have cov='none'.")
        count, mean, _ = self._all()
        cov = self.pooled().cov.double()
        seen = (count >= self.min_count).double()  # (G, C)
        weight = (seen / seen.sum(0).clamp(min=1))[..., None]
        apart = (weight * (mean - (weight * mean).sum(0)).square()).sum((0, 2))
        total = cov.sum(1) if cov.ndim == 2 else cov.diagonal(dim1=1, dim2=2).sum(1)
        share = torch.where(total > 0, apart / total, 0.0)  # constant features have no scatter
        return share[seen.sum(0) >= 2].mean()

    def _place(self, features: torch.Tensor, labels: torch.Tensor, group: int | torch.Tensor | None) -> torch.Tensor:
        """Index of each pixel's Gaussian among the G * C, -1 where it is ignored."""
        groups, classes, width = self.mean.shape
        if features.ndim != 2 or features.shape[1] != width or labels.shape != features.shape[:1]:
            raise ValueError(
                f"expected features (N, {width}) and labels (N,), got {(*features.shape,)} and {(*labels.shape,)}."
            )
        if group is None and groups > 1:
            raise ValueError(f"there are {groups} groups: say which one the features belong to.")
        group = torch.as_tensor(0 if group is None else group, device=labels.device)
        if group.ndim and group.shape != labels.shape:
            raise ValueError(f"expected one group or {(*labels.shape,)} of them, got {(*group.shape,)}.")
        check_whole(labels, classes, "labels")
        check_whole(group, groups, "groups")
        if bool((group < 0).any()):
            raise ValueError(f"groups must not be negative, found {int(group.min())}.")
        return torch.where(labels < 0, -1, group.long() * classes + labels.long())

    def _part(self, prefix: str = "") -> Moments:
        return Moments(*(getattr(self, prefix + name) for name in Moments._fields))

    def _all(self) -> Moments:
        return merge_moments(self._part(), self._part("new_"))

    def _store(self, prefix: str, moments: Moments) -> None:
        for buffer, value in zip(self._part(prefix), moments, strict=True):
            if buffer is not None:
                buffer.copy_(value)

    def _apply(self, fn: Callable, recurse: bool = True) -> ClassStatistics:
        """Move with the module, but keep counts in float64 and the moments in float32 or float64."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            allowed = (torch.float64,) if name.endswith("count") else (torch.float32, torch.float64)
            if new is not None and new.dtype not in allowed:
                self._buffers[name] = old.to(new.device)
        return self


def check_whole(values: torch.Tensor, end: int, name: str) -> None:
    """Raise a ValueError unless ``values`` are whole numbers below ``end``."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name} must be whole numbers, got {values.dtype}.")
    if values.numel() and int(values.max()) >= end:
        raise ValueError(f"{name} must be below {end}, found {int(values.max())}.")


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
