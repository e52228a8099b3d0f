"""What is deployed: encoder, anatomical latent with feature enhancement (FEM), decoder, position prior."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described

from .decoders import Code, cosine_logits
from .latent import sample_latent
from .position import body_frame

ADAPTED_SCALE = 20.0  # of the cosines of an adapted network


@described()
class AnatomicalPrior(nn.Module):
    """The latent of an image and the feature enhancement (FEM) it drives.

    Source: Huang et al., ACM MM 2024, section 3.3: the image's own latent, in training and at test time.
    """

    def __init__(self, prior: nn.Module, enhancement: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.enhancement = enhancement

    def forward(self, features: torch.Tensor, sample: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features enhanced by the prior's mean, or by a draw of it; the prior's mean and log-variance."""
        mean, logvar = self.prior(features)
        latent = sample_latent(mean, logvar) if sample else mean
        return self.enhancement(features, latent), mean, logvar


@described()
class FewShotNetwork(nn.Module):
    """Encoder and decoder, with APSCL's anatomical prior and our position prior where they are given.

    What is deployed of the paper's figure 2; what only training needs (label branch, SIM) belongs to the objective.
    Without ``prior`` it is the common body of the baselines (a PANet, ALPNet or ADNet decoder).

    Args:
        encoder: image to features ``(B, A, h, w)``.
        decoder: of :mod:`apscl_fewshot.decoders` or :mod:`apscl_fewshot.guidance`.
        prior: :class:`AnatomicalPrior` or null.
        position: :class:`~apscl_fewshot.position.PositionPrior` or null; it acts in evaluation mode alone.

    Shape:
        support ``(B, S, C, H, W)``, support masks ``(B, S, 1, H, W)``, query ``(B, C, H, W)``; logits ``(B, 2, H, W)``
        for background and foreground.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module | None = None, position: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.prior = prior
        self.position = position
        self.scale = ADAPTED_SCALE  # TorchScript sees attributes, not the module's constants

    def embed(self, images: torch.Tensor, sample: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Features ``(B, A, h, w)`` and body frames ``(B, 4)`` of images ``(B, C, H, W)``.

        This is the costly part; classes, shots and parts share it.
        """
        features = self.encoder(images)
        if self.prior is not None:
            features = self.prior(features, sample)[0]
        return features, body_frame(images)

    def condition(self, features: torch.Tensor, frames: torch.Tensor, masks: torch.Tensor) -> Code:
        """What S embedded support images with masks ``(S, 1, H, W)`` teach of one class."""
        code = self.decoder.condition(features, masks)
        if self.position is not None:
            code["position"] = self.position.condition(masks, frames)
        return code

    def decode(self, features: torch.Tensor, frames: torch.Tensor, code: Code, size: list[int]) -> torch.Tensor:
        """Logits ``(Q, 2, *size)`` of Q embedded queries."""
        logits = F.interpolate(self.decoder.decode(features, code), size=size, mode="bilinear", align_corners=False)
        if self.position is not None and not self.training:
            prior = self.position(code["position"], frames, size)
            logits = torch.stack([logits[:, 0], logits[:, 1] + prior], dim=1)
        return logits

    def classify(
        self, features: torch.Tensor, frames: torch.Tensor, prototypes: torch.Tensor, positions: torch.Tensor,
        size: list[int],
    ) -> torch.Tensor:  # fmt: skip
        """Logits ``(Q, 1 + N, *size)`` of Q embedded queries for what :class:`.Adaptation` learned of N classes."""
        logits = cosine_logits(features, prototypes, self.scale)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if self.position is not None and not self.training:
            priors = [torch.zeros_like(logits[:, 0])]
            for n in range(positions.shape[0]):
                priors.append(self.position(positions[n], frames, size))
            logits = logits + torch.stack(priors, dim=1)
        return logits

    def forward(
        self, support: torch.Tensor, support_masks: torch.Tensor, query: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """One episode a batch entry: logits, features of the B*S supports then the B queries, their latents if any."""
        batch, shots = support.shape[:2]
        images = torch.cat([support.flatten(0, 1), query])
        features, frames = self.encoder(images), body_frame(images)
        latents = None
        if self.prior is not None:
            features, mean, logvar = self.prior(features, self.training)
            latents = (mean, logvar)
        logits = []
        for i in range(batch):
            s, q = slice(i * shots, (i + 1) * shots), slice(batch * shots + i, batch * shots + i + 1)
            code = self.condition(features[s], frames[s], support_masks[i])
            logits.append(self.decode(features[q], frames[q], code, list(query.shape[2:])))
        return torch.cat(logits), features, latents
