"""A training step: a convolutional network and its peer teach each other, and labels spread from bank to image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.networks.utils import eval_mode
from torch import nn

from common.description import described
from common.engine.unwrap import unwrap
from common.networks.features import forward_with_features
from common.semi_supervised import MeanTeacher, Mixer, PseudoLabels, Step, Supervised, Voxels, sigmoid_ramp

from .peers import Peer, Seen
from .propagation import LabelPropagation


@described()
class CrossSupervision(Supervised):
    r"""Student and peer learn the true labels and each other's pseudo-labels: L = L^c + L^d.

    .. math:: L^c = L_s(x_l, y) + \mu(t)\,[L_s(x_u, \hat y^d) + \eta(t) L_{cl}], \qquad
              L^d = L_s(x_l, y) + \mu(t)\,L_s(x_u, \hat y^c)

    with the predictions of the student in L^c and of the peer in L^d, :math:`\mu(t) = \mu e^{-5(1 - t/T_r)^2}`,
    constant from the step T_r on, and :math:`\eta(t) = 0` before ``propagation_start``. No gradient passes from one
    network to the other. The peer is shown the student's pseudo-labels of the same step (a diffusion network noises
    them), and the student learns only from images on which the peer is reliable.

    With a ``mixer`` both networks learn on mixtures of labelled and unlabelled images. The pseudo-labels come from the
    unlabelled images as they are, without dropout; a diffusion network is shown the mixture of true and pseudo-labels.
    The mixer's first stage has true labels alone.

    A base of :class:`common.semi_supervised.SemiSupervisedObjective`; it needs no teacher.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408); the ramp of Laine and Aila.
    Departures: labelled and unlabelled images pass through a network one after the other, since statistics over both
    spoil batch norm; the prototypes of :class:`.LabelPropagation` add a term that reaches neither network.

    Args:
        peer: :class:`.PlainPeer` or :class:`.DiffusionPeer`; the parameters of ``peer.network`` need an optimizer.
        loss: L_s.
        propagation: L_cl; null leaves it out. Its parameters need an optimizer.
        weight: :math:`\mu`. ramp: T_r as a share of the training.
        propagation_weight: :math:`\eta`. propagation_start: the share of the steps with unlabelled images that is
            without L_cl.
        largest_component: see :class:`common.semi_supervised.PseudoLabels`.
        mixer: of BCP (Bai et al., CVPR 2023), or null.

    Raises:
        ValueError: the peer's network is the student itself; a batch that the mixer cannot halve.
    """

    def __init__(
        self, peer: Peer, loss: nn.Module | None = None, propagation: LabelPropagation | None = None,
        weight: float = 1.0, ramp: float = 0.4, propagation_weight: float = 0.1, propagation_start: float = 0.2,
        largest_component: bool = True, mixer: Mixer | None = None,
    ) -> None:
        super().__init__(loss)
        self.peer, self.propagation = peer, propagation
        self.weight, self.ramp = weight, ramp
        self.propagation_weight, self.propagation_start = propagation_weight, propagation_start
        self.pseudo_labels, self.mixer = PseudoLabels(largest_component), mixer

    def start(self, total_steps: int) -> int:
        return 0 if self.mixer is None else self.mixer.start(total_steps)

    def forward(
        self, network: nn.Module, teacher: MeanTeacher | None, batch: Mapping[str, torch.Tensor], step: int, total: int
    ) -> Step:
        if unwrap(network) is unwrap(self.peer.network):
            raise ValueError("the peer's network is the student itself: give it a network of its own.")
        if not self.begun(teacher, step, total):
            return self._first_stage(network, batch)
        learn = self._apart if self.mixer is None else self._mixed
        labelled, others, terms, more = learn(network, batch)
        ramp = self.weight * sigmoid_ramp(step, self.ramp * total)
        loss = terms["seg"] + terms["seg_peer"] + ramp * (terms["pseudo"] + terms["pseudo_peer"])
        if self.propagation is not None:
            contrast, prototype, of_propagation = self.propagation(labelled, number=step, **others)
            start = self.start(total)  # until then projection and prototypes have learned nothing
            begun = step >= start + self.propagation_start * (total - start)
            loss = loss + prototype + ramp * self.propagation_weight * begun * contrast
            terms |= of_propagation
        return Step(loss, labelled, terms=terms | more)

    def _apart(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple:
        """Labelled images, then unlabelled ones: what L_cl works on, the terms of the loss, and what to log."""
        labels, other = batch["label"][:, 0], batch["unlabeled"]
        first, first_features = forward_with_features(network, batch["image"])
        logits, features = forward_with_features(network, other)
        own, _ = self.pseudo_labels(logits)
        labelled, unlabelled = self.peer(batch["image"], labels), self.peer(other, own)
        terms = {
            "seg": self.loss(first, labels),
            "pseudo": self.loss(logits, self._taught(unlabelled)),
            "seg_peer": self.loss(labelled.logits, labels),
            "pseudo_peer": self.loss(unlabelled.logits, own),
        }
        others = {"unlabelled": features, "peer": labelled}
        return Voxels(first_features, first, labels), others, terms, agreement(own, unlabelled)

    def _mixed(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple:
        """The same of mixtures: the labels of unlabelled images first, then a pass on what they are mixed into."""
        label, other = batch["label"][:, 0], batch["unlabeled"]
        with torch.no_grad(), eval_mode(network, self.peer):
            own, _ = self.pseudo_labels(network(other))
            unlabelled = self.peer(other, own)
            taught = self._taught(unlabelled)
        mixed, true = self.mixer.pair(batch["image"], other)
        logits, features = forward_with_features(network, mixed)
        seen = self.peer(mixed, torch.where(true, label, own))
        labels = torch.where(true, label, -1)
        terms = {
            "seg": self.mixer.loss(self.loss, logits, labels),
            "pseudo": self.mixer.loss(self.loss, logits, torch.where(true, -1, taught)),
            "seg_peer": self.mixer.loss(self.loss, seen.logits, labels),
            "pseudo_peer": self.mixer.loss(self.loss, seen.logits, torch.where(true, -1, own)),
        }
        others = {"unlabelled": features, "peer": seen, "where": ~true}
        return Voxels(features, logits, labels), others, terms, agreement(own, unlabelled)

    def _first_stage(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> Step:
        """Mixtures of labelled images."""
        mixed, labels = self.mixer.labelled(batch["image"], batch["label"][:, 0])
        logits, features = forward_with_features(network, mixed)
        terms = {"seg": self.loss(logits, labels), "seg_peer": self.loss(self.peer(mixed, labels).logits, labels)}
        return Step(sum(terms.values()), Voxels(features, logits, labels), terms=terms)

    @torch.no_grad()
    def _taught(self, seen: Seen) -> torch.Tensor:
        """The peer's labels for the student, -1 on images where it is not reliable."""
        labels, _ = self.pseudo_labels(seen.logits)
        return torch.where(seen.reliable.view(-1, *[1] * (labels.ndim - 1)), labels, -1)


@torch.no_grad()
def agreement(labels: torch.Tensor, seen: Seen) -> dict[str, torch.Tensor]:
    """Share of the voxels that either network takes for foreground on which both take them for the same class.

    A peer that copies what it is shown agrees at low noise, and says nothing new. With background, nearly all agree.

    Args:
        labels: of the student, ``(B, *spatial)``, as the peer was shown them.
        seen: what the peer made of these images.

    Returns:
        ``agreement/0.9`` for 0.9 T <= t < T and so on for each tenth of T, or ``agreement`` for a peer without noise;
        none where there is no such image or no foreground.
    """
    found = seen.logits.max(1).indices
    groups = {"agreement": seen.reliable.new_ones(len(labels))}
    if seen.noise is not None:
        tenths = (seen.noise * 10).int()
        groups = {f"agreement/0.{tenth}": tenths == tenth for tenth in tenths.unique().tolist()}
    shares = {}
    for name, images in groups.items():
        foreground = ((labels > 0) | (found > 0))[images]
        if foreground.any():
            shares[name] = (labels == found)[images][foreground].float().mean()
    return shares
