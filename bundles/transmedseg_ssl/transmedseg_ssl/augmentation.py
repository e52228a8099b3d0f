"""Transferable semantic augmentation: the statistics, their memory, and the loss on them."""

from __future__ import annotations

import torch
from torch import nn

from common.description import described
from common.losses import ClassStatistics
from common.losses.expected_cross_entropy import ExpectedCrossEntropyLoss
from common.networks.features import linear_classifier
from common.semi_supervised import Step, Voxels
from common.semi_supervised.voxels import draw_per_class, pick

DIRECTIONS = ("source_to_target", "teacher_to_student")


@described()
class TransferableAugmentation(nn.Module):
    r"""L_tsa: expected cross-entropy of features augmented from one domain's class statistics to the other's.

    The labelled images are the source, seen by the student; the unlabelled ones the target, seen by the teacher. Per
    class, :math:`\tilde f \sim N(f + \lambda \Delta\mu_y, \lambda \Sigma_y)`.

    ``source_to_target``: f are the student's features on labelled voxels, :math:`\Delta\mu = \mu_{tea} - \mu_{stu}`,
    :math:`\Sigma = \Sigma_{tea}`. ``teacher_to_student``: f are the teacher's on confident unlabelled voxels with
    pseudo-labels, :math:`\Delta\mu = \mu_{stu} - \mu_{tea}`, :math:`\Sigma = \Sigma_{stu}`, and the gradient reaches
    only the student's classifier.

    Source: reconstructed from the abstract and captions of TransMedSeg (2025), after TSA (Li et al., CVPR 2021). What
    they leave open is decided in the arguments' defaults.

    Args:
        num_classes: K. feat_dim: A.
        loss: :class:`common.losses.ExpectedCrossEntropyLoss`.
        strength: :math:`\lambda_0`; :math:`\lambda = \lambda_0 \min(t / T, 1)`.
        direction: see above.
        mean_shift: False leaves :math:`\Delta\mu` out, as ISDA does (whose covariance is the features' own).
        covariance: ``full``, ``diag`` or ``none``.
        confidence: the least probability of a pseudo-label that counts; 0 takes all.
        match_confidence: ask the same of the student on labelled voxels, so that the mean shift between the domains is
            not that between confident voxels and all.
        voxels_per_class: features of a class that a batch adds to a memory.
        max_count: see :class:`common.losses.ClassStatistics`. min_count: fewer features of a class in either memory
            leave its voxels as they are.
        seed: of the draw of voxels, which leaves all other random numbers alone.

    Raises:
        ValueError: an unknown direction or covariance; a ``max_count`` below ``min_count``.
    """

    def __init__(
        self, num_classes: int, feat_dim: int, loss: ExpectedCrossEntropyLoss | None = None, strength: float = 0.25,
        direction: str = "source_to_target", mean_shift: bool = True, covariance: str = "full",
        confidence: float = 0.75, match_confidence: bool = False, voxels_per_class: int = 1024,
        max_count: int | None = 20000, min_count: int = 256, seed: int = 0,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}.")
        self.loss = loss or ExpectedCrossEntropyLoss()
        self.strength, self.direction, self.mean_shift = strength, direction, mean_shift
        self.confidence, self.match_confidence = confidence, match_confidence
        self.voxels_per_class, self.seed = voxels_per_class, seed
        self.student, self.teacher = (
            ClassStatistics(num_classes, feat_dim, cov=covariance, max_count=max_count, min_count=min_count)
            for _ in range(2)
        )

    def forward(self, network: nn.Module, step: Step, number: int, total: int) -> tuple[torch.Tensor, dict]:
        """The loss of one step, and what to log.

        Args:
            network: the student. step: what the base did, with unlabelled voxels. number: of the step, of ``total``.
        """
        labelled, unlabelled = step.labelled, step.unlabelled
        confident = torch.where(unlabelled.confidence >= self.confidence, unlabelled.labels, -1)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        self._remember(self.student, labelled.features, self._source_labels(labelled), generator)
        self._remember(self.teacher, unlabelled.features, confident, generator)
        classifier = linear_classifier(network)
        weight = classifier.weight.flatten(1)
        if self.direction == "source_to_target":
            logits, labels = labelled.logits, labelled.labels
        else:
            logits, labels = classify(classifier, unlabelled.features.detach()), confident
        strength = self.strength * min(number / max(total, 1), 1.0)
        shift, cov = self.differences()
        loss = self.loss(logits, labels, weight, strength, shift, cov)
        return loss, self._log(weight, strength, shift, cov)

    def _source_labels(self, labelled: Voxels) -> torch.Tensor:
        if not self.match_confidence:
            return labelled.labels
        sure = labelled.logits.detach().float().softmax(1).amax(1) >= self.confidence
        return torch.where(sure, labelled.labels, -1)

    def differences(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Mean shift ``(K, A)`` and covariance of each class; 0 for classes that either memory has hardly seen."""
        student, teacher = self.student.pooled(), self.teacher.pooled()
        seen = (student.valid & teacher.valid).to(student.mean.dtype)
        source, target = (student, teacher) if self.direction == "source_to_target" else (teacher, student)
        shift = (target.mean - source.mean) * seen[:, None] if self.mean_shift else None
        cov = target.symmetric_cov()
        return shift, None if cov is None else cov * seen.view(-1, *[1] * (cov.ndim - 1))

    def _remember(
        self, memory: ClassStatistics, features: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Add up to ``voxels_per_class`` random voxels of each class."""
        if not self.training:
            return
        flat = labels.flatten()
        chosen = draw_per_class(flat, len(memory.mean[0]), self.voxels_per_class, generator)
        memory.update(pick(features.detach(), chosen).float(), flat[chosen])
        memory.sync()

    @torch.no_grad()
    def _log(
        self, weight: torch.Tensor, strength: float, shift: torch.Tensor | None, cov: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The two parts of the margin, of each pair of classes y_j and their mean; the share that the clamp holds."""
        classes = len(weight)
        pairs = ~torch.eye(classes, dtype=torch.bool, device=weight.device)
        parts = {"margin_mean": self.loss.margins(weight, strength, shift, None),
                 "margin_cov": self.loss.margins(weight, strength, None, cov)}  # fmt: skip
        both = self.loss.margins(weight, strength, shift, cov).abs()
        logged = {name: table[pairs].mean() for name, table in parts.items()}
        for name, table in parts.items() if classes <= 5 else ():  # more pairs than anyone looks at
            logged |= {f"{name}/{y}_{j}": table[y, j] for y, j in pairs.nonzero().tolist()}
        return logged | {"margin_clamped": (both[pairs] >= self.loss.max_margin).float().mean()}


def classify(classifier: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Logits ``(B, K, *spatial)`` of features ``(B, A, *spatial)``; a linear layer takes the channels last."""
    linear = isinstance(classifier, nn.Linear)
    return classifier(features.movedim(1, -1)).movedim(-1, 1) if linear else classifier(features)
