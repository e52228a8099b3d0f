"""Which scans train, which support and which are segmented; volumes as stacks of slices; training episodes."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset
from monai.utils import ensure_tuple
from torch.utils.data import Dataset

from common.data import (
    CaseDataset,
    CaseFacts,
    DataError,
    Preprocessing,
    check_dataset,
    ensure_sample_data,
    image_names,
    natural_key,
    read_dataset,
    refuse_foreign,
    refuse_other_kinds,
    refuse_shared,
)
from common.data.draws import drawing
from common.data.items import file_stem
from common.data.paths import as_path

from .sample import generate_sample_data
from .superpixels import Superpixels

logger = logging.getLogger(__name__)
PAIRINGS = ("same_part", "any")
FOLDS = 5


def read_datalist(
    dataset_dir: str,
    bundle_root: str,
    preprocessing: Preprocessing,
    fold: int = 0,
    support: str = "next_scan",
    support_scans: int | None = None,
    novel_labels: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Read, check and split a data set; the sample data is generated when ``dataset_dir`` is its place and is missing.

    ``validation`` of dataset.json, where there is one, holds the queries; the supports are the scans of the data set in
    the folder ``support``, where there is one, or else the first training scan. Otherwise the queries are fold ``fold``
    of ``folds``, or of the items' ``fold`` (default: five contiguous blocks of the cases in natural order), and the
    supports come from the scans after it. Queries and supports are not trained on.

    Args:
        preprocessing: of the images: their channels and kinds.
        support: ``next_scan`` (the scan after the fold, as SSL-ALPNet), ``first`` or ``last`` of the other scans, or a
            case id.
        support_scans: in its place so many supports: the first scan of each of the next folds, for the spread.
        novel_labels: ids never trained on and validated on; default the highest id.

    Returns:
        ``training`` and ``validation`` (each query names its ``support`` scans), ``labels`` (id to name),
        ``novel_labels``, ``facts`` (what the check saw, by split), ``sample`` (these are the sample data) and ``names``
        (of the images trained on).

    Raises:
        DataError: anything wrong with the data set, the fold, the support or the labels; all bad cases at once.
    """
    directory = as_path(dataset_dir, "dataset_dir")
    sample = ensure_sample_data(directory, bundle_root, generate_sample_data)
    dataset, facts = read_scans(directory, preprocessing)
    if dataset.validation and (directory / "support").is_dir():
        facts["support"] = read_scans(directory / "support", preprocessing)[1]["training"]
    asked = [max(dataset.labels)] if novel_labels is None else ensure_tuple(novel_labels)
    novel = [int(label) if str(label).isdecimal() else label for label in asked]
    unknown = [str(label) for label in novel if label not in dataset.labels]
    if unknown:
        raise DataError(f"novel_labels: expected some of {dataset.labels}, the labels of "
                        f"{directory / 'dataset.json'}, found {', '.join(unknown)}")  # fmt: skip
    if dataset.validation and (dataset.folds or fold != 0 or support != "next_scan" or support_scans is not None):
        logger.warning("%s: its `validation` says what is segmented; folds, fold and support are not used.", directory)
    training, queries, supports = split_scans(dataset, fold, str(support), support_scans)
    refuse_shared({"training": training, "queries": queries, "supports": supports}, facts, directory)
    names = {label: dataset.labels[label] for label in novel}
    shown = {fact.image: fact.label_ids for split in facts.values() for fact in split}
    blank = [f"support {scan['case']}: expected novel label {label} ({names[label]}), found {shown[scan['image']]}; "
             "choose another support" for scan in supports for label in novel if label not in shown[scan["image"]]]
    if blank:
        raise DataError.of(blank, str(directory / "dataset.json"))
    queries = [{**item, "support": supports, "novel_labels": names} for item in queries]
    return {
        "training": training,
        "validation": queries,
        "labels": dataset.labels,
        "novel_labels": names,
        "facts": facts,
        "sample": sample,
        "names": image_names(training=training),
    }


