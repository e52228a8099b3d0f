"""What a semi-supervised method is built on: a loss on labelled and unlabelled images, of a student and its teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from common.networks.linear_head import forward_with_features

from .region_loss import DiceCERegionLoss, PseudoLabels
from .teacher import MeanTeacher


@dataclass
class Voxels:
    """Features ``(B, A, *spatial)`` before the classifier, its logits, labels ``(B, *spatial)``, -1 where unknown."""

    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    confidence: torch.Tensor | None = None


@dataclass
class Step:
    """A training step of a base: its loss and terms, and the features that a plug-in works on."""

    loss: torch.Tensor
    labelled: Voxels
    teaches: Callable[[], Voxels] | None = None  # makes ``unlabelled``
    terms: dict[str, torch.Tensor] = field(default_factory=dict)
    student_logits: torch.Tensor | None = None  # on the images of ``unlabelled``
    visible: torch.Tensor | None = None  # where, ``(B, *spatial)``: elsewhere a labelled image is mixed in

    @cached_property
    def unlabelled(self) -> Voxels | None:
        """By the teacher, with pseudo-labels: made when a plug-in asks, as a base may not need them itself."""
        return self.teaches and self.teaches()


class Supervised(nn.Module):
    """The labelled images alone.

    Args:
        head: name of the network's 1x1 classifier.
    """

    needs_teacher = False

    def __init__(self, head: str, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.loss = head, loss or DiceCERegionLoss()

    def start(self, total_steps: int) -> int:
        """The step from which unlabelled images take part."""
        return total_steps

    def begun(self, teacher: MeanTeacher, step: int, total_steps: int) -> bool:
        """Whether unlabelled images take part: for good, even where a resumed run is made longer and starts later."""
        return step >= self.start(total_steps) or teacher.begun

    def forward(
        self, network: nn.Module, teacher: MeanTeacher, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        labels = batch["label"][:, 0]
        logits, features = forward_with_features(network, batch["image"], self.head)
        return Step(self.loss(logits, labels), Voxels(features, logits, labels))


class MeanTeacherBase(Supervised):
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
        noise: standard deviation of the noise on the teacher's input; it is cut at twice that.
        passes: of the uncertainty; 0 uses all voxels.
    """

    needs_teacher = True

    def __init__(
        self, head: str, loss: nn.Module | None = None, weight: float = 0.1, ramp: float = 0.4, noise: float = 0.1,
        passes: int = 0, largest_component: bool = True,
    ) -> None:
        super().__init__(head, loss)
        self.weight, self.ramp, self.noise, self.passes = weight, ramp, noise, passes
        self.pseudo_labels = PseudoLabels(largest_component)

    def start(self, total_steps: int) -> int:
        return 0

    def forward(
        self, network: nn.Module, teacher: MeanTeacher, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        done = super().forward(network, teacher, batch, step, total)
        image = batch["unlabeled"]
        ramp = sigmoid_ramp(step, self.ramp * total)
        taught, features = teacher(self._noisy(image), self.head)
        certain = self._certain(teacher, image, ramp)
        found = network(image)
        square = (found.float().softmax(1) - taught.float().softmax(1)).square().mean(1)
        distance = square.mean() if certain is None else (square * certain).sum() / certain.sum().clamp(min=1)
        terms = {"seg": done.loss, "consistency": distance}
        if certain is not None:
            terms["certain"] = certain.float().mean()
        loss = done.loss + self.weight * ramp * distance
        everywhere = torch.ones_like(found[:, 0], dtype=torch.bool)
        return Step(
            loss, done.labelled, lambda: Voxels(features, taught, *self.pseudo_labels(taught)), terms, found, everywhere
        )

    def _noisy(self, image: torch.Tensor) -> torch.Tensor:
        return image + (torch.randn_like(image) * self.noise).clamp(-2 * self.noise, 2 * self.noise)

    @torch.no_grad()
    def _certain(self, teacher: MeanTeacher, image: torch.Tensor, ramp: float) -> torch.Tensor | None:
        """Voxels ``(B, *spatial)`` whose mean prediction has a low entropy."""
        if not self.passes:
            return None
        dropout = [m for m in teacher.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
        for module in dropout:
            module.train()
        mean = sum(teacher.network(self._noisy(image)).float().softmax(1) for _ in range(self.passes)) / self.passes
        for module in dropout:
            module.eval()
        entropy = -torch.special.xlogy(mean, mean).sum(1)
        return entropy < (0.75 + 0.25 * ramp) * math.log(mean.shape[1])


@dataclass(frozen=True)
class Mixer:
    r"""Copy-paste: images of which a random box, of ``box`` of each axis, comes from another image.

    With M = 0 in the box and 1 outside, half of the images of each kind make :math:`M x_l + (1 - M) x_u`, the other
    half :math:`M x_u + (1 - M) x_l`. A first stage, ``pretrain`` of the training, pastes labelled images into labelled
    ones.

    Source: Bai et al., CVPR 2023 (BCP).

    Raises:
        ValueError: ``pretrain`` or ``box`` is out of its range; a batch is not even.
    """

    pretrain: float = 0.3
    box: float = 2 / 3

    def __post_init__(self) -> None:
        if not 0 <= self.pretrain <= 1 or not 0 < self.box <= 1:
            raise ValueError(
                f"copy-paste: expected pretrain in [0, 1] and box in (0, 1], got {self.pretrain} and {self.box}."
            )

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
        self, head: str, loss: nn.Module | None = None, pretrain: float = 0.3, box: float = 2 / 3,
        pseudo_weight: float = 0.5, largest_component: bool = True,
    ) -> None:
        super().__init__(head, loss)
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
            logits, features = forward_with_features(network, mixed, self.head)
            return Step(self.loss(logits, labels), Voxels(features, logits, labels))
        other = batch["unlabeled"]
        taught, features = teacher(other, self.head)
        pseudo, confidence = self.pseudo_labels(taught)
        mixed, true = self.mixer.pair(image, other)
        logits, student = forward_with_features(network, mixed, self.head)
        labels = torch.where(true, label, -1)
        supervised = self.mixer.loss(self.loss, logits, labels)
        taught_part = self.mixer.loss(self.loss, logits, torch.where(true, -1, pseudo))
        return Step(
            supervised + self.pseudo_weight * taught_part,
            Voxels(student, logits, labels),
            lambda: Voxels(features, taught, pseudo, confidence),
            {"seg": supervised, "pseudo": taught_part},
            logits,
            ~true,
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


def sigmoid_ramp(step: float, length: float) -> float:
    r""":math:`e^{-5 (1 - t)^2}` with t = step / length, at most 1 (Laine and Aila, ICLR 2017)."""
    done = min(step / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - done) ** 2)


def choose_base(name: str, bases: Mapping[str, nn.Module]) -> nn.Module:
    """The base of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in bases:
        raise ValueError(f"base: expected one of {', '.join(bases)}, found {name}.")
    return bases[name]
