"""A training step: the loss of a semi-supervised base, and the teacher that it asks."""

from __future__ import annotations

import logging

import torch
from torch import nn

from common.description import described

from .step import Step
from .supervised import Supervised
from .teacher import MeanTeacher

logger = logging.getLogger(__name__)


@described(leave_out=["total_steps"])
class SemiSupervisedObjective(nn.Module):
    """The loss of a base, for :class:`common.engine.ObjectiveTrainer`.

    Its state dict holds what the base and the teacher learn and remember, and the length of the schedule: a run that is
    resumed with another one gets a warning.

    Args:
        base: :class:`.Supervised` or one that builds on it: what labelled and unlabelled images are trained with.
        teacher: the student's average; null where the base needs none.
        total_steps: length of the schedule, which the ramps follow.
    """

    def __init__(self, base: Supervised, teacher: MeanTeacher | None = None, total_steps: int = 1000) -> None:
        super().__init__()
        if base.needs_teacher and teacher is None:
            raise ValueError(f"{type(base).__name__} needs a teacher, found none; set `teacher`.")
        self.base, self.teacher, self.total_steps = base, teacher, total_steps

    def forward(
        self, network: nn.Module, batch: dict[str, torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits of the labelled images (mixed ones, where the base mixes) and the terms of the loss."""
        done = self.base(network, self.teacher, batch, step, self.total_steps)
        return done.labelled.logits, self.terms(network, done, step)

    def terms(self, network: nn.Module, done: Step, step: int) -> dict[str, torch.Tensor]:
        """What to minimise, under ``loss``, and what to log: for a subclass to add to."""
        return {"loss": done.loss, **done.terms}

    def get_extra_state(self) -> torch.Tensor:
        return torch.tensor(self.total_steps)

    def set_extra_state(self, total_steps: torch.Tensor) -> None:
        if int(total_steps) != self.total_steps:
            logger.warning("the schedule of ramps and learning rate had %d steps and now has %d. The run goes on, but "
                           "not as one run would have.", int(total_steps), self.total_steps)  # fmt: skip
