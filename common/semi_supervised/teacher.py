"""The teacher: a moving average of the student."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from common.description import described
from common.engine.unwrap import unwrap
from common.networks.features import forward_with_features

logger = logging.getLogger(__name__)
NORMS = ("ema", "batch")


@described()
class MeanTeacher(nn.Module):
    r"""Exponential moving average of a network's parameters and buffers.

    .. math:: \theta' \leftarrow a_t \theta' + (1 - a_t) \theta, \qquad a_t = \min(1 - 1/(t + 1), a)

    with t the updates so far: the first copies the student, so that a teacher whose updates start late starts from the
    student of that moment.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NIPS 2017; the warm-up is theirs too.

    Args:
        network: the student; it is copied, without the wrapper for several GPUs.
        decay: a.
        norm: what the teacher's batch norm normalises by when it teaches: ``ema``, the average of the student's
            running averages, or ``batch``, the statistics of the batch it is shown. Networks without batch norm do not
            tell them apart.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(self, network: nn.Module, decay: float = 0.99, norm: str = "ema") -> None:
        super().__init__()
        if not 0 <= decay < 1 or norm not in NORMS:
            raise ValueError(f"expected decay in [0, 1) and norm one of {NORMS}, got {decay} and {norm!r}.")
        self.decay, self.norm = decay, norm
        self.average = AveragedModel(unwrap(network), avg_fn=self._average, use_buffers=True)
        self.average.requires_grad_(False)
        self.train()

    @property
    def network(self) -> nn.Module:
        """The averaged network, which can be saved and deployed as the student can."""
        return self.average.module

    @property
    def begun(self) -> bool:
        """Whether it has ever been updated."""
        return int(self.average.n_averaged) > 0

    def _average(self, old: torch.Tensor, new: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
        if not old.is_floating_point():
            return new  # batch norm counts its batches
        decay = min(1 - 1 / (int(updates) + 1), self.decay)
        return decay * old + (1 - decay) * new

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """One step towards the student."""
        self.average.update_parameters(unwrap(student))

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and features, as :func:`common.networks.forward_with_features`, without gradient."""
        self.train(self.training)  # a validation of the averaged network leaves it in a mode of its own
        return forward_with_features(self.network, image)

    def train(self, mode: bool = True) -> MeanTeacher:
        """The teacher never trains: whatever the mode, dropout is off, and running averages stay as they are."""
        super().train(False)
        self.training = mode
        for module in self.modules():
            if isinstance(module, _BatchNorm) and self.norm == "batch":
                module.train(mode)
                module.momentum = 0.0
        return self


class TeacherUpdate:
    """Handler that lets the teacher follow after every step of the optimizer, from where the base first asks for it.

    Warns at the end of a run that was too short for the teacher to begin.
    """

    def __init__(self, objective: nn.Module) -> None:
        self.objective = objective

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def __call__(self, engine: Engine) -> None:
        objective = unwrap(self.objective)
        if objective.base.needs_teacher and objective.base.begun(
            objective.teacher, engine.state.iteration, objective.total_steps
        ):
            objective.teacher.update(engine.network)

    def _completed(self, engine: Engine) -> None:
        objective = unwrap(self.objective)
        if objective.base.needs_teacher and not objective.teacher.begun:
            logger.warning(
                "the run ended after %d updates, before the teacher begins at %d: nothing was learnt from unlabelled "
                "images. Set max_epochs higher or pretrain lower.",
                engine.state.iteration, objective.base.start(objective.total_steps),
            )  # fmt: skip
