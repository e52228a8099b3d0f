"""The training objective: cross-entropy, KL of the anatomical latents, spatial contrast, and what they need.

The label branch (label encoder and posterior block) and the spatial similarity (SIM) are boxes of the paper's figure 2
that nothing reads after training. They live here, so that the network's state dict is what is deployed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described
from common.losses import gaussian_kl, spatial_similarity

from .decoders import shrink_mask

ACTIVE_NATS = 0.01
CONTRAST_SIDE = 32  # positions along an axis that the contrast sees at most, as many as in the paper's maps


@described()
class LabelBranch(nn.Module):
    """From a binary mask to the posterior of its latent: label encoder and posterior block.

    Source: Huang et al., ACM MM 2024, section 3.3. Nothing but the KL sees the posterior, so that a constant satisfies
    it.
    """

    def __init__(self, encoder: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.posterior = posterior

    def forward(self, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance ``(B, D)`` of masks ``(B, 1, H, W)``."""
        return self.posterior(self.encoder(masks))


@described()
class SpatialSimilarity(nn.Module):
    """SIM: 1x1 projections to query, key and value, then attention-aligned similarity. Used by the contrast alone.

    Source: Huang et al., ACM MM 2024, Eq. 3-6 (the width of the projections is not given). One projection of each kind
    serves support and query. Departures: those of :func:`common.losses.spatial_similarity`.

    Shape:
        features ``(A, h, w)`` and a boolean region ``(h, w)`` to three tensors ``(M, sim_dim)``.
    """

    def __init__(self, feat_dim: int = 256, sim_dim: int = 128) -> None:
        super().__init__()
        # a linear layer on a list of positions is a 1x1 convolution
        self.projections = nn.ModuleList(nn.Linear(feat_dim, sim_dim) for _ in range(3))

    def project(self, features: torch.Tensor, region: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chosen = features[:, region].T
        return tuple(projection(chosen) for projection in self.projections)

    def matrix(self, sets: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
        """Similarity of every pair of sets, ``(M, M)``, symmetric with a zero diagonal (never read)."""
        rows = [[features[0].new_zeros(()) for _ in sets] for features in sets]
        for i in range(len(sets)):
            for j in range(i):
                rows[i][j] = rows[j][i] = spatial_similarity(sets[i], sets[j])
        return torch.stack([torch.stack(row) for row in rows])


@described()
class Objective(nn.Module):
    r"""L = CE + kl_weight (KL_s + KL_q) + scl_weight SCL (Huang et al., ACM MM 2024, section 3.6).

    Departures: the contrast is between foreground and background regions of an episode's slices, where the paper has
    whole slices labelled with the episode's class: of one episode a step these are one pair without a negative, and
    the contrast is zero. ``align_weight`` adds PANet's alignment (the query's prediction segments the support) for the
    baselines; ``ce_bg_weight`` 1 is plain cross-entropy.

    Args:
        label_branch, similarity, kl, contrast: null leaves the term out.
    """

    def __init__(
        self,
        label_branch: LabelBranch | None = None,
        similarity: SpatialSimilarity | None = None,
        kl: nn.Module | None = None,
        contrast: nn.Module | None = None,
        kl_weight: float = 0.1,
        scl_weight: float = 0.07,
        ce_bg_weight: float = 1.0,
        align_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if (similarity is None) != (contrast is None) or (label_branch is None) != (kl is None):
            raise ValueError("similarity comes with contrast, and label_branch with kl.")
        self.label_branch, self.similarity, self.kl, self.contrast = label_branch, similarity, kl, contrast
        self.kl_weight, self.scl_weight, self.align_weight = kl_weight, scl_weight, align_weight
        self.register_buffer("class_weights", torch.tensor([ce_bg_weight, 1.0]), persistent=False)

    def forward(
        self, network: nn.Module, batch: dict[str, torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits of the queries and the terms of the loss; ``loss`` is their sum.

        Shape:
            ``support`` (B, S, C, H, W), ``support_mask`` (B, S, 1, H, W), ``query`` (B, C, H, W), ``query_mask``
            (B, 1, H, W); logits (B, 2, H, W).
        """
        masks = torch.cat([batch["support_mask"].flatten(0, 1), batch["query_mask"]])
        posterior = None
        if self.label_branch is not None:
            posterior = self.label_branch(masks)
            torch.randn_like(posterior[0])  # the label's latent, which nothing reads; published runs drew it here
        logits, features, prior = network(batch["support"], batch["support_mask"], batch["query"])
        terms = {"ce": self._cross_entropy(logits, batch["query_mask"])}
        total = terms["ce"]
        if posterior is not None and prior is not None:
            shots = batch["support_mask"].shape[1]
            terms |= self._latent_terms(prior, posterior, shots * len(batch["query"]))
            total = total + self.kl_weight * terms["kl"]
        if self.similarity is not None:
            terms["scl"] = self._contrast(features, masks, len(batch["query"]))
            total = total + self.scl_weight * terms["scl"]
        if self.align_weight > 0:
            terms["align"] = self._alignment(network, features, logits, batch)
            total = total + self.align_weight * terms["align"]
        decoder = getattr(network, "module", network).decoder  # a distributed wrapper hides it
        if hasattr(decoder, "regulariser"):
            total = total + decoder.regulariser()
        return logits, {"loss": total, **terms}

    def _cross_entropy(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), masks[:, 0].long(), weight=self.class_weights)

    def _latent_terms(self, prior: tuple, posterior: tuple, supports: int) -> dict[str, torch.Tensor]:
        """KL of supports plus KL of queries, and two signs of life: mean sigma and active latents."""
        parts = [slice(None, supports), slice(supports, None)]
        with torch.no_grad():
            active = (gaussian_kl(*prior, *posterior).mean(0) > ACTIVE_NATS).sum()
            sigma = torch.exp(0.5 * prior[1]).mean()
        return {
            "kl": sum(self.kl(prior[0][p], prior[1][p], posterior[0][p], posterior[1][p]) for p in parts),
            "sigma": sigma,
            "active_latents": active,
        }

    def _contrast(self, features: torch.Tensor, masks: torch.Tensor, episodes: int) -> torch.Tensor:
        """Foreground against background of all images of an episode; a region without a position is left out."""
        side = [min(length, CONTRAST_SIDE) for length in features.shape[2:]]
        features = F.adaptive_avg_pool2d(features, side)
        foreground = shrink_mask(masks, features.shape[2:])[:, 0] > 0.5
        shots = len(features) // episodes - 1
        losses = []
        for i in range(episodes):
            sets, labels = [], []
            for j in [*range(i * shots, (i + 1) * shots), episodes * shots + i]:
                for label, region in ((1, foreground[j]), (0, ~foreground[j])):
                    if region.any():
                        sets.append(self.similarity.project(features[j], region))
                        labels.append(label)
            losses.append(self.contrast(self.similarity.matrix(sets), torch.tensor(labels, device=features.device)))
        return torch.stack(losses).mean()

    def _alignment(self, network: nn.Module, features: torch.Tensor, logits: torch.Tensor, batch: dict) -> torch.Tensor:
        """Segment each support from the query and its predicted mask (PANet's regulariser, one-shot per support)."""
        network = getattr(network, "module", network)
        episodes, shots = batch["support"].shape[:2]
        predicted = logits.max(1, keepdim=True).indices.float()
        size = list(logits.shape[2:])
        losses = []
        for i in range(episodes):
            code = network.decoder.condition(features[episodes * shots + i][None], predicted[i : i + 1])
            support = network.decoder.decode(features[i * shots : (i + 1) * shots], code)
            support = F.interpolate(support, size=size, mode="bilinear", align_corners=False)
            losses.append(self._cross_entropy(support, batch["support_mask"][i]))
        return torch.stack(losses).mean()
