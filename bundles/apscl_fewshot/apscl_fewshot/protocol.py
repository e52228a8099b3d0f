"""Whole scans from annotated ones: the support bank and the protocols of evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data import DataError
from common.engine import refuse_bad_logits

from .data import part_of
from .decoders import Code

Embedded = tuple[torch.Tensor, torch.Tensor]  # features and body frames of a stack of slices
ADAPTED = "adapted"
PROTOCOLS = {"parts3": 3, "ep2": 1, "no_oracle": 3, ADAPTED: None}  # name: support slices per scan; null: all of them


def support_slices(inside: Sequence[int], parts: int = 3) -> list[int]:
    """The annotated slice of each part: the middle of every third of the organ's slices (q = 1/6, 3/6, 5/6)."""
    return [int(inside[int((2 * part + 1) / (2 * parts) * len(inside))]) for part in range(parts)]


def embed_slices(network: nn.Module, images: torch.Tensor, batch: int = 16) -> Embedded:
    """Embed a stack of slices ``(D, C, H, W)`` a few at a time, so that memory does not grow with the scan."""
    parts = [network.embed(chunk) for chunk in images.split(batch)]
    return torch.cat([features for features, _ in parts]), torch.cat([frames for _, frames in parts])


class SupportBank:
    """What a network keeps of K annotated scans: a code for every class and part, each slice encoded once.

    Args:
        network: a :class:`~apscl_fewshot.network.FewShotNetwork` in evaluation mode.
        scans: K items with ``image`` ``(D, 1, H, W)``, ``label`` ``(D, H', W')`` and ``case``.
        labels: N class ids.
        parts: support slices per scan and class, spread over the organ's extent.

    Raises:
        DataError: a scan does not show a class asked for; every missing pair is listed.
    """

    def __init__(self, network: nn.Module, scans: Sequence[dict], labels: Sequence[int], parts: int = 3) -> None:
        rows = choose_support(scans, labels, parts)
        self.labels = [int(label) for label in labels]
        self.parts = parts
        needed = sorted({(index, z) for shots in rows.values() for shot in shots for index, z in shot})
        device = next(network.parameters()).device
        images = torch.stack([scans[index]["image"][z] for index, z in needed]).to(device)
        place = {row: position for position, row in enumerate(needed)}
        with torch.no_grad():
            embedded, frames = embed_slices(network, images)
            self.codes: dict[int, list[Code]] = {label: [] for label in self.labels}
            self.keys: dict[int, list[torch.Tensor]] = {label: [] for label in self.labels}
            for label, shots in rows.items():
                for shot in shots:
                    chosen = [place[row] for row in shot]
                    features = embedded[chosen]
                    masks = torch.stack([(scans[index]["label"][z] == label)[None].float() for index, z in shot])
                    self.codes[label].append(network.condition(features, frames[chosen], masks.to(device)))
                    self.keys[label].append(slice_key(features).mean(0))


def choose_support(scans: Sequence[dict], labels: Sequence[int], parts: int) -> dict[int, list[list[tuple[int, int]]]]:
    """For every class, for every part, one (scan, slice) per scan.

    Raises:
        DataError: as :func:`shown_in`.
    """
    rows: dict[int, list[list[tuple[int, int]]]] = {}
    for label, inside in shown_in(scans, labels).items():
        chosen = [support_slices(slices, parts) for slices in inside]
        rows[label] = [[(index, chosen[index][part]) for index in range(len(scans))] for part in range(parts)]
    return rows


def shown_in(scans: Sequence[dict], labels: Sequence[int]) -> dict[int, list[np.ndarray]]:
    """For every class, the slices of each scan that show it.

    Raises:
        DataError: a scan does not show a class; every missing pair is listed.
    """
    rows: dict[int, list[np.ndarray]] = {}
    missing = []
    for label in labels:
        inside = [np.flatnonzero((scan["label"] == label).flatten(1).any(1).numpy()) for scan in scans]
        rows[int(label)] = inside
        missing += [
            f"{scan['case']}: expected label {label} in the support mask, found {scan['label'].unique().tolist()}"
            for scan, slices in zip(scans, inside, strict=True)
            if len(slices) == 0
        ]
    if missing:
        raise DataError(
            "the support does not show what it should teach; annotate it or leave the class out:\n  "
            + "\n  ".join(missing)
        )
    return rows


