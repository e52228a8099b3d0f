"""The network that the student trains with: what it makes of an image, and which labels it teaches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from common.description import described
from common.engine.unwrap import unwrap
from common.networks.features import forward_with_features, forward_with_inputs, linear_classifier

from .diffusion import STEPS, Diffusion


@dataclass
class Seen:
    """What a peer makes of images: logits ``(B, K, *spatial)`` and the features ``(B, A, *spatial)`` behind them.

    ``reliable`` ``(B,)``: the images that it had to look at. ``noise`` ``(B,)``: t / T of the labels that it was shown.
    """

    logits: torch.Tensor
    features: torch.Tensor
    reliable: torch.Tensor
    noise: torch.Tensor | None = None


class Peer(nn.Module):
    """A network that others learn from; in its state the names are the same on one GPU and on several.

    Args:
        network: may be wrapped for several GPUs; it is the wrapper then that runs.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = unwrap(network)
        self._wrapped = [network]  # a list, since a module would be in the state a second time


@described()
class PlainPeer(Peer):
    """A second network of the student's kind, which sees the image alone (cross pseudo supervision).

    Source: Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021.

    Args:
        network: with first weights of its own, since equal networks have nothing to teach each other.
    """

    def forward(self, image: torch.Tensor, labels: torch.Tensor) -> Seen:
        logits, features = forward_with_features(self._wrapped[0], image)
        return Seen(logits, features, torch.ones(len(image), dtype=torch.bool, device=image.device))


@described()
class DiffusionPeer(Peer):
    """A diffusion network, which sees the image and noised labels: true ones, or the student's.

    Each image has a time of its own. At small times the answer can be read from the labels shown: as a pseudo-label it
    would be the student's own, and as a feature of a labelled image it would hold the truth. So only images at high
    noise are reliable. T/2 is not high: with the linear schedule a blur alone finds a structure in such labels, since
    its voxels are many, with a Dice of 0.9; from 0.9 T on it finds at most about where a large one lies. A network that
    is trained on such times alone looks at the image and no longer at the labels shown.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408), which show the noised
    pseudo-labels; the limit is our own.

    Args:
        network: :class:`.DiffusionNetwork`. diffusion: its forward process.
        times: range of t / T that it is trained on.
        pseudo_times: range of t / T at which an image is reliable.

    Raises:
        ValueError: ranges outside 0 to 1, or without a common part.
    """

    def __init__(
        self, network: nn.Module, diffusion: Diffusion, times: tuple[float, float] = (0.0, 1.0),
        pseudo_times: tuple[float, float] = (0.9, 1.0),
    ) -> None:
        super().__init__(network)
        # the steps that the shares stand for: a range may be too narrow to hold any
        (first, end), (first_pseudo, end_pseudo) = (
            [round(share * STEPS) for share in shares] for shares in (times, pseudo_times)
        )
        ordered = all(0 <= low < high <= 1 for low, high in (times, pseudo_times))
        if not ordered or max(first, first_pseudo) >= min(end, end_pseudo):
            raise ValueError(
                "expected times and pseudo_times from low to above it within 0 to 1, with a step of the "
                f"{STEPS} in common, got {tuple(times)} and {tuple(pseudo_times)}."
            )
        self.diffusion, self.times, self.pseudo_times = diffusion, tuple(times), tuple(pseudo_times)

    def forward(self, image: torch.Tensor, labels: torch.Tensor) -> Seen:
        """The prediction from labels ``(B, *spatial)``, each a class, noised to a random time."""
        times = self.diffusion.draw_times(len(image), *self.times, device=image.device)
        noised = self.diffusion.noised(labels, times)
        classifier = linear_classifier(self.network)
        logits, (features,) = forward_with_inputs(self._wrapped[0], [classifier], image, noised, times)
        low, high = (round(share * STEPS) for share in self.pseudo_times)
        return Seen(logits, features, (low <= times) & (times < high), times / STEPS)
