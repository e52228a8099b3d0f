"""Which cases keep their labels; pairs of a labelled and an unlabelled image; labels of unlabelled cases stay shut."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data
from tqdm import tqdm

from common.data import (
    CaseFacts,
    DataError,
    Dataset,
    Preprocessing,
    check_dataset,
    image_names,
    read_dataset,
    refuse_foreign,
    refuse_other_kinds,
    say_that_folds_are_not_read,
)
from common.data.draws import drawing, endless, plain, slices
from common.data.photograph import is_photograph

logger = logging.getLogger(__name__)
FEW = 2  # fewer labelled cases that show a class are worth a warning


def read_semi_supervised(
    dataset_dir: str | Path,
    preprocessing: Preprocessing,
    labelled: int | None = None,
    need_unlabeled: bool = True,
    spatial_dims: int = 3,
    patch_size: Sequence[int] = (32, 32, 32),
) -> dict[str, Any]:
    """Read and check a data set; no label of a case that trains without one is opened.

    Warns once of the classes that fewer than two of the labelled cases show.

    Args:
        preprocessing: of the images: their channels, kinds and zoom.
        labelled: so many cases of ``training`` keep their labels, the first ones; the images of the others join
            ``unlabeled``. null keeps all. A case with several images (time points) counts once.
        need_unlabeled: false where nothing is learnt from unlabelled cases.
        spatial_dims, patch_size: of the training: 2 for slices; one length an axis of these.

    Returns:
        ``training``, ``unlabeled``, ``validation``, ``test`` (items; those of ``test`` that have a label), ``labels``
        (id to name), ``facts`` (what the check saw, by split) and ``names`` (of the images trained on).

    Raises:
        ValueError: ``patch_size`` or ``zoom`` does not fit.
        DataError: the ids of the labels have gaps; ``labelled`` does not fit; there is no unlabelled case; photographs
            among volumes; with every problem of the files.
    """
    dataset = read_dataset(dataset_dir)
    file = dataset.directory / "dataset.json"
    _refuse_gaps(sorted(dataset.labels), file)
    say_that_folds_are_not_read(dataset)
    if labelled is not None:
        dataset = keep_labels(dataset, labelled)
    if need_unlabeled and not dataset.unlabeled:
        raise DataError(
            f"{file}: expected unlabelled cases, found none in `unlabeled` and a label for each case of `training`; "
            "add images to `unlabeled`, keep fewer labels (`labelled`), or train on labels alone (supervised.json)."
        )
    refuse_other_kinds(dataset.images, preprocessing.kinds)
    facts = check_dataset(dataset, channels=preprocessing.channels, channels_option="preprocessing_def::channels")
    _check_sizes(spatial_dims, patch_size, preprocessing.zoom, dataset.images)
    _warn_of_rare_classes(dataset, facts["training"])
    return {
        "training": dataset.training,
        "unlabeled": dataset.unlabeled,
        "validation": dataset.validation,
        "test": [item for item in dataset.test if "label" in item],
        "labels": dataset.labels,
        "facts": facts,
        "names": image_names(training=dataset.training, unlabeled=dataset.unlabeled if need_unlabeled else []),
    }


def _refuse_gaps(labels: Sequence[int], file: Path) -> None:
    """Raises DataError: ids other than 1 to n; the 255 of a mask would make a network of 256 channels."""
    if list(labels) != list(range(1, 1 + len(labels))):
        raise DataError(
            f"{file}: expected `labels` numbered 1 to {len(labels)} without gaps, as the network has a channel for "
            f"each id up to the highest, found {list(labels)}; renumber them there and in the label files."
        )


def _check_sizes(
    spatial_dims: int, patch_size: Sequence[int], zoom: float | Sequence[float] | None, images: Sequence[str]
) -> None:
    """Raises ValueError: lengths that the network and the images have no axes for."""
    problems = []
    lengths = list(patch_size) if isinstance(patch_size, Sequence) else [patch_size]
    if len(lengths) != spatial_dims or min(lengths) < 1:
        kind = "slices" if spatial_dims == 2 else "volumes"
        problems.append(f"patch_size: expected {spatial_dims} lengths for {kind} (spatial_dims {spatial_dims}), "
                        f"found {patch_size}")  # fmt: skip
    axes = sorted({2 if is_photograph(image) else 3 for image in images})
    several = f", or {axes[0]}, one for each axis of an image" if len(axes) == 1 else ""  # no list fits both kinds
    factors = list(zoom) if isinstance(zoom, Sequence) else [1.0 if zoom is None else zoom]
    if (isinstance(zoom, Sequence) and [len(factors)] != axes) or min(factors) <= 0:
        problems.append(f"zoom: expected a number above 0{several}, found {zoom}")
    if problems:
        raise ValueError("; ".join(problems))


def keep_labels(dataset: Dataset, labelled: int) -> Dataset:
    """The data set in which only the first ``labelled`` cases of ``training`` have a label, and others are unlabelled.

    Raises:
        DataError: ``labelled`` does not fit.
    """
    cases = list(dict.fromkeys(item["case"] for item in dataset.training))
    if not (isinstance(labelled, int) and 1 <= labelled <= len(cases)):
        raise DataError(f"labelled: expected 1 to {len(cases)}, the labelled cases of `training` in "
                        f"{dataset.directory / 'dataset.json'}, found {labelled}")  # fmt: skip
    kept = set(cases[:labelled])
    others = [{key: value for key, value in item.items() if key != "label"}
              for item in dataset.training if item["case"] not in kept]  # fmt: skip
    training = [item for item in dataset.training if item["case"] in kept]
    return replace(dataset, training=training, unlabeled=dataset.unlabeled + others)


def _warn_of_rare_classes(dataset: Dataset, facts: Sequence[CaseFacts]) -> None:
    cases = {fact.case for fact in facts}
    rare = []
    for label, name in dataset.labels.items():
        shown = sorted({fact.case for fact in facts if label in fact.label_ids})
        if len(shown) < FEW:
            rare.append(f"{name} ({shown[0]} alone)" if shown else f"{name} (none)")
    if rare:
        logger.warning("%s: too few of the %d labelled cases show %s; expect little there, or label cases that do.",
                       dataset.directory / "dataset.json", len(cases), ", ".join(rare))  # fmt: skip


class PairDataset(torch.utils.data.Dataset):
    """A labelled image with its label and an unlabelled image, each augmented on its own.

    What draw number ``draw`` of epoch ``epoch`` makes of an image is a function of (seed, epoch, draw) alone, so that
    workers and resuming do not change it; the labelled images are the same with and without unlabelled ones. All
    volumes are read at once and kept; they are taken slice by slice when ``spatial_dims`` is 2.

    Args:
        data: items with ``image`` and ``label`` paths.
        unlabeled: items with ``image`` paths; a label is not looked at.
        transform: deterministic dictionary transform of ``image`` and, where there is one, ``label``
            (``allow_missing_keys``), from paths to ``(C, *spatial)`` and ``(1, *spatial)``.
        augmentation: random dictionary transform of the same keys; null draws the images as they are.
        sample: the data set is the sample data.

    Raises:
        DataError: nothing to train on; other people's images with the sample data.
    """

    def __init__(
        self,
        data: Sequence[dict],
        unlabeled: Sequence[dict],
        transform: Callable,
        augmentation: Callable | None,
        spatial_dims: int = 3,
        seed: int = 0,
        sample: bool = False,
    ) -> None:
        refuse_foreign(data, sample)
        self.labelled = _read(data, ("image", "label"), transform, spatial_dims)
        self.unlabeled = _read(unlabeled, ("image",), transform, spatial_dims)
        if not self.labelled:
            raise DataError("0 images to train on: `training` is empty; add labelled images.")
        self.augmentation, self.seed, self.epoch = augmentation, seed, 0

    def __len__(self) -> int:
        return len(self.labelled)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int | None, int]) -> dict[str, Any]:
        """Of (labelled image, unlabelled image or None, number of the draw); of a number alone, that labelled image."""
        index, other, draw = key if isinstance(key, tuple) else (key, None, key)
        with drawing():
            item = self._draw(self.labelled[index], draw, 0)
            item["label"] = item["label"].long()
            if other is None:
                return item
            found = self._draw(self.unlabeled[other], draw, 1)
            return item | {"unlabeled": found["image"], "unlabeled_case": found["case"]}

    def _draw(self, item: dict[str, Any], draw: int, stream: int) -> dict[str, Any]:
        done = {key: item[key] for key in ("image", "label") if key in item}
        if self.augmentation is not None:
            rng = np.random.default_rng([self.seed, self.epoch, draw, stream])
            self.augmentation.set_random_state(seed=int(rng.integers(2**31)))
            done = self.augmentation(done)
        return {key: plain(value).float() for key, value in done.items()} | {"case": item["case"]}


def _read(items: Sequence[dict], keys: Sequence[str], transform: Callable, spatial_dims: int) -> list[dict[str, Any]]:
    found = []
    for item in tqdm(items, desc="reading", unit="image", disable=None):
        done = transform({key: item[key] for key in keys})
        image, label = (plain(done[key]) if key in keys else None for key in ("image", "label"))
        case = str(item.get("case") or item["image"])
        for view, mask in slices(image.float(), None if label is None else label.to(torch.uint8), spatial_dims):
            found.append({"image": view, "case": case} | ({} if mask is None else {"label": mask}))
    return found


class PairSampler(torch.utils.data.Sampler):
    """Batches of pairs; labelled and unlabelled images are reshuffled for ever, each on their own.

    In ``len(dataset)`` draws each labelled image comes once, and so do the unlabelled ones in as many draws as there
    are of them, also across the ends of epochs.

    Args:
        dataset: a :class:`PairDataset`.
        batch_size: pairs in a batch.
        iterations: batches in an epoch.

    Yields:
        lists of (labelled image, unlabelled image or None where there is none, number of the draw in the epoch).
    """

    def __init__(self, dataset: PairDataset, batch_size: int, iterations: int, seed: int = 0) -> None:
        self.sizes = len(dataset.labelled), len(dataset.unlabeled)
        self.batch_size, self.iterations, self.seed, self.epoch = batch_size, iterations, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[tuple[int, int | None, int]]]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        labelled, unlabeled = (self._stream(number, size, rank) for number, size in enumerate(self.sizes))
        draw = rank * self.iterations * self.batch_size  # no two processes draw the same
        for _ in range(self.iterations):
            yield [(next(labelled), next(unlabeled), draw + i) for i in range(self.batch_size)]
            draw += self.batch_size

    def _stream(self, number: int, size: int, rank: int) -> Iterator[int | None]:
        """From where the epoch before it ended."""
        if size == 0:
            return repeat(None)
        shuffled = endless(np.arange(size), np.random.default_rng([self.seed, rank, number]))
        return islice(shuffled, self.epoch * self.iterations * self.batch_size, None)
