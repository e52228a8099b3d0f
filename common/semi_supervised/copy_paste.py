"""Copy-paste of boxes between labelled and unlabelled images (BCP)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from common.description import described
from common.networks.features import forward_with_features

from .pseudo_labels import PseudoLabels
from .step import Step, Voxels
from .supervised import Supervised
from .teacher import MeanTeacher


@described()
class Mixer:
    r"""Copy-paste: images of which a random box, of ``box`` of each axis, comes from another image.

    With M = 0 in the box and 1 outside, half of the images of each kind make :math:`M x_l + (1 - M) x_u`, the other
    half :math:`M x_u + (1 - M) x_l`. A first stage, ``pretrain`` of the training, pastes labelled images into labelled
    ones.

    Source: Bai et al., CVPR 2023 (BCP).

    Raises:
        ValueError: ``pretrain`` or ``box`` is out of its range; a batch is not even.
    """

    def __init__(self, pretrain: float = 0.3, box: float = 2 / 3) -> None:
        if not 0 <= pretrain <= 1 or not 0 < box <= 1:
            raise ValueError(f"copy-paste: expected pretrain in [0, 1] and box in (0, 1], got {pretrain} and {box}.")
        self.pretrain, self.box = pretrain, box

    def start(self, total_steps: int) -> int:
        """The step from which unlabelled images take part."""
        return round(self.pretrain * total_steps)

    def labelled(self, image: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first stage: images ``(B, C, *spatial)`` with boxes of one another; their labels ``(B, *spatial)``."""
        half, outside = _half(image), self._outside(image)
        mixed, labels = (torch.where(outside, each, each.roll(half, 0)) for each in (image, label))
        return mixed, labels

    def pair(self, image: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The second: mixtures ``(B, C, *spatial)``, and where they show the labelled ``image``, ``(B, *spatial)``."""
        half, outside = _half(image), self._outside(image)
        true = torch.stack([outside] * half + [~outside] * half)
        return torch.where(true[:, None], image, other), true

    @staticmethod
    def loss(loss: nn.Module, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum over the two kinds of mixture, which have a Dice of their own each, as published."""
        half = _half(logits)
        return sum(loss(logits[part], labels[part]) for part in (slice(0, half), slice(half, None)))

    def _outside(self, image: torch.Tensor) -> torch.Tensor:
        return outside_box(image.shape[2:], self.box).to(image.device)


def _half(image: torch.Tensor) -> int:
    if len(image) % 2:
        raise ValueError(f"copy-paste needs an even batch_size, got {len(image)}.")
    return len(image) // 2


@described()
class CopyPaste(Supervised):
    r"""Bidirectional copy-paste: boxes of labelled images in unlabelled ones and the reverse, see :class:`Mixer`.

    After the first stage the student learns the true labels in its part of each mixture and, at ``pseudo_weight``, the
    teacher's labels in the other. The teacher starts from the student when the second stage starts.

    Source: Bai et al., CVPR 2023 (BCP).

    Args:
        pretrain: the first stage's share of the training.
        box: edge of the box as a share of the patch.
        pseudo_weight: weight of the pseudo-labelled part.
    """

    needs_teacher = True

    def __init__(
        self, loss: nn.Module | None = None, pretrain: float = 0.3, box: float = 2 / 3, pseudo_weight: float = 0.5,
        largest_component: bool = True,
    ) -> None:
        super().__init__(loss)
        self.mixer, self.pseudo_weight = Mixer(pretrain, box), pseudo_weight
        self.pseudo_labels = PseudoLabels(largest_component)

    def start(self, total_steps: int) -> int:
        return self.mixer.start(total_steps)

    def forward(
        self, network: nn.Module, teacher: MeanTeacher, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        image, label = batch["image"], batch["label"][:, 0]
        if not self.begun(teacher, step, total):
            mixed, labels = self.mixer.labelled(image, label)
            logits, features = forward_with_features(network, mixed)
            return Step(self.loss(logits, labels), Voxels(features, logits, labels))
        other = batch["unlabeled"]
        taught, features = teacher(other)
        pseudo, confidence = self.pseudo_labels(taught)
        mixed, true = self.mixer.pair(image, other)
        logits, student = forward_with_features(network, mixed)
        labels = torch.where(true, label, -1)
        supervised = self.mixer.loss(self.loss, logits, labels)
        taught_part = self.mixer.loss(self.loss, logits, torch.where(true, -1, pseudo))
        return Step(
            supervised + self.pseudo_weight * taught_part,
            Voxels(student, logits, labels),
            lambda: Voxels(features, taught, pseudo, confidence),
            {"seg": supervised, "pseudo": taught_part},
        )


def outside_box(size: torch.Size, share: float) -> torch.Tensor:
    """False in one random box of ``share`` of each axis, True outside; ``(*size)``."""
    outside = torch.ones(*size, dtype=torch.bool)
    place = []
    for length in size:
        edge = max(1, int(length * share))
        first = int(torch.randint(length - edge + 1, ()))
        place.append(slice(first, first + edge))
    outside[tuple(place)] = False
    return outside
