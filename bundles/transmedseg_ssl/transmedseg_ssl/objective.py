"""A training step: the loss of a semi-supervised base, and transferable semantic augmentation on top."""

from __future__ import annotations

import torch
from torch import nn

from common.description import described
from common.networks.features import linear_classifier
from common.semi_supervised import MeanTeacher, SemiSupervisedObjective, Step, Supervised

from .augmentation import TransferableAugmentation


@described(leave_out=["total_steps"])
class TransMedSegObjective(SemiSupervisedObjective):
    r"""L = L_base + :math:`\beta` L_tsa.

    Source: TransMedSeg (2025), reconstructed; see the bundle's README.

    Args:
        base, teacher, total_steps: as for :class:`common.semi_supervised.SemiSupervisedObjective`.
        augmentation: L_tsa, from the step on at which the base uses unlabelled images; null leaves it out.
        augmentation_weight: :math:`\beta`.
    """

    def __init__(
        self, base: Supervised, teacher: MeanTeacher | None = None,
        augmentation: TransferableAugmentation | None = None, augmentation_weight: float = 0.1, total_steps: int = 1000,
    ) -> None:
        super().__init__(base, teacher, total_steps)
        self.augmentation, self.augmentation_weight = augmentation, augmentation_weight

    def terms(self, network: nn.Module, done: Step, step: int) -> dict[str, torch.Tensor]:
        terms = super().terms(network, done, step)
        if self.augmentation is None:
            return terms
        linear_classifier(network, wide=True)  # from the first step on, long before the first unlabelled image
        if done.unlabelled is not None:
            loss, more = self.augmentation(network, done, step, self.total_steps)
            terms |= {"loss": done.loss + self.augmentation_weight * loss, "tsa": loss, **more}
        return terms