def read_scans(directory: str | Path, preprocessing: Preprocessing) -> tuple[Any, dict[str, list[CaseFacts]]]:
    """A data set of volumes, and what the check saw of it, by split.

    Raises:
        DataError: there are photographs; with every problem of the files.
    """
    dataset = read_dataset(directory)
    refuse_other_kinds(dataset.images, preprocessing.kinds)
    return dataset, check_dataset(dataset, channels=preprocessing.channels)


class QueryDataset(Dataset):
    """Query scans to be segmented, each with its support scans: what validation and evaluation run on.

    Items of ``data`` may name their ``support`` items and ``novel_labels`` (id to name); without them (a list of images
    and labels alone, as MONAI Label hands over) the first scan of the list supports the others, and the highest id is
    the class.

    Args:
        transform: deterministic; the image comes out at the network's size, the label at the scan's own.
    """

    def __init__(self, data: Sequence[dict], transform: Callable) -> None:
        self.queries = list(data)
        if self.queries and "support" not in self.queries[0]:
            rest = self.queries[1:] or self.queries
            self.queries = [{**item, "support": self.queries[:1]} for item in rest]
        everyone = [scan for item in self.queries for scan in (item, *item["support"])]
        items = list({str(scan["image"]): scan for scan in everyone}.values())
        self.cases = CaseDataset(items, transform)
        self._place = {str(scan["image"]): index for index, scan in enumerate(items)}
        self._scans: dict[str, dict] = {}

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.queries[index]
        scan = self._scan(item)
        supports = [self._scan(support) for support in item["support"]]
        highest = max(int(support["label"].max()) for support in supports)
        return {**scan, "support": supports, "novel_labels": item.get("novel_labels") or {highest: f"label {highest}"}}

    def _scan(self, item: dict) -> dict[str, Any]:
        """A transformed scan; every scan is read once."""
        key = str(item["image"])
        if key not in self._scans:
            self._scans[key] = as_slices(self.cases[self._place[key]])
        return self._scans[key]


def as_slices(case: dict[str, Any]) -> dict[str, Any]:
    """A scan of :class:`common.data.CaseDataset` as a stack of slices.

    ``image`` (D, 1, H, W) at the network's size; ``label`` (D, H', W'), ``native`` (H', W', D) at the scan's own.
    """
    return case | {
        "image": slices(case["image"]), "label": slices(case["label"][None])[:, 0], "native": case["native"][0]
    }  # fmt: skip


def split_scans(
    dataset: Any, fold: int, support: str, support_scans: int | None = None
) -> tuple[list[dict], list[dict], list[dict]]:
    """Training scans, query scans and support scans of one fold (see :func:`read_datalist`)."""
    if dataset.validation:
        folder = dataset.directory / "support"
        supports = read_dataset(folder).training if folder.is_dir() else dataset.training[:1]
        training = [item for item in dataset.training if item not in supports]
        if not training:
            raise DataError(f"{dataset.directory}: no scan is left to train on: the only one of `training` is the "
                            "support. Add labelled scans, of other organs too.")  # fmt: skip
        return training, list(dataset.validation), supports
    cases = Counter(item["case"] for item in dataset.training)
    if several := [case for case, count in cases.items() if count > 1]:
        raise DataError(f"{dataset.directory}: several scans share the case {', '.join(several)}: folds are made of "
                        "cases with one scan each. Keep one of them, or write `validation` by hand.")  # fmt: skip
    scans = {item["case"]: item for item in sorted(dataset.training, key=lambda item: natural_key(item["case"]))}
    folds = dataset.folds or [list(block) for block in np.array_split(np.array(list(scans)), min(FOLDS, len(scans)))]
    if not 0 <= fold < len(folds) or len(scans) < 3:
        raise DataError(
            f"{dataset.directory}: {len(scans)} labelled scans and {len(folds)} folds; asked for fold {fold}. Few-shot "
            "training needs a query, a support and at least one scan to train on: add scans, or a `validation` list."
        )
    folds = [[str(case) for case in block] for block in folds]
    others = [case for case in scans if case not in folds[fold]]
    chosen = _choose_supports(folds, fold, others, support, support_scans)
    training = [scans[case] for case in others if case not in chosen]
    return training, [scans[case] for case in folds[fold]], [scans[case] for case in chosen]


