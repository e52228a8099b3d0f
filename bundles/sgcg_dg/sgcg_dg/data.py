"""Which domains train and which is left out; images as tensors; batches that hold every domain."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import ensure_tuple
from torch.utils.data import Dataset, Sampler

from common.data import (
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
    say_that_folds_are_not_read,
)
from common.data.draws import drawing, endless, plain, slices
from common.data.paths import as_path

from .regions import Regions
from .sample import generate_sample_data

POLICIES = ("equal", "proportional")
LEAST = 2  # images of a domain in a batch: its batch norm sees no one image alone
VALIDATION_SHARE = 5  # one of so many source cases validates, in a domain that dataset.json gives no validation case


def read_datalist(
    dataset_dir: str,
    bundle_root: str,
    preprocessing: Preprocessing,
    regions: Mapping[str, Sequence[int]],
    target_domain: str | None = None,
    source_domains: Sequence[str] | None = None,
    single_source: bool = False,
    allow_missing: bool = False,
) -> dict[str, Any]:
    """Read, check and split a data set by domain; the sample data is generated when its folder is missing.

    Labelled cases of the target domain, of every split, are ``test``: they are never trained on and never choose a
    checkpoint. ``validation`` and ``test`` of dataset.json may be all there is of it.
    Source cases of ``validation`` choose the checkpoint; a source domain without any gives every fifth of its training
    cases, the last ones in natural order.

    Args:
        preprocessing: of the images: their channels and kinds.
        regions: name to label ids (see :class:`~sgcg_dg.regions.Regions`).
        target_domain: the domain left out; null takes the last in alphabetical order, ``none`` leaves none out, unless
            a domain has that name.
        source_domains: the domains to train on; null takes all others.
        single_source: train on one domain alone; amplitudes then come from other images of the same domain.
        allow_missing: accept training cases that do not show every region.

    Returns:
        ``training``, ``validation``, ``test`` (items), ``domains`` (sources in alphabetical order), ``target``,
        ``labels`` (id to name), ``facts`` (what the check saw, by split), ``sample`` (these are the sample data) and
        ``names`` (of the images trained on).

    Raises:
        DataError: images of the other kind; with every problem of the files at once; of files that can be read, with
            every problem of the regions and of items without a domain; then with every problem of the choice of domains
            and of masks that lack one; then with every case or image that both trains and is scored.
    """
    directory = as_path(dataset_dir, "dataset_dir")
    sample = ensure_sample_data(directory, bundle_root, generate_sample_data)
    dataset = read_dataset(directory)
    refuse_other_kinds(dataset.images, preprocessing.kinds)
    say_that_folds_are_not_read(dataset)
    facts = check_dataset(dataset, channels=preprocessing.channels, channels_option="preprocessing_def::channels")
    problems = Regions.problems(regions, dataset.labels)
    labelled = dataset.training + dataset.validation
    problems += [f"{item['case']}: expected a \"domain\", found none; name the hospital or scanner it comes from"
                 for item in labelled if "domain" not in item]  # fmt: skip
    if problems:
        raise DataError.of(problems, str(directory / "dataset.json"))
    target, sources, problems = choose_domains(dataset, target_domain, source_domains, single_source)
    if not allow_missing:
        kept, cases = Regions(regions, dataset.labels), {item["case"] for item in labelled if item["domain"] in sources}
        problems += [problem for fact in facts["training"] + facts["validation"] if fact.case in cases
                     for problem in kept.missing(fact.case, fact.label_ids)]  # fmt: skip
    if problems:
        raise DataError.of(problems, str(directory / "dataset.json"))
    training, validation = _split(dataset, sources)
    test = [item for item in labelled + _labelled_test(dataset) if item["domain"] == target]
    refuse_shared({"training": training, "validation": validation, f"the target {target}": test}, facts, directory)
    return {
        "training": training,
        "validation": validation,
        "test": test,
        "domains": sources,
        "target": target,
        "labels": dataset.labels,
        "facts": facts,
        "sample": sample,
        "names": image_names(training=training),
    }


def choose_domains(
    dataset: Any, target_domain: str | None, source_domains: Sequence[str] | None, single_source: bool
) -> tuple[str | None, list[str], list[str]]:
    """Target, sources, and one line for everything wrong with them."""
    counts = Counter(item["domain"] for item in dataset.training)
    everywhere = sorted({item["domain"] for item in dataset.training + dataset.validation})
    targets = sorted({*everywhere, *(item["domain"] for item in _labelled_test(dataset))})
    target = named(target_domain, targets) if target_domain is not None else everywhere[-1]
    problems = []
    if "None" in targets:  # the command line makes null of it, which is the default
        problems.append("domain None: expected a name that the command line takes, found this one; rename it")
    if target == "none" and target not in targets:
        target = None
    elif target not in targets:
        problems.append(f"target_domain: expected none or one of {', '.join(targets)}, found {target}")
    sources = sorted(counts)
    if source_domains is not None:
        sources = sorted({named(name, list(counts)) for name in ensure_tuple(source_domains)})
    unknown = [name for name in sources if name not in counts]
    if unknown:
        problems.append(f"source_domains: expected some of {', '.join(sorted(counts))}, found {', '.join(unknown)}")
    if source_domains is not None and target in sources:
        problems.append(f"source_domains: expected domains other than the target {target}, found it among them")
    sources = [name for name in sources if name in counts and name != target]
    if source_domains is not None and not ensure_tuple(source_domains):
        problems.append(f"source_domains: expected a domain besides the target {target}, found none; name one. A model "
                        "that was trained on one domain alone is evaluated on another: give it another target_domain")
    else:
        problems += _count_problems(sources, target, counts, single_source)
    return target, sources, problems


def named(value: Any, names: Sequence[str]) -> str:
    """The name that is meant by a value of the command line, which makes numbers of 1, 1e3 and 2024_03.

    A text is itself. What is no text is the name that reads as this value, or else its own spelling.
    """
    if isinstance(value, str) or str(value) in names:
        return str(value)
    return next((name for name in names if _read_as(name) == (type(value), value)), str(value))


def _read_as(name: str) -> tuple[type, Any]:
    """What the command line makes of a name."""
    try:
        value = ast.literal_eval(name)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = name
    return type(value), value


def _count_problems(
    sources: Sequence[str], target: str | None, counts: Mapping[str, int], single_source: bool
) -> list[str]:
    problems, found = [], ", ".join(sources) or "none"
    if not sources or (len(sources) == 1 and not single_source):
        ways = ["add scans of another hospital", *["set single_source to train on one"] * (not single_source),
                *["set target_domain to none, which leaves none out"] * (target is not None)]  # fmt: skip
        besides = f" besides the target {target}" if target is not None else ""
        problems.append(f"domains: expected {'one' if single_source else 'two or more'} to train on{besides}, found "
                        f"{found}; {', or '.join(ways)}")  # fmt: skip
    if single_source and len(sources) > 1:
        problems.append(f"domains: expected one to train on with single_source, found {found}; name it in "
                        "source_domains")  # fmt: skip
    return problems + [f"domain {name}: expected two or more training images, found {counts[name]}; add some, or leave "
                       "the domain out of source_domains" for name in sources if counts[name] < 2]  # fmt: skip


def _labelled_test(dataset: Any) -> list[dict]:
    return [item for item in dataset.test if "label" in item and "domain" in item]


def _split(dataset: Any, sources: list[str]) -> tuple[list[dict], list[dict]]:
    training, validation = [], []
    for name in sources:
        own = [item for item in dataset.training if item["domain"] == name]
        held = [item for item in dataset.validation if item["domain"] == name]
        cases = sorted({item["case"] for item in own}, key=natural_key)
        if not held and len(cases) >= VALIDATION_SHARE:
            own.sort(key=lambda item: natural_key(item["case"]))
            last = cases[len(cases) - len(cases) // VALIDATION_SHARE :]  # both eyes of a patient go together
            own, held = ([item for item in own if (item["case"] in last) == there] for there in (False, True))
        training += own
        validation += held
    return training, validation


class DomainDataset(Dataset):
    """Training images, each with its domain, its mask and a second view in the style of another domain.

    What draw number ``draw`` of epoch ``epoch`` gives is a function of (seed, epoch, draw) alone, so that workers and
    resuming do not change it. Scans are taken slice by slice.

    Source: the data flow of RAM-DSIR (random amplitude mixup after the spatial augmentation; the partner domain uniform
    over the others, its image uniform within it and not augmented). Departure: one domain alone lends itself the looks
    of its other images.

    Args:
        data: items with ``image`` and ``label`` paths and a ``domain``.
        transform: deterministic, from paths to image ``(C, H, W)`` in 0..1 and label ``(1, H, W)``; those of a scan
            have a third axis.
        augmentation: random dictionary transform of ``image`` and ``label``.
        mix: random dictionary transform of ``image`` with ``partner`` that adds ``image_ram``; null adds nothing.
        sample: the data set is the sample data.

    Raises:
        DataError: nothing to train on; other people's images with the sample data.
    """

    def __init__(
        self,
        data: Sequence[dict],
        transform: Callable,
        augmentation: Callable | None = None,
        mix: Callable | None = None,
        seed: int = 0,
        sample: bool = False,
    ) -> None:
        refuse_foreign(data, sample)
        self.names = sorted({item.get("domain", "unknown") for item in data})
        self.images, self.labels, self.domains, self.cases = [], [], [], []
        for item in data:
            done = transform({"image": item["image"], "label": item["label"]})
            for image, label in slices(plain(done["image"]), plain(done["label"]), 2):
                self.images.append(image.float())
                self.labels.append(label.to(torch.uint8))
                self.domains.append(self.names.index(item.get("domain", "unknown")))
                self.cases.append(str(item.get("case") or item["image"]))
        if not self.images:
            raise DataError("0 images to train on: `training` of the chosen domains is empty; add labelled images.")
        self.members = [np.flatnonzero(np.array(self.domains) == d) for d in range(len(self.names))]
        self.augmentation, self.mix, self.seed, self.epoch = augmentation, mix, seed, 0

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, draw = key if isinstance(key, tuple) else (key, key)
        with drawing():
            return self._draw(index, draw)

    def _draw(self, index: int, draw: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, self.epoch, draw])
        item = {"image": self.images[index], "label": self.labels[index]}
        if self.augmentation is not None:
            self.augmentation.set_random_state(seed=int(rng.integers(2**31)))
            item = self.augmentation(item)
        if self.mix is not None:
            item["partner"] = self.images[self._partner(index, rng)]
            self.mix.set_random_state(seed=int(rng.integers(2**31)))
            item = self.mix(item)
        views = {key: plain(item[key]).float() for key in ("image", "image_ram") if key in item}
        label = plain(item["label"]).long()
        return {**views, "label": label, "domain": self.domains[index], "case": self.cases[index]}

    def _partner(self, index: int, rng: np.random.Generator) -> int:
        own = self.domains[index]
        others = [d for d in range(len(self.names)) if d != own] or [own]
        members = self.members[rng.choice(others)]
        if len(members) > 1:
            members = members[members != index]  # of the same domain, another image
        return int(rng.choice(members))


def share_out(sizes: Sequence[int], total: int) -> np.ndarray:
    """Whole numbers in proportion to the sizes, each at least ``LEAST``, whose sum is the total (largest remainders).

    Raises:
        ValueError: the total is too small.
    """
    sizes = np.asarray(sizes)
    if total < LEAST * len(sizes):
        raise ValueError(
            f"batch_size: expected {LEAST * len(sizes)} or more, {LEAST} images of each of {len(sizes)} domains, found "
            f"{total}; raise it, or name fewer source_domains."
        )
    counts = np.full(len(sizes), LEAST)
    while counts.sum() < total:
        behind = sizes * total - counts * sizes.sum()  # whole numbers, so that equal remainders are equal
        counts[behind.argmax()] += 1
    return counts


class DomainBatchSampler(Sampler):
    """Batches with a block of every domain, for ever reshuffled.

    Args:
        dataset: a :class:`DomainDataset`.
        batch_size: images in a batch, of which each domain gets at least two, for its own batch norm. What whole shares
            leave over goes to the domains of the largest remainder, among equal ones to the first.
        iterations: batches in an epoch.
        policy: ``equal`` shares, or shares ``proportional`` to the domains' sizes.

    Raises:
        ValueError: an unknown policy, or a batch too small for two images of each domain.

    Yields:
        lists of (index, number of the draw in the epoch); domains in order, each in one block.
    """

    def __init__(
        self, dataset: DomainDataset, batch_size: int, iterations: int, policy: str = "equal", seed: int = 0
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}, got {policy!r}.")
        self.members, self.iterations, self.seed, self.epoch = dataset.members, iterations, seed, 0
        sizes = [len(own) for own in self.members]
        self.counts = share_out(sizes if policy == "proportional" else np.ones_like(sizes), batch_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.iterations

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        rng = np.random.default_rng([self.seed, self.epoch, rank])
        streams = [endless(own, np.random.default_rng(rng.integers(2**63))) for own in self.members]
        draw = rank * self.iterations * int(self.counts.sum())  # no two processes draw the same
        for _ in range(self.iterations):
            chosen = [next(stream) for stream, n in zip(streams, self.counts, strict=True) for _ in range(n)]
            yield [(index, draw + i) for i, index in enumerate(chosen)]
            draw += len(chosen)
