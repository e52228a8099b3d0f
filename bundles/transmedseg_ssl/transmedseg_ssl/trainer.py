"""A training step: the loss of a semi-supervised base, and transferable semantic augmentation on top."""

from __future__ import annotations

import torch
from torch import nn

from common.engine.unwrap import unwrap
from common.semi_supervised.teacher import MeanTeacher

from .augmentation import TransferableAugmentation


class SemiSupervisedObjective(nn.Module):
    r"""L = L_base + :math:`\beta` L_tsa.

    Source: TransMedSeg (2025), reconstructed; see the bundle's README.

    Args:
        base: of :mod:`common.semi_supervised.bases`: what the labelled and unlabelled images are trained with.
        teacher: the student's average.
        augmentation: L_tsa, from the step on at which the base uses unlabelled images; null leaves it out.
        augmentation_weight: :math:`\beta`.
        total_steps: length of the schedule, which the ramps follow.
    """

    def __init__(
        self, base: nn.Module, teacher: MeanTeacher, augmentation: TransferableAugmentation | None = None,
        augmentation_weight: float = 0.1, total_steps: int = 1000,
    ) -> None:
        super().__init__()
        self.base, self.teacher, self.augmentation = base, teacher, augmentation
        self.augmentation_weight, self.total_steps = augmentation_weight, total_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self, network: nn.Module, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits of the labelled images (mixed ones, where the base mixes) and the terms of the loss."""
        number = int(self.step)
        done = self.base(network, self.teacher, batch, number, self.total_steps)
        terms = {"loss": done.loss, **done.terms}
        if self.augmentation is not None and done.unlabelled is not None:
            loss, more = self.augmentation(network, done, number, self.total_steps)
            terms |= {"loss": done.loss + self.augmentation_weight * loss, "tsa": loss, **more}
        return done.labelled.logits, terms

    def update_teacher(self, network: nn.Module) -> None:
        """After each step of the optimizer; the teacher follows from where the base first asks for it."""
        self.step += 1
        if self.base.needs_teacher and int(self.step) >= self.base.start(self.total_steps):
            self.teacher.update(unwrap(network))
