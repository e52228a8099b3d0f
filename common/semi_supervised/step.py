"""What a training step of a semi-supervised method hands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch


@dataclass
class Voxels:
    """Features ``(B, A, *spatial)`` before the classifier, its logits, labels ``(B, *spatial)``, -1 where unknown."""

    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    confidence: torch.Tensor | None = None


@dataclass
class Step:
    """What it was: its loss and terms, and the features that a plug-in works on."""

    loss: torch.Tensor
    labelled: Voxels
    teaches: Callable[[], Voxels] | None = None  # makes ``unlabelled``
    terms: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def unlabelled(self) -> Voxels | None:
        """By the teacher, with pseudo-labels: made when a plug-in asks, as a base may not need them itself."""
        return self.teaches and self.teaches()
