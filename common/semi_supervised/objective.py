"""A training step: the loss of a semi-supervised base, the steps that it counts, and the teacher that follows."""

from __future__ import annotations

import logging

import torch
from torch import nn

from common.engine.unwrap import unwrap

from .bases import Step
from .teacher import MeanTeacher

logger = logging.getLogger(__name__)


class SemiSupervisedObjective(nn.Module):
    """The loss of a base, for :class:`common.engine.ObjectiveTrainer`.

    Its state dict holds what the base and the teacher learn and remember, the number of the step, and the length of the
    schedule: a run that is resumed with another one gets a warning.

    Args:
        base: as those of :mod:`common.semi_supervised.bases`: what labelled and unlabelled images are trained with.
        teacher: the student's average.
        total_steps: length of the schedule, which the ramps follow.
    """

    def __init__(self, base: nn.Module, teacher: MeanTeacher, total_steps: int = 1000) -> None:
        super().__init__()
        self.base, self.teacher, self.total_steps = base, teacher, total_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self, network: nn.Module, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits of the labelled images (mixed ones, where the base mixes) and the terms of the loss."""
        done = self.base(network, self.teacher, batch, int(self.step), self.total_steps)
        return done.labelled.logits, self.terms(network, done)

    def terms(self, network: nn.Module, done: Step) -> dict[str, torch.Tensor]:
        """What to minimise, under ``loss``, and what to log: for a subclass to add to."""
        return {"loss": done.loss, **done.terms}

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.total_steps)

    def set_extra_state(self, total_steps: torch.Tensor) -> None:
        if int(total_steps) != self.total_steps:
            logger.warning("the schedule of ramps and learning rate had %d steps and now has %d. The run goes on, but "
                           "not as one run would have.", int(total_steps), self.total_steps)  # fmt: skip

    def update_teacher(self, network: nn.Module) -> None:
        """After each step of the optimizer; the teacher follows from where the base first asks for it."""
        self.step += 1
        if self.base.needs_teacher and self.base.begun(self.teacher, int(self.step), self.total_steps):
            self.teacher.update(unwrap(network))
