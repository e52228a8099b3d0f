"""A trained network goes on learning from the annotated scans themselves, before it segments others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from torch import nn
from tqdm import tqdm

from common.data import DataError
from common.data.draws import drawing, plain

from .decoders import shrink_mask
from .network import FewShotNetwork
from .position import body_frame
from .protocol import shown_in

logger = logging.getLogger(__name__)
ENCODER_RATE = 0.3  # of the learning rate, for weights that are trained already
GRADIENT = 5.0  # largest norm


class Adaptation:
    r"""Fine-tuning on all slices of the annotated scans, as a classifier by scaled cosines with one prototype a class.

    .. math:: \ell_c(x) = \kappa \cos(f_x, p_c)

    At first a prototype is the masked mean of the features over all annotated slices. Features and prototypes then
    learn from augmented slices, by the sum of Dice loss and cross-entropy; batch norms stay as they are. Half of
    the slices drawn show a class. Source: ours, not in the paper, which never updates a weight for a new class; the
    first weights of the classifier are imprinted as in Qi et al., "Low-Shot Learning with Imprinted Weights" (CVPR
    2018).

    Args:
        steps: updates; each costs about as much as one of training.
        batch_size: slices of an update.
        learning_rate: at first, falling to zero as a half cosine; the encoder's body has 0.3 of it.
        seed: of the draws: the same scans give the same network.
    """

    def __init__(self, steps: int = 100, batch_size: int = 4, learning_rate: float = 1e-3, seed: int = 0) -> None:
        if steps < 0 or batch_size < 1:
            raise ValueError(f"expected steps from 0 and a batch_size from 1 on, found {steps} and {batch_size}.")
        self.steps, self.batch_size, self.learning_rate, self.seed = steps, batch_size, learning_rate, seed

    def __call__(
        self, network: FewShotNetwork, scans: Sequence[dict[str, Any]], labels: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Train ``network`` further, in place.

        Args:
            scans: K annotated scans as :func:`.as_slices` gives them.
            labels: ids of the N classes.

        Returns:
            prototypes ``(1 + N, A)``, the background first, and maps of position ``(N, 64, 64)``; none of these without
            a position prior. They are what :meth:`.FewShotNetwork.classify` takes.

        Raises:
            DataError: a scan does not show a class, or all scans lose it at the network's size.
            FloatingPointError: the loss is not finite.
        """
        shown_in(scans, labels)
        images, masks = annotated_slices(scans, labels)
        device = next(network.parameters()).device
        prototypes, positions = imprint(network, images.to(device), masks.to(device), len(labels))
        if self.steps:
            prototypes, name = nn.Parameter(prototypes), "+".join(scan["case"] for scan in scans)
            logger.info("learning from %s: %d steps", name, self.steps)
            with torch.enable_grad(), torch.autocast(device.type, enabled=False):
                self._fit(network, prototypes, images, masks, name)
        return prototypes.detach(), positions

    def _fit(
        self, network: FewShotNetwork, prototypes: nn.Parameter, images: torch.Tensor, masks: torch.Tensor, name: str
    ) -> None:
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # a few slices of one scan are no population
                module.eval().requires_grad_(False)
        optimizer, scheduler = self._optimizer(network, prototypes)
        loss = DiceCELoss(softmax=True, to_onehot_y=True, batch=True)
        rng, views = np.random.default_rng(self.seed), augmentation(images.shape[2:])
        rows = [np.flatnonzero((masks == label).flatten(1).any(1).numpy()) for label in range(1, len(prototypes))]
        for _ in tqdm(range(self.steps), desc=f"learning from {name}", unit="step", leave=False, disable=None):
            batch = [self._draw(images, masks, rows, rng, views) for _ in range(self.batch_size)]
            image, mask = (torch.stack(part).to(prototypes.device) for part in zip(*batch, strict=True))
            logits = network.classify(*network.embed(image), prototypes, prototypes.new_zeros(0), list(image.shape[2:]))
            value = loss(logits, mask)
            optimizer.zero_grad()
            value.backward()
            if not torch.isfinite(value):
                raise FloatingPointError(
                    f"learning from {name}: the loss is {value.item()}. Lower the learning_rate of `adaptation`, or "
                    "leave it out with null."
                )
            nn.utils.clip_grad_norm_([*network.parameters(), prototypes], GRADIENT)
            optimizer.step()
            scheduler.step()
        network.eval()

    def _optimizer(self, network: FewShotNetwork, prototypes: nn.Parameter) -> tuple[Any, Any]:
        body = {id(weight) for weight in getattr(network.encoder, "body", nn.Module()).parameters()}
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        groups = [
            {"params": [weight for weight in weights if id(weight) in body], "lr": ENCODER_RATE * self.learning_rate},
            {"params": [*(weight for weight in weights if id(weight) not in body), prototypes]},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], self.learning_rate)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)

    @staticmethod
    def _draw(
        images: torch.Tensor, masks: torch.Tensor, rows: list[np.ndarray], rng: np.random.Generator, views: Compose
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = rows[rng.integers(len(rows))] if rng.random() < 0.5 else np.arange(len(images))
        z = int(rng.choice(chosen))
        with drawing():
            views.set_random_state(seed=int(rng.integers(2**31)))
            view = views({"image": images[z], "mask": masks[z][None].float()})
        return plain(view["image"]), plain(view["mask"])


def augmentation(size: Sequence[int]) -> Compose:
    """Another body's shape and another scanner's contrast, as far as one scan can stand for others."""
    keys = ["image", "mask"]
    return Compose([
        RandAffined(keys, prob=1.0, rotate_range=0.25, shear_range=(0.1, 0.1), scale_range=((-0.2, 0.25),) * 2,
                    translate_range=tuple(0.08 * side for side in size), mode=("bilinear", "nearest"),
                    padding_mode=("border", "zeros")),
        RandAdjustContrastd("image", prob=0.8, gamma=(0.6, 1.6)),
        RandScaleIntensityd("image", factors=0.3, prob=0.7),
        RandShiftIntensityd("image", offsets=0.1, prob=0.7),
        RandGaussianSmoothd("image", prob=0.3, sigma_x=(0.3, 1.2), sigma_y=(0.3, 1.2)),
    ])  # fmt: skip


def annotated_slices(scans: Sequence[dict[str, Any]], labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """All slices ``(D, C, H, W)`` of the scans at the network's size, and their classes ``(D, H, W)``, 0 to N.

    Raises:
        DataError: a class is so small that none of it is left at that size.
    """
    images = torch.cat([scan["image"] for scan in scans])
    masks = []
    for scan in scans:
        mask = torch.zeros_like(scan["label"], dtype=torch.uint8)
        for number, label in enumerate(labels, 1):
            mask[scan["label"] == label] = number
        masks.append(F.interpolate(mask[:, None], size=images.shape[2:], mode="nearest-exact")[:, 0])
    masks = torch.cat(masks)
    lost = [str(label) for number, label in enumerate(labels, 1) if not (masks == number).any()]
    if lost:
        height, width = images.shape[2:]
        raise DataError(f"the support: expected each label to be seen in slices of {height} x {width}, found none left "
                        f"of label {', '.join(lost)}; use a model of a larger image_size, or leave the class out of "
                        "`structures`.")  # fmt: skip
    return images, masks


def imprint(
    network: FewShotNetwork, images: torch.Tensor, masks: torch.Tensor, classes: int, batch: int = 8
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean features of each class over the slices, and where it lies in the body's frame.

    Shape:
        as :func:`annotated_slices`; returns ``(1 + N, A)`` and ``(N, 64, 64)`` or ``(0,)``.
    """
    network.eval()
    with torch.no_grad():
        sums, weights = 0.0, 0.0
        for image, mask in zip(images.split(batch), masks.split(batch), strict=True):
            features = network.embed(image)[0].float()
            each = torch.stack([mask == label for label in range(1 + classes)], dim=1).float()
            share = shrink_mask(each, features.shape[2:])
            sums = sums + torch.einsum("bahw,bchw->ca", features, share)
            weights = weights + share.sum((0, 2, 3))
        positions = []
        for label in range(1, classes + 1):
            shown = (masks == label).flatten(1).any(1)
            if network.position is not None:
                mask = (masks[shown] == label)[:, None].float()
                positions.append(network.position.condition(mask, body_frame(images[shown])))
    prototypes = sums / weights[:, None].clamp(min=1e-5)
    return prototypes, torch.stack(positions) if positions else prototypes.new_zeros(0)