def _choose_supports(
    folds: list[list[str]], fold: int, others: list[str], support: str, support_scans: int | None
) -> list[str]:
    if support_scans is not None:
        if support_scans < 1:
            raise DataError(f"support_scans: expected null or a number from 1 on, found {support_scans}.")
        return [folds[(fold + step) % len(folds)][0] for step in range(1, min(support_scans, len(folds) - 1) + 1)]
    if support == "next_scan":
        return [next((case for case in others if natural_key(case) > natural_key(folds[fold][-1])), others[0])]
    if support in ("first", "last"):
        return [others[0] if support == "first" else others[-1]]
    if support in others:
        return [support]
    raise DataError(
        f"support {support!r}: expected next_scan, first, last, or a case outside fold {fold}: {others}."
    )


def slices(volume: torch.Tensor) -> torch.Tensor:
    """``(1, H, W, D)`` to a contiguous stack of slices ``(D, 1, H, W)``; a view would slow interpolation eightfold."""
    return torch.as_tensor(volume).as_subclass(torch.Tensor).permute(3, 0, 1, 2).contiguous()


def part_of(z: np.ndarray | int, first: int, last: int) -> Any:
    """The third 0, 1 or 2 of slice ``z`` in an organ from ``first`` to ``last`` (SSL-ALPNet's protocol)."""
    return np.clip((np.asarray(z) - first) * 3 // max(last - first, 1), 0, 2)


class EpisodeDataset(Dataset):
    """Training episodes: ``shots`` support slices with masks and one query slice of one class.

    An episode is a base class (masks of the data, the novel labels being background: "setting 1") or, with probability
    ``superpixel_share``, a superpixel of one slice seen under two augmentations. Item ``index`` of epoch ``epoch`` is a
    function of (seed, epoch, index) alone, so that workers, order and resuming do not change it.

    Source: Huang et al., ACM MM 2024, section 4.1 (episodes of the base classes); superpixel episodes after Ouyang et
    al., ECCV 2020. The pairing of slices is not printed.

    Args:
        data: items with ``image`` and ``label`` paths.
        transform: deterministic transforms, from paths to ``(1, H, W, D)`` image and label.
        novel_labels: ids left out; null leaves out the highest id found.
        episodes: length of an epoch.
        pairing: support and query slices from the same third of the organ in two scans (``same_part``), or ``any`` two
            slices.
        min_fg: foreground pixels a slice needs to be drawn.
        augmentation: random dictionary transform of ``image`` and ``mask`` ``(1, H, W)``, applied to each slice.
        flip: mirror support and query together, half of the time.
        superpixels: null trains on base classes alone.
        sample: the data set is the sample data.

    Raises:
        DataError: nothing to draw episodes from; other people's images with the sample data.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Callable,
        novel_labels: Sequence[int] | None = None,
        episodes: int = 100,
        shots: int = 1,
        pairing: str = "same_part",
        min_fg: int = 100,
        augmentation: Callable | None = None,
        flip: bool = False,
        superpixels: Superpixels | None = None,
        superpixel_share: float = 0.5,
        seed: int = 0,
        sample: bool = False,
    ) -> None:
        if pairing not in PAIRINGS:
            raise ValueError(f"pairing: expected one of {', '.join(PAIRINGS)}, found {pairing!r}.")
        refuse_foreign(data, sample)
        self.scans = _read_scans(data, transform)
        self.episodes, self.shots, self.pairing, self.seed, self.epoch = episodes, shots, pairing, seed, 0
        self.augmentation, self.flip = augmentation, flip
        self.superpixels, self.superpixel_share = superpixels, superpixel_share if superpixels is not None else 0.0
        found = sorted({int(label) for scan in self.scans for label in scan["label"].unique()} - {0})
        self.novel_labels = list(novel_labels) if novel_labels is not None else found[-1:]
        self.table = {label: rows for label in found if label not in self.novel_labels
                      and len(rows := self._slices_with(label, min_fg)) > shots}  # fmt: skip
        rest = [str(label) for label in found if label not in self.table and label not in self.novel_labels]
        if rest:
            logger.warning("not trained on label %s: no more than %d slices of %d pixels (min_fg).", ", ".join(rest),
                           shots, min_fg)  # fmt: skip
        if self.superpixel_share:
            superpixels.fit(self.scans)
        if not self.table and not self.superpixel_share:
            raise DataError(
                f"no class to train on: labels {found} without the novel ones {self.novel_labels} leave nothing with "
                f"more than {shots} slices of {min_fg} pixels; name fewer, lower min_fg, or add superpixels."
            )

    def _slices_with(self, label: int, min_fg: int) -> list[tuple[int, int, int]]:
        """(scan, slice, part) of every slice that shows enough of a label."""
        rows = []
        for index, scan in enumerate(self.scans):
            area = (scan["label"] == label).sum((1, 2)).numpy()
            if not area.any():
                continue
            inside = np.flatnonzero(area)
            rows += [
                (index, int(z), int(part_of(z, inside[0], inside[-1])))
                for z in np.flatnonzero(area >= max(min_fg, 1))
            ]
        return rows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.episodes

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        if not self.table or rng.random() < self.superpixel_share:
            label, pairs, names = 0, *self._superpixel_episode(rng)
        else:
            label = int(rng.choice(list(self.table)))
            rows = self._draw(self.table[label], rng)
            pairs = [
                (self.scans[s]["image"][z], (self.scans[s]["label"][z] == label)[None].float()) for s, z, _ in rows
            ]
            names = [f"{self.scans[s]['case']}[{z}]" for s, z, _ in rows]
        with drawing():
            pairs = [self._augment(image, mask, rng) for image, mask in pairs]
        if self.flip and rng.random() < 0.5:
            pairs = [(image.flip(1), mask.flip(1)) for image, mask in pairs]  # axis 1 of (1, H, W) is left-right
        return {
            "support": torch.stack([image for image, _ in pairs[:-1]]),
            "support_mask": torch.stack([mask for _, mask in pairs[:-1]]),
            "query": pairs[-1][0],
            "query_mask": pairs[-1][1],
            "label": label,
            "case": " ".join(names),
        }

    def _draw(self, rows: list[tuple[int, int, int]], rng: np.random.Generator) -> list[tuple[int, int, int]]:
        """``shots`` support rows and a query row, the query last."""
        query = rows[rng.integers(len(rows))]
        rest = [row for row in rows if row != query]
        other = [row for row in rest if row[0] != query[0]]
        candidates = rest if self.pairing == "any" else [row for row in other if row[2] == query[2]]
        # too few of the same part: other scans, then anything but the query itself
        for more in (other, rest):
            if len(candidates) < self.shots:
                candidates = more
        chosen = rng.choice(len(candidates), self.shots, replace=False)
        return [candidates[i] for i in chosen] + [query]

    def _superpixel_episode(self, rng: np.random.Generator) -> tuple[list, list[str]]:
        scan, z, mask = self.superpixels.draw(rng)
        image = self.scans[scan]["image"][z]
        return [(image, mask)] * (self.shots + 1), [f"{self.scans[scan]['case']}[{z}]"] * (self.shots + 1)

    def _augment(self, image: torch.Tensor, mask: torch.Tensor, rng: np.random.Generator) -> tuple:
        """One random view; drawn again while the mask has left the image, then given up: no episode is empty."""
        if self.augmentation is None:
            return image, mask
        for _ in range(10):
            self.augmentation.set_random_state(seed=int(rng.integers(2**31)))
            view = self.augmentation({"image": image, "mask": mask})
            moved = torch.as_tensor(view["mask"]).as_subclass(torch.Tensor)
            if moved.any():
                return torch.as_tensor(view["image"]).as_subclass(torch.Tensor), moved
        return image, mask


def _read_scans(data: Sequence[dict], transform: Callable) -> list[dict[str, Any]]:
    """Slices ``(D, 1, H, W)`` of each image, ``(D, H, W)`` of its label, and its case."""
    return [
        {
            "image": slices(item["image"]),
            "label": slices(item["label"])[:, 0].to(torch.uint8),
            "case": str(source.get("case") or file_stem(source["image"])),
        }
        for item, source in zip(CacheDataset(data, transform, num_workers=1), data, strict=True)
    ]
