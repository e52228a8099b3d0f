"""How whole cases are segmented: batch norm of the training or of the test images, slices, threshold, components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.data.draws import plain
from common.data.shrink import enlarge

BATCH = 8  # images that share their statistics with `bn="batch"`, as published
BATCH_NORMS = ("eval", "batch")


@dataclass(frozen=True)
class Protocol:
    """Choices of an evaluation; the defaults are the `clean` preset, ``paper_compat.json`` holds the published ones.

    Args:
        threshold: of a region's probability.
        all_slices: false leaves out the slices that the published loop leaves out (see :func:`published_slices`).
        skip_empty: true clears the prediction of slices without truth, as published: the label decides.
        symmetric: false measures ASD from the prediction to the truth alone.
        empty_distance: distance of a missed structure; null is the image's diagonal.
    """

    threshold: float = 0.5
    all_slices: bool = True
    skip_empty: bool = False
    symmetric: bool = True
    empty_distance: float | None = None


@contextmanager
def batch_norm(network: nn.Module, mode: str) -> Iterator[None]:
    """Evaluation with running averages (``eval``) or with the statistics of the images at hand (``batch``).

    ``batch`` is transductive: a prediction depends on the images beside it. The running averages do not change.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)] if mode == "batch" else []
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.train()
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum, count in kept:
            norm.eval()
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def together(cases: Sequence[dict]) -> Iterator[list[dict]]:
    """Cases that go through the network together: single images up to eight, in groups of nearly equal size."""
    single = [case for case in cases if case["image"].ndim == 3]
    if single:
        for index in np.array_split(np.arange(len(single)), -(-len(single) // BATCH)):
            yield [single[i] for i in index]
    for case in cases:
        if case["image"].ndim == 4:  # a volume's slices
            yield [case]


def predict(network: nn.Module, cases: Sequence[dict], bn: str, device: torch.device) -> list[torch.Tensor]:
    """Logits ``(K, *spatial)`` at the network's size, one for each of the cases of one group."""
    images = torch.cat([_stack(case["image"]) for case in cases])
    chunks = np.array_split(np.arange(len(images)), -(-len(images) // BATCH))
    with batch_norm(network, bn):
        logits = torch.cat([network(images[chunk].to(device)).float().cpu() for chunk in chunks])
    if cases[0]["image"].ndim == 4:
        return [logits.movedim(0, -1)]
    return list(logits)


class RegionMasks(Sequence):
    """Boolean masks ``(*native)`` of the regions on the case's own grid, each made when it is asked for.

    Args:
        logits: ``(K, *spatial)`` at the network's size.
        clean: takes one mask, see :func:`common.data.make_cleanup`.
    """

    def __init__(self, logits: torch.Tensor, case: dict, protocol: Protocol, clean: Callable) -> None:
        self.logits, self.case, self.protocol, self.clean = logits, case, protocol, clean

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, region: int) -> np.ndarray:
        logits = enlarge(self.logits[region][None], self.case["label"].shape)[0]
        mask = logits.sigmoid() > self.protocol.threshold
        if mask.ndim == 3:
            mask = _drop_slices(mask, self.case["label"], self.protocol)
        return clean_mask(mask, self.clean).numpy()


def clean_mask(mask: torch.Tensor, clean: Callable) -> torch.Tensor:
    """A boolean mask ``(*spatial)`` through a transform of :func:`common.data.make_cleanup`."""
    return plain(clean(mask[None].to(torch.uint8)))[0] > 0


def published_slices(depth: int, batch: int = BATCH) -> range:
    """The slices of a volume that RAM-DSIR's test loop predicts: ``depth // batch`` batches of the interior ones."""
    return range(1, 1 + min(batch * (depth // batch), depth - 2))


def _drop_slices(mask: torch.Tensor, label: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    keep = torch.ones(mask.shape[-1], dtype=torch.bool)
    if not protocol.all_slices:
        keep[:] = False
        keep[list(published_slices(len(keep)))] = True
    if protocol.skip_empty:
        keep &= (label > 0).flatten(0, 1).any(0)
    return mask & keep


def _stack(image: torch.Tensor) -> torch.Tensor:
    """``(C, *spatial)`` to a batch: itself, or its slices along the last axis."""
    return image[None] if image.ndim == 3 else image.movedim(-1, 0)


def mean_masks(labels: Sequence[torch.Tensor], masks_of: Any) -> torch.Tensor:
    """The constant prediction ``(K, *spatial)``: where the training masks of a region agree by more than half."""
    total = sum(masks_of(label[None])[0].float() for label in labels)
    return total / len(labels) > 0.5
