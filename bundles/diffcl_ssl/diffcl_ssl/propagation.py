"""Contrastive label propagation: the memory of labelled voxels from which labels spread to unlabelled ones."""

from __future__ import annotations

import torch
from torch import nn

from common.description import described
from common.losses import ClassMemoryBank
from common.semi_supervised import Voxels
from common.semi_supervised.voxels import draw_per_class, pick

from .peers import Seen
from .projection import Projection, PrototypeLoss
from .propagation_loss import LabelPropagationLoss

__all__ = ["LabelPropagation", "LabelPropagationLoss", "Projection", "PrototypeLoss"]

# Of a step; our own, since the paper says nothing. A bank of 2048 is renewed in 8 steps.
VOXELS = 256  # labelled ones of a class into the bank
VECTORS = 1024  # unlabelled voxels that are contrasted
ANCHORS = 128  # of a class from the bank


@described()
class LabelPropagation(nn.Module):
    r"""L_cl between a bank of the peer's labelled voxels and random unlabelled voxels of the student.

    A step puts up to 256 labelled voxels of each class into the bank: those that the peer classifies
    rightly, with a probability of at least ``confidence``, on images where it is reliable. A diffusion network that was
    shown a hardly noised label has read the class there, not in the image. 128 vectors of each class are drawn from the
    bank, and contrasted with 1024 unlabelled voxels of the student.

    One projection serves both networks, and :class:`.PrototypeLoss` on labelled voxels of both ties them. It trains the
    projection and the prototypes alone: without L_cl the networks train as if none of this were here. L_cl reaches the
    student and the projection, never the peer.

    All rows go through the projection in one call, for batch norm: voxels balanced by class and random ones have
    other statistics, and normalised apart they could not be compared.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408), where each network has a
    projection; the tie, and which voxels enter the bank, are our own.

    Args:
        num_classes: K. feat_dim: A, of both networks. embedding: D.
        loss: L_cl.
        bank_size: vectors kept per class.
        confidence: see above.
        seed: of the draw of voxels and of the first weights, which leave all other random numbers alone.

    Raises:
        ValueError: a bank, or the draw from it, is too small for the loss.

    In a distributed run each process has a projection, prototypes and a bank of its own, which fit each other.
    """

    def __init__(
        self, num_classes: int, feat_dim: int, embedding: int = 64, loss: LabelPropagationLoss | None = None,
        bank_size: int = 2048, confidence: float = 0.9, seed: int = 0,
    ) -> None:
        super().__init__()
        self.loss, self.bank = loss or LabelPropagationLoss(), ClassMemoryBank(num_classes, embedding, bank_size)
        if min(bank_size, ANCHORS) < self.loss.min_bank:
            raise ValueError(
                f"expected the loss's min_bank to be at most bank_size {bank_size} and the {ANCHORS} vectors drawn of "
                f"a class, or nothing would be contrasted, got {self.loss.min_bank}."
            )
        self.confidence, self.seed = confidence, seed
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.projection = Projection(feat_dim, embedding)
            self.prototypes = PrototypeLoss(num_classes, embedding)

    def forward(
        self, labelled: Voxels, unlabelled: torch.Tensor, peer: Seen, number: int, where: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """L_cl, the loss of the prototypes, and what to log.

        Args:
            labelled: of the student. unlabelled: its features ``(B, A, *spatial)`` of other images.
            peer: what the peer made of the labelled images. number: of the step.
            where: the voxels ``(B, *spatial)`` of ``unlabelled`` to draw from; null is all.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        taught, taught_labels = self._draw(peer.features, self._sure(peer, labelled.labels), generator)
        own, own_labels = self._draw(labelled.features, labelled.labels, generator)
        may = torch.arange(unlabelled[:, 0].numel()) if where is None else where.flatten().nonzero()[:, 0].cpu()
        chosen = may[torch.randint(len(may), (min(VECTORS, len(may)),), generator=generator)]
        found = pick(unlabelled, chosen.to(unlabelled.device))
        # apart from L_cl, since batch norm's statistics carry a gradient to every row
        first, second, _ = self._project(taught, own, found.detach())
        prototype = self.prototypes(torch.cat([first, second]), torch.cat([taught_labels, own_labels]))
        self.bank.push(first.detach(), taught_labels)
        anchors = [self.bank.draw(c, ANCHORS, generator) for c in range(self.bank.num_classes)]
        loss, log = self.loss(anchors, self._project(taught, own, found)[2])
        filled = self.bank.filled.float() / self.bank.size
        # of the emptiest class too: below the loss's min_bank it is not contrasted
        log |= {"bank": filled.mean(), "bank_least": filled.min()}
        return loss, prototype, {"propagation": loss, "prototype": prototype, **log}

    def _draw(
        self, features: torch.Tensor, labels: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of up to 256 voxels of each class, without gradient, and their labels."""
        chosen = draw_per_class(labels.flatten(), self.bank.num_classes, VOXELS, generator)
        return pick(features.detach(), chosen), labels.flatten()[chosen]

    @torch.no_grad()
    def _sure(self, peer: Seen, labels: torch.Tensor) -> torch.Tensor:
        """The labels of the voxels that may enter the bank, -1 elsewhere."""
        chance, found = peer.logits.float().softmax(1).max(1)
        reliable = peer.reliable.view(-1, *[1] * (labels.ndim - 1))
        return torch.where(reliable & (found == labels) & (chance >= self.confidence), labels, -1)

    def _project(self, taught: torch.Tensor, own: torch.Tensor, found: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Vectors of the peer's labelled rows, the student's labelled ones and the student's unlabelled ones."""
        parts = (taught, own, found)
        return self.projection(torch.cat([part.float() for part in parts])).split([len(part) for part in parts])
