"""The grid a comparison spans over a data set."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.dataset import Dataset
from tools.bundles import put_on_path

from .plan import text_of


def folds_made_by(home: Path) -> int:
    """How many folds a training of the bundle makes of a data set that lists none, where it has cases enough."""
    if not (home / home.name / "data.py").is_file():
        return 1
    put_on_path(home)
    return getattr(importlib.import_module(f"{home.name}.data"), "FOLDS", 1)


def read_grid(
    grid: dict[str, Any], axes: Mapping[str, Sequence | None], dataset: Dataset, folds: int = 1
) -> dict[str, list]:
    """The values of each axis: as asked for on the command line, else as ``compare.json`` says.

    Args:
        axes: ``seeds`` and ``folds`` (of the axes ``seed`` and ``fold``), ``labels`` and ``domains`` (of the axes over
            ``each label`` and ``each domain``); None is not asked for.
        folds: what :func:`folds_made_by` says of the bundle.
    """
    each = {value: key for key, value in grid.items() if isinstance(value, str)}
    keys = {"seeds": "seed", "folds": "fold", "labels": each.get("each label"), "domains": each.get("each domain")}
    values = {key: _expand(key, value, dataset, folds) for key, value in grid.items()}
    for flag, chosen in axes.items():
        if chosen is None:
            continue
        key = keys[flag]
        if key not in values:
            raise SystemExit(f"--{flag}: this comparison has no such axis; its grid is over {', '.join(grid)}")
        wanted = [[label] for label in chosen] if flag == "labels" else list(chosen)
        unknown = [text_of(value) for value in wanted if isinstance(grid[key], str) and value not in values[key]]
        if unknown:
            names = {str(label): f" ({name})" for label, name in dataset.labels.items()} if flag == "labels" else {}
            known = ", ".join(text + names.get(text, "") for text in map(text_of, values[key]))
            raise SystemExit(f"--{flag}: expected some of {known}, found {', '.join(unknown)}")
        values[key] = wanted
    return values


def _expand(key: str, value: Any, dataset: Dataset, folds: int) -> list:
    if value == "each label":
        return [[label] for label in sorted(dataset.labels)]
    if value == "each fold":
        return _folds(dataset, folds)
    if value == "each domain":
        return _domains(key, dataset)
    if isinstance(value, list) and value:
        return value
    raise SystemExit(f'grid: expected a list, "each label", "each fold" or "each domain" for `{key}`, '
                     f"found {json.dumps(value)}")


def _folds(dataset: Dataset, made: int) -> list[int]:
    if dataset.validation:  # says what is segmented: a training uses no folds
        return [0]
    return list(range(len(dataset.folds) or min(made, len({item["case"] for item in dataset.training}))))


def _domains(key: str, dataset: Dataset) -> list[str]:
    domains = sorted({item["domain"] for item in dataset.training if "domain" in item})
    if not domains:
        raise SystemExit(f'{dataset.directory / "dataset.json"}: `{key}` takes each domain of `training` in turn, '
                         'found no item with a "domain"; add it to each')
    # a data set is no program, but these would make one of it inside of a config
    code = [name for name in domains if name.startswith(("$", "@", "%"))]
    if code:
        raise SystemExit(f"{dataset.directory / 'dataset.json'}: expected domains that begin with none of $ @ %, "
                         f"found {', '.join(code)}; rename them")
    return domains
