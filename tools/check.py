"""``python -m tools check BUNDLE --dataset_dir DIR``: the data check of a training, alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from common.data.check import CaseFacts
from common.data.dataset import SPLITS, DataError, Dataset, read_dataset
from common.data.photograph import is_photograph
from common.engine.root_cause import causes

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def check(bundle: str, dataset_dir: str, overrides: Mapping[str, Any] | None = None) -> None:
    """Check a data set as a training of the bundle with the same overrides does, and print a summary.

    Args:
        bundle: name of a folder in ``bundles/``; ``datalist`` of its train.json is what reads the data.
        dataset_dir: the folder that holds ``dataset.json``.
        overrides: keys of train.json.

    Raises:
        SystemExit: with the text of the error, when the data cannot be used or there is no such bundle or key.
    """
    config = BUNDLES / bundle / "configs" / "train.json"
    if not config.is_file():
        names = sorted(file.parents[1].name for file in BUNDLES.glob("*/configs/train.json"))
        raise SystemExit(f"bundle: expected one of {', '.join(names)}, found {bundle}")
    sys.path.insert(0, str(BUNDLES / bundle))  # the package of this bundle, before an installed one
    settings = ConfigParser()
    settings.read_config(str(config))
    unknown = [key for key in overrides or {} if key not in settings.config]
    if unknown:
        raise SystemExit(f"expected keys at the top of {config}, found {', '.join(unknown)}; what further "
                         "config files of a training set of these, give as options")  # fmt: skip
    settings.update({**(overrides or {}), "dataset_dir": str(dataset_dir)})
    try:
        dataset = read_dataset(dataset_dir)
        facts = settings.get_parsed_content("datalist")["facts"]
    except (DataError, RuntimeError) as error:  # MONAI's RuntimeError, around the one of the data or of an override
        refused = next((cause for cause in causes(error) if isinstance(cause, ValueError)), None)
        if refused is None:
            raise
        raise SystemExit(str(refused)) from error
    print("\n".join(_summary(dataset, facts)))


def _summary(dataset: Dataset, facts: dict[str, list[CaseFacts]]) -> list[str]:
    cases = [one for split in facts.values() for one in split]
    holding = Counter(i for one in cases for i in one.label_ids)
    lines = [f"{dataset.name}: no problem found in {dataset.directory}"]
    lines += [f"  {split:<12}{len(items)} images of {len({one.case for one in items})} cases"
              for split, items in facts.items() if items]
    lines += _domains(dataset, facts)
    lines += [f"  label {i:<6}{name}: in {holding[i]} images" for i, name in sorted(dataset.labels.items())]
    lines.append(f"  shape       {_range([one.shape for one in cases], 'd')}")
    flat = all(is_photograph(one.image) for one in cases)
    spacing = "none (photographs: distances are in pixels)" if flat else _range([one.spacing for one in cases], ".4g")
    lines.append(f"  spacing     {spacing}")
    return lines


def _domains(dataset: Dataset, facts: dict[str, list[CaseFacts]]) -> list[str]:
    """The images of each domain by split; none where no item names a domain."""
    domains = {item["image"]: item.get("domain", "") for split in SPLITS for item in getattr(dataset, split)}
    counts: dict[str, Counter] = {}
    for split, items in facts.items():
        for one in items:
            counts.setdefault(domains.get(one.image, ""), Counter())[split] += 1
    if set(counts) == {""}:
        return []
    return [f"  domain      {name or '(no domain)'}: {', '.join(f'{n} {split}' for split, n in splits.items())}"
            for name, splits in counts.items()]


def _range(rows: list[tuple], form: str) -> str:
    """The least and the largest value along each axis: ``256 x 256 x 31-46``."""
    ends = [(format(min(axis), form), format(max(axis), form)) for axis in zip(*rows, strict=True)]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in ends)
