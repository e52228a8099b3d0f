"""Training on the labelled images alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from common.description import described
from common.losses import DiceCERegionLoss
from common.networks.features import forward_with_features

from .step import Step, Voxels
from .teacher import MeanTeacher


@described()
class Supervised(nn.Module):
    """The labelled images alone: the base that the others build on.

    Args:
        loss: of logits and labels, -1 where unknown; null takes :class:`common.losses.DiceCERegionLoss`.
    """

    needs_teacher = False

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss or DiceCERegionLoss()

    def start(self, total_steps: int) -> int:
        """The step from which unlabelled images take part."""
        return total_steps

    def begun(self, teacher: MeanTeacher | None, step: int, total_steps: int) -> bool:
        """Whether unlabelled images take part: for good, even where a resumed run is made longer and starts later."""
        return step >= self.start(total_steps) or (teacher is not None and teacher.begun)

    def forward(
        self, network: nn.Module, teacher: MeanTeacher | None, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        """One step.

        Args:
            network: the student. teacher: its average; null where the base needs none.
            batch: ``image`` (B, C, *spatial), ``label`` (B, 1, *spatial), and ``unlabeled`` as ``image``.
            step: of the ``total``, from 0.
        """
        labels = batch["label"][:, 0]
        logits, features = forward_with_features(network, batch["image"])
        return Step(self.loss(logits, labels), Voxels(features, logits, labels))
