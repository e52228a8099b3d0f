"""``python -m tools check BUNDLE --dataset_dir DIR``: the data check of a training, alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from common.data.check import CaseFacts, check_dataset
from common.data.dataset import SPLITS, DataError, Dataset, read_dataset
from common.data.photograph import is_photograph

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def check(bundle: str, dataset_dir: str) -> None:
    """Check a data set for a bundle and print a summary.

    Args:
        bundle: name of a folder in ``bundles/``; its metadata says how many channels an image has.
        dataset_dir: the folder that holds ``dataset.json``.

    Raises:
        SystemExit: with the text of the error, when the data cannot be used or there is no such bundle.
    """
    channels = _channels(bundle)
    try:
        dataset = read_dataset(dataset_dir)
        # several channels have names in dataset.json; a bundle of colour photographs takes grey images by an option
        facts = check_dataset(dataset, channels=dataset.channels or (None if channels == 3 else channels))
    except DataError as error:
        raise SystemExit(str(error)) from error
    print("\n".join(_summary(dataset, facts)))


def _channels(bundle: str) -> int:
    names = sorted(p.name for p in BUNDLES.iterdir() if p.is_dir() and not p.name.startswith("."))
    if bundle not in names:
        raise SystemExit(f"bundle: expected one of {', '.join(names)}, found {bundle}")
    metadata = BUNDLES / bundle / "configs" / "metadata.json"
    image = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]["inputs"]["image"]
    return image["num_channels"]


def _summary(dataset: Dataset, facts: dict[str, list[CaseFacts]]) -> list[str]:
    cases = [one for split in facts.values() for one in split]
    holding = Counter(i for one in cases for i in one.label_ids)
    lines = [f"{dataset.name}: no problem found in {dataset.directory}"]
    lines += [f"  {split:<12}{len(items)} images of {len({one.case for one in items})} cases"
              for split, items in facts.items() if items]
    lines += _domains(dataset)
    lines += [f"  label {i:<6}{name}: in {holding[i]} images" for i, name in sorted(dataset.labels.items())]
    lines.append(f"  shape       {_range([one.shape for one in cases], 'd')}")
    flat = all(is_photograph(one.image) for one in cases)
    spacing = "none (photographs: distances are in pixels)" if flat else _range([one.spacing for one in cases], ".4g")
    lines.append(f"  spacing     {spacing}")
    return lines


def _domains(dataset: Dataset) -> list[str]:
    """The images of each domain by split; none where no item names a domain."""
    counts: dict[str, Counter] = {}
    for split in SPLITS:
        for item in getattr(dataset, split):
            counts.setdefault(item.get("domain", ""), Counter())[split] += 1
    if set(counts) == {""}:
        return []
    return [f"  domain      {name or '(no domain)'}: {', '.join(f'{n} {split}' for split, n in splits.items())}"
            for name, splits in counts.items()]


def _range(rows: list[tuple], form: str) -> str:
    """The least and the largest value along each axis: ``256 x 256 x 31-46``."""
    ends = [(format(min(axis), form), format(max(axis), form)) for axis in zip(*rows, strict=True)]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in ends)
