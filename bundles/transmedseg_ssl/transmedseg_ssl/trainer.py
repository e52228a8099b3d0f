"""A training step: the loss of a semi-supervised base, and transferable semantic augmentation on top."""

from __future__ import annotations

import torch
from torch import nn

from common.semi_supervised import objective
from common.semi_supervised.bases import Step
from common.semi_supervised.teacher import MeanTeacher

from .augmentation import TransferableAugmentation


class SemiSupervisedObjective(objective.SemiSupervisedObjective):
    r"""L = L_base + :math:`\beta` L_tsa.

    Source: TransMedSeg (2025), reconstructed; see the bundle's README.

    Args:
        base, teacher, total_steps: as for :class:`common.semi_supervised.objective.SemiSupervisedObjective`.
        augmentation: L_tsa, from the step on at which the base uses unlabelled images; null leaves it out.
        augmentation_weight: :math:`\beta`.
    """

    def __init__(
        self, base: nn.Module, teacher: MeanTeacher, augmentation: TransferableAugmentation | None = None,
        augmentation_weight: float = 0.1, total_steps: int = 1000,
    ) -> None:
        super().__init__(base, teacher, total_steps)
        self.augmentation, self.augmentation_weight = augmentation, augmentation_weight

    def terms(self, network: nn.Module, done: Step) -> dict[str, torch.Tensor]:
        terms = super().terms(network, done)
        if self.augmentation is None or self.augmentation_weight == 0 or not self.base.needs_teacher:
            return terms
        self.augmentation.check(network)  # from the first step on, long before the first unlabelled image
        if done.unlabelled is not None:
            loss, more = self.augmentation(network, done, int(self.step), self.total_steps)
            terms |= {"loss": done.loss + self.augmentation_weight * loss, "tsa": loss, **more}
        return terms