def slice_key(features: torch.Tensor) -> torch.Tensor:
    """A slice's appearance for finding its part: features at 4 x 4 places, unit length ``(B, A * 16)``."""
    pooled = F.adaptive_avg_pool2d(features.float(), 4).flatten(1)
    return F.normalize(pooled - pooled.mean(1, keepdim=True), dim=1)


def segment(
    network: nn.Module, bank: SupportBank, embedded: Embedded, label: int, size: Sequence[int], parts: Any = None
) -> torch.Tensor:
    """Log-odds ``(D, *size)`` of one class for D embedded slices.

    ``parts`` gives each slice's part; without it (no oracle) a slice takes the part whose support slice looks most
    like it.
    """
    features, frames = embedded
    logits = torch.stack([network.decode(features, frames, code, list(size)) for code in bank.codes[label]])
    odds = logits[:, :, 1] - logits[:, :, 0]
    if parts is None:
        parts = (slice_key(features) @ torch.stack(bank.keys[label]).T).argmax(1)
    return odds[torch.as_tensor(parts, device=odds.device), torch.arange(len(features), device=odds.device)]


def predict(
    network: nn.Module, bank: SupportBank, embedded: Embedded, truth: torch.Tensor, label: int, protocol: str,
    case: str = "the query",
) -> tuple[torch.Tensor, torch.Tensor, int]:  # fmt: skip
    """Binary prediction and truth ``(D', H', W')`` over the slices that the protocol scores, and the first of them.

    - ``parts3``: one support slice for each third of the organ, whose extent in the query is known (an oracle); only
      slices inside it count (Ouyang et al. 2020).
    - ``ep2``: one middle support slice; every slice of the scan counts (Hansen et al. 2022).
    - ``no_oracle``: three support slices, each query slice finds its own; every slice counts.

    For ``adapted`` see :func:`predict_adapted`.

    Raises:
        FloatingPointError: log-odds of ``case`` are not finite.
    """
    truth = truth == label
    size = truth.shape[1:]
    if protocol == "parts3":
        first, last = extent(truth)
        parts = part_of(np.arange(first, last + 1), first, last)
        inside = tuple(part[first : last + 1] for part in embedded)
        odds = segment(network, bank, inside, label, size, parts)
        truth = truth[first : last + 1]
    else:
        parts = np.zeros(len(truth), int) if protocol == "ep2" else None
        odds, first = segment(network, bank, embedded, label, size, parts), 0
    refuse_bad_logits(odds, case)
    return odds > 0, truth, first


def predict_adapted(
    network: nn.Module, prototypes: torch.Tensor, positions: torch.Tensor, images: torch.Tensor, size: Sequence[int],
    case: str = "the query", batch: int = 16,
) -> torch.Tensor:  # fmt: skip
    """Class ``(D, *size)``, 0 to N, of slices ``(D, C, H, W)`` by what :class:`.Adaptation` gave.

    The protocol ``adapted``: the network has learned from all slices of the annotated scans; every slice counts.

    Raises:
        FloatingPointError: logits of ``case`` are not finite.
    """
    found = []
    for chunk in images.split(batch):
        logits = network.classify(*network.embed(chunk), prototypes, positions, list(size))
        refuse_bad_logits(logits, case)
        found.append(logits.argmax(1))
    return torch.cat(found)


def copy_mask(scan: dict, truth: torch.Tensor, label: int, protocol: str) -> torch.Tensor:
    """The floor: the support's mask laid over the query, slice for slice as the protocol assigns them.

    ``no_oracle`` knows no extent: the support's organ is stretched to the same share of the scan's depth.
    """
    mask = (scan["label"] == label).float()[:, None]
    inside = np.flatnonzero(mask.flatten(1).any(1).numpy())  # before a smaller grid loses an organ of few pixels
    mask = F.interpolate(mask, size=truth.shape[1:], mode="nearest-exact")[:, 0]
    if protocol == "parts3":
        first, last = extent(truth == label)
        return mask[np.array(support_slices(inside))[part_of(np.arange(first, last + 1), first, last)]]
    if protocol == "ep2":
        return mask[support_slices(inside, 1)].expand(len(truth), -1, -1)
    return mask[(np.arange(len(truth)) * len(mask)) // len(truth)]


def extent(truth: torch.Tensor) -> tuple[int, int]:
    """First and last slice that show the structure."""
    inside = np.flatnonzero(truth.flatten(1).any(1).cpu().numpy())
    return int(inside[0]), int(inside[-1])
