r"""The training objective: :math:`L = L_{ram} + \lambda L_{feat}` (Eq. 13).

The restoration decoder and the class statistics serve training alone. They live here, so that the network's state dict
is what is deployed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described
from common.engine.unwrap import unwrap
from common.losses import ClassMemoryBank
from common.networks.features import forward_with_inputs

from .regions import Regions

LEVELS = ("penultimate", "deep", "logits")


class RegionLoss(nn.Module):
    r"""Segmentation loss of sigmoid channels, one a region.

    Source: RAM-DSIR: binary cross-entropy (mean) plus Dice as *one* ratio over batch, channels and pixels with squared
    denominators.

    Args:
        loss: a :class:`monai.losses.DiceCELoss` of one sigmoid channel with ``batch`` and ``squared_pred``.
        regions: name to label ids.
    """

    def __init__(self, loss: nn.Module, regions: dict[str, list[int]]) -> None:
        super().__init__()
        self.loss = loss
        self.regions = Regions(regions, {label: str(label) for ids in regions.values() for label in ids})

    def forward(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        masks = self.regions.masks(label).float()
        # channels join the batch: one ratio over everything
        return self.loss(logits.float().flatten(0, 1)[:, None], masks.flatten(0, 1)[:, None])


@described(leave_out=["start"])
class FeatureContrast(nn.Module):
    r"""L_feat: contrast of pixel features with the Gaussian of every class, from statistics of all domains (Eq. 12).

    Classes are the labels themselves (background, rim, cup): Eq. 4 needs one class a pixel, which overlapping regions
    do not give. Departures and decisions: features are normalised once, before statistics and loss alike, which keeps
    the bound a bound; both views count; the statistics start after a warm-up, or the first features would stay in the
    cumulative mean for ever; every ``stride``-th pixel of each axis is used.

    Args:
        memory: :class:`common.losses.ClassStatistics` (groups: the domains) or :class:`common.losses.ClassMemoryBank`.
        loss: :class:`common.losses.GaussianContrastiveLoss` or :class:`common.losses.BankContrastiveLoss`.
        num_classes: labels, background included.
        level: ``penultimate`` (the map before the head), ``deep`` (the encoder's last) or ``logits``.
        stride: see above.
        start: training steps before statistics and loss begin.
    """

    def __init__(
        self,
        memory: nn.Module,
        loss: nn.Module,
        num_classes: int,
        level: str = "penultimate",
        stride: int = 2,
        start: int = 0,
    ) -> None:
        super().__init__()
        if level not in LEVELS:
            raise ValueError(f"level must be one of {LEVELS}, got {level!r}.")
        self.memory, self.loss, self.num_classes = memory, loss, num_classes
        self.level, self.stride, self.start = level, stride, start

    def forward(
        self, maps: dict[str, torch.Tensor], label: torch.Tensor, domain: torch.Tensor, step: int
    ) -> torch.Tensor | None:
        """The loss of a step, or None during the warm-up.

        Shape:
            ``maps`` view to ``(B, A, *spatial')``, ``label`` ``(B, 1, *spatial)``, ``domain`` ``(B,)``.
        """
        if step < self.start:
            return None
        with torch.autocast(label.device.type, enabled=False):
            parts = [self._pixels(found, label, domain) for found in maps.values()]
            features, labels, domains = (torch.cat(part) for part in zip(*parts, strict=True))
            if isinstance(self.memory, ClassMemoryBank):
                self.memory.push(features, labels)
                return self.loss(features, labels, self.memory)
            self.memory.update(features, labels, domains)
            self.memory.sync()  # over processes, where there are several
            return self.loss(features, labels, self.memory.pooled())

    def _pixels(
        self, features: torch.Tensor, label: torch.Tensor, domain: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features ``(N, A)``, labels ``(N,)`` and domains ``(N,)`` of one view."""
        label = fit_labels(label, features.shape[2:], self.num_classes)
        features, label = thin(features.float(), self.stride), thin(label[:, None], self.stride)[:, 0]
        features = F.normalize(features, dim=1)
        domains = domain.view(-1, *[1] * (label.ndim - 1)).expand_as(label)
        return features.movedim(1, -1).flatten(0, -2), label.flatten(), domains.flatten()


def thin(maps: torch.Tensor, stride: int) -> torch.Tensor:
    """Every ``stride``-th position of each spatial axis, where there are at least 32 of them."""
    for axis in range(2, maps.ndim):
        if maps.shape[axis] >= 32:
            maps = maps[(slice(None),) * axis + (slice(None, None, stride),)]
    return maps


def fit_labels(label: torch.Tensor, size: torch.Size, num_classes: int, share: float = 0.75) -> torch.Tensor:
    """Labels ``(B, 1, *spatial)`` at the features' size ``(B, *size)``; -1 where no class fills ``share`` of a cell."""
    if label.shape[2:] == size:
        return label[:, 0]
    shares = torch.stack([(label[:, 0] == k).float() for k in range(num_classes)], 1)
    best, winner = F.adaptive_avg_pool2d(shares, size).max(1)
    return torch.where(best >= share, winner, -1)


MEASURE_EVERY = 20  # steps, since `pull` takes two further gradients; for a curve that is often enough


@described()
class GeneralisationObjective(nn.Module):
    r"""L_ram = Seg(x) + Seg(x_ram) + w_kd KD + w_rec sum_d MSE_d, plus lambda L_feat.

    Source: RAM-DSIR for L_ram, SgCG Eq. 13 for the sum. Each view has a forward pass of its own, so that batch norm
    sees one style at a time. The restoration target is the *original* image, scaled to -1..1 for the tanh.

    Args:
        segmentation: :class:`RegionLoss`.
        consistency: :class:`common.losses.SymmetricKLLoss` of the two predictions; null leaves the term out.
        restoration: :class:`~sgcg_dg.restoration.RestorationDecoder`; null leaves the term out.
        contrast: :class:`FeatureContrast`; null leaves the term out.

    Every 20th step measures ``pull``, the norm of the contrast's gradient on the features over that of all other terms.
    The value of the contrast says nothing of its effect; this does.
    """

    def __init__(
        self,
        segmentation: nn.Module,
        consistency: nn.Module | None = None,
        restoration: nn.Module | None = None,
        contrast: nn.Module | None = None,
        consistency_weight: float = 0.5,
        restoration_weight: float = 0.1,
        contrast_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.segmentation, self.consistency = segmentation, consistency
        self.restoration, self.contrast = restoration, contrast
        self.consistency_weight, self.restoration_weight = consistency_weight, restoration_weight
        self.contrast_weight = contrast_weight

    def forward(
        self, network: nn.Module, batch: dict[str, torch.Tensor], step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits of the original view and the terms of the loss; ``loss`` is their sum.

        Shape:
            ``image`` and, with mixing, ``image_ram`` (B, C, H, W) in 0..1, ``label`` (B, 1, H, W), ``domain`` (B,).
        """
        label = batch["label"]
        views = {"image": all_levels(network, batch["image"])}
        terms = {"seg": self.segmentation(views["image"]["logits"], label)}
        total = terms["seg"]
        if "image_ram" in batch:
            views["ram"] = all_levels(network, batch["image_ram"])
            terms["seg_ram"] = self.segmentation(views["ram"]["logits"], label)
            total = total + terms["seg_ram"]
            if self.consistency is not None:
                terms["kd"] = self.consistency(views["image"]["logits"], views["ram"]["logits"])
                total = total + self.consistency_weight * terms["kd"]
            if self.restoration is not None:
                terms["rec"] = self._restore(views["ram"]["deep"], batch["image"], batch["domain"])
                total = total + self.restoration_weight * terms["rec"]
        if self.contrast is not None:
            total, more = self._contrast(total, views, label, batch["domain"], step)
            terms |= more
        return views["image"]["logits"], {"loss": total, **terms}

    def _restore(self, deep: torch.Tensor, image: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
        """Squared error of each domain's restored originals, summed over the domains."""
        losses = []
        for index in domain.unique().tolist():
            own = domain == index
            restored = self.restoration(deep[own], index, image.shape[2:])
            losses.append(F.mse_loss(restored.float(), 2 * image[own] - 1))
        return torch.stack(losses).sum()

    def _contrast(
        self, total: torch.Tensor, views: dict[str, dict], label: torch.Tensor, domain: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        maps = {view: levels[self.contrast.level] for view, levels in views.items()}
        loss = self.contrast(maps, label, domain, step)
        if loss is None:
            return total, {}
        terms = {"feat": loss}
        if self.training and (step + 1) % MEASURE_EVERY == 0:
            terms["pull"] = pull(self.contrast_weight * loss, total, list(maps.values()))
            if getattr(self.contrast.memory, "cov", None) is not None:  # the scatter is a share of the covariance
                terms["scatter"] = self.contrast.memory.between_group_scatter().float()
        return total + self.contrast_weight * loss, terms


def all_levels(network: nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits, penultimate and deepest map of one forward pass."""
    inner = unwrap(network)
    logits, (maps, penultimate) = forward_with_inputs(network, [inner.decoder, inner.classifier], image)
    return {"logits": logits, "deep": maps[-1], "penultimate": penultimate}


def pull(contrast: torch.Tensor, rest: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
    """Norm of the contrast's gradient on the feature maps over that of the rest of the loss."""
    norms = []
    for loss in (contrast, rest):
        slopes = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
        norms.append(torch.stack([s.float().square().sum() for s in slopes if s is not None]).sum().sqrt())
    return norms[0] / norms[1].clamp(min=1e-12)
