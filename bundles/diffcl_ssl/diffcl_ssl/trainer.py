"""A training step: a convolutional network and its peer teach each other, and labels spread from bank to image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from common.engine.unwrap import unwrap
from common.networks.linear_head import forward_with_features
from common.semi_supervised.bases import Step, Supervised, sigmoid_ramp
from common.semi_supervised.region_loss import PseudoLabels
from common.semi_supervised.teacher import MeanTeacher

from .peers import DiffusionPeer, PlainPeer, Seen
from .propagation import LabelPropagation

__all__ = ["CrossSupervision", "DiffusionPeer", "PlainPeer"]


class CrossSupervision(Supervised):
    r"""Student and peer learn the true labels and each other's pseudo-labels: L = L^c + L^d.

    .. math:: L^c = L_s(x_l, y) + \mu(t)\,[L_s(x_u, \hat y^d) + \eta(t) L_{cl}], \qquad
              L^d = L_s(x_l, y) + \mu(t)\,L_s(x_u, \hat y^c)

    with the predictions of the student in L^c and of the peer in L^d, :math:`\mu(t) = \mu e^{-5(1 - t/T_r)^2}`,
    constant from the step T_r on, and :math:`\eta(t) = 0` before ``propagation_start``. No gradient passes from one
    network to the other. The peer is shown the student's pseudo-labels of the same step (a diffusion network noises
    them), and the student learns only from images on which the peer is reliable.

    A base as those of :mod:`common.semi_supervised.bases`. The teacher, the student's average, teaches nothing here;
    inference may use it.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408); the ramp of Laine and Aila.
    Departures: labelled and unlabelled images pass through a network one after the other, since statistics over both
    spoil batch norm; the prototypes of :class:`.LabelPropagation` add a term that reaches neither network.

    Args:
        head: name of the student's 1x1 classifier.
        peer: :class:`.PlainPeer` or :class:`.DiffusionPeer`; the parameters of ``peer.network`` need an optimizer.
        loss: L_s.
        propagation: L_cl; null leaves it out. Its parameters need an optimizer.
        weight: :math:`\mu`. ramp: T_r as a share of the training.
        propagation_weight: :math:`\eta`. propagation_start: the share of the training that is without L_cl.
        confidence: the least probability of a pseudo-label that counts, either way.
        largest_component: see :class:`common.semi_supervised.PseudoLabels`.

    Raises:
        ValueError: the peer's network is the student itself.
    """

    needs_teacher = True

    def __init__(
        self, head: str, peer: nn.Module, loss: nn.Module | None = None, propagation: LabelPropagation | None = None,
        weight: float = 1.0, ramp: float = 0.4, propagation_weight: float = 0.1, propagation_start: float = 0.2,
        confidence: float = 0.0, largest_component: bool = True,
    ) -> None:
        super().__init__(head, loss)
        self.peer, self.propagation = peer, propagation
        self.weight, self.ramp, self.confidence = weight, ramp, confidence
        self.propagation_weight, self.propagation_start = propagation_weight, propagation_start
        self.pseudo_labels = PseudoLabels(largest_component)

    def start(self, total_steps: int) -> int:
        return 0

    def forward(
        self, network: nn.Module, teacher: MeanTeacher, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        if unwrap(network) is unwrap(self.peer.network):
            raise ValueError("the peer's network is the student itself: give it a network of its own.")
        done = super().forward(network, teacher, batch, step, total)
        labels, other = done.labelled.labels, batch["unlabeled"]
        logits, features = forward_with_features(network, other, self.head)
        own, confidence = self.pseudo_labels(logits)
        labelled, unlabelled = self.peer(batch["image"], labels), self.peer(other, own)
        taught, certain = self._taught(other, unlabelled)
        terms = {
            "seg": done.loss,
            "pseudo": self.loss(logits, taught),
            "seg_peer": self.loss(labelled.logits, labels),
            "pseudo_peer": self.loss(unlabelled.logits, torch.where(confidence >= self.confidence, own, -1)),
        }
        ramp = self.weight * sigmoid_ramp(step, self.ramp * total)
        loss = terms["seg"] + terms["seg_peer"] + ramp * (terms["pseudo"] + terms["pseudo_peer"])
        if self.propagation is not None:
            contrast, prototype, more = self.propagation(done.labelled, features, labelled, step)
            begun = step >= self.propagation_start * total
            loss = loss + prototype + ramp * self.propagation_weight * begun * contrast
            terms |= more
        return Step(loss, done.labelled, terms=terms | certain | agreement(own, unlabelled))

    @torch.no_grad()
    def _taught(self, image: torch.Tensor, seen: Seen) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The peer's labels for the student, -1 where they do not count, and the share that does where it may."""
        logits, reliable = self.peer.teach(image, seen)
        labels, confidence = self.pseudo_labels(logits)
        sure = confidence >= self.confidence
        certain = {"certain": sure[reliable].float().mean()} if self.confidence > 0 and reliable.any() else {}
        return torch.where(sure & reliable.view(-1, *[1] * (labels.ndim - 1)), labels, -1), certain


@torch.no_grad()
def agreement(labels: torch.Tensor, seen: Seen) -> dict[str, torch.Tensor]:
    """Share of the voxels that either network takes for foreground on which both take them for the same class.

    A peer that copies what it is shown agrees at low noise, and says nothing new. With background, nearly all agree.

    Args:
        labels: of the student, ``(B, *spatial)``, as the peer was shown them.
        seen: what the peer made of these images.

    Returns:
        ``agreement_low`` for t < T/2 and ``agreement_high`` for the other images, or ``agreement`` for a peer without
        noise; none where there is no such image or no foreground.
    """
    found = seen.logits.argmax(1)
    groups = {"agreement": seen.reliable.new_ones(len(labels))}
    if seen.noise is not None:
        groups = {"agreement_low": seen.noise < 0.5, "agreement_high": seen.noise >= 0.5}
    shares = {}
    for name, images in groups.items():
        foreground = ((labels > 0) | (found > 0))[images]
        if foreground.any():
            shares[name] = (labels == found)[images][foreground].float().mean()
    return shares
