"""Consistency with the teacher: mean teacher, and UA-MT, which weighs it by uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from common.description import described

from .pseudo_labels import PseudoLabels
from .step import Step, Voxels
from .supervised import Supervised
from .teacher import MeanTeacher

NOISE = 0.1  # standard deviation on the teacher's input, cut at twice that, as UA-MT has it


@described()
class MeanTeacherConsistency(Supervised):
    r"""Consistency with the teacher: loss(x) + w(t) d(student(u), teacher(u + noise)).

    d is the mean squared difference of the probabilities, :math:`w(t) = w e^{-5(1 - t/T_r)^2}`, constant from the step
    T_r on. With ``passes``, d takes only voxels where the teacher is certain (UA-MT): the entropy of its mean
    prediction over that many passes with dropout and noise lies below :math:`(\tfrac34 + \tfrac14 r(t)) \ln K`, with r
    the ramp above.

    Source: Tarvainen and Valpola, NIPS 2017; Yu et al., "Uncertainty-aware Self-ensembling Model", MICCAI 2019.
    Departure: labelled and unlabelled images pass through the network one after the other, since statistics over both
    spoil batch norm.

    Args:
        weight: w.
        ramp: T_r as a share of the training.
        passes: of the uncertainty; 0 uses all voxels.
    """

    needs_teacher = True

    def __init__(
        self, loss: nn.Module | None = None, weight: float = 0.1, ramp: float = 0.4, passes: int = 0,
        largest_component: bool = True,
    ) -> None:
        super().__init__(loss)
        self.weight, self.ramp, self.passes = weight, ramp, passes
        self.pseudo_labels = PseudoLabels(largest_component)

    def start(self, total_steps: int) -> int:
        return 0

    def forward(
        self, network: nn.Module, teacher: MeanTeacher, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        done = super().forward(network, teacher, batch, step, total)
        image = batch["unlabeled"]
        ramp = sigmoid_ramp(step, self.ramp * total)
        taught, features = teacher(_noisy(image))
        certain = self._certain(teacher, image, ramp)
        found = network(image)
        square = (found.float().softmax(1) - taught.float().softmax(1)).square().mean(1)
        distance = square.mean() if certain is None else (square * certain).sum() / certain.sum().clamp(min=1)
        terms = {"seg": done.loss, "consistency": distance}
        if certain is not None:
            terms["certain"] = certain.float().mean()
        loss = done.loss + self.weight * ramp * distance
        return Step(loss, done.labelled, lambda: Voxels(features, taught, *self.pseudo_labels(taught)), terms)

    @torch.no_grad()
    def _certain(self, teacher: MeanTeacher, image: torch.Tensor, ramp: float) -> torch.Tensor | None:
        """Voxels ``(B, *spatial)`` whose mean prediction has a low entropy."""
        if not self.passes:
            return None
        dropout = [m for m in teacher.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        for module in dropout:
            module.train()
        mean = sum(teacher.network(_noisy(image)).float().softmax(1) for _ in range(self.passes)) / self.passes
        for module in dropout:
            module.eval()
        entropy = -torch.special.xlogy(mean, mean).sum(1)
        return entropy < (0.75 + 0.25 * ramp) * math.log(mean.shape[1])


def _noisy(image: torch.Tensor) -> torch.Tensor:
    return image + (torch.randn_like(image) * NOISE).clamp(-2 * NOISE, 2 * NOISE)


def sigmoid_ramp(step: float, length: float) -> float:
    r""":math:`e^{-5 (1 - t)^2}` with t = step / length, at most 1 (Laine and Aila, ICLR 2017)."""
    done = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - done) ** 2)
