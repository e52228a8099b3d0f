"""``python -m tools check BUNDLE --dataset_dir DIR``: the data check of a training, alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from common.data.check import CaseFacts
from common.data.dataset import SPLITS, DataError, Dataset, read_dataset
from common.data.photograph import is_photograph
from common.engine import root_cause
from common.engine.overrides import repeated_in_configs
from tools.bundles import home_of, put_on_path


def check(
    bundle: str,
    dataset_dir: str,
    config_file: str | Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Check a data set as a training of the bundle with the same options does, and print a summary.

    Args:
        bundle: name of a folder in ``bundles/``; ``datalist`` of the config is what reads the data.
        dataset_dir: the folder that holds ``dataset.json``.
        config_file: of the training; null takes the bundle's train.json.
        overrides: keys of the config.

    Raises:
        SystemExit: with the text of the error, when the data cannot be used or there is no such bundle, file or key.
    """
    home = home_of(bundle)
    put_on_path(home)
    files = [str(file) for file in ensure_tuple(config_file or home / "configs" / "train.json")]
    absent = [file for file in files if not Path(file).is_file()]
    if absent:
        raise SystemExit(f"config_file: expected files, found none at {', '.join(absent)}")
    if repeated := repeated_in_configs(files):
        raise SystemExit("\n".join(repeated))
    settings = ConfigParser()
    settings.read_config(files)
    unknown = [key for key in overrides or {} if key.split("::")[0] not in settings.config]
    if unknown:
        raise SystemExit(f"expected keys of {', '.join(files)}, found {', '.join(unknown)}")
    settings.update(dict(overrides or {}))
    settings["dataset_dir"] = Path(dataset_dir)  # no text: MONAI runs a text that begins with $, and follows @ and %
    try:
        dataset = read_dataset(dataset_dir)
        facts = settings.get_parsed_content("datalist")["facts"]
    except (DataError, RuntimeError) as error:  # MONAI's RuntimeError, around the one of the data or of an override
        cause = root_cause(error)
        if not isinstance(cause, ValueError):
            raise
        raise SystemExit(str(cause)) from error
    print("\n".join(_summary(dataset, facts)))


def _summary(dataset: Dataset, facts: dict[str, list[CaseFacts]]) -> list[str]:
    cases = [one for split in facts.values() for one in split]
    holding = Counter(i for split in SPLITS for one in facts.get(split, []) for i in one.label_ids)
    lines = [f"{dataset.name}: no problem found in {dataset.directory}"]
    lines += [f"  {split:<12}{len(items)} images of {len({one.case for one in items})} cases"
              for split, items in facts.items() if items]
    lines += _domains(dataset, facts)
    if dataset.folds:
        sizes = ", ".join(str(len(fold)) for fold in dataset.folds)
        lines.append(f"  folds       {len(dataset.folds)}, of {sizes} cases")
    if dataset.test:
        scored = sum("label" in item for item in dataset.test)
        lines.append(f"  of test     {scored} of {len(dataset.test)} images have a label")
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
    for split in SPLITS:  # not the scans of a folder of their own, such as supports
        for one in facts.get(split, []):
            counts.setdefault(domains.get(one.image, ""), Counter())[split] += 1
    if set(counts) == {""}:
        return []
    return [f"  domain      {name or '(no domain)'}: {', '.join(f'{n} {split}' for split, n in splits.items())}"
            for name, splits in counts.items()]


def _range(rows: list[tuple], form: str) -> str:
    """The least and the largest value along each axis: ``256 x 256 x 31-46``."""
    ends = [(format(min(axis), form), format(max(axis), form)) for axis in zip(*rows, strict=True)]
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in ends)
