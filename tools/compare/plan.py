"""What a comparison runs: ``compare.json`` of a bundle, and the grid it spans over a data set."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.dataset import Dataset

KEYS = {"overrides": dict, "grid": dict, "columns": list, "measure": str, "floor": dict}  # all others are groups
TAKEN = ("dataset_dir", "ckpt_dir", "output_dir", "resume")  # keys of train.json that the comparison sets itself


@dataclass(frozen=True)
class Run:
    """One training with its evaluation."""

    variant: str
    point: dict[str, Any]  # key of train.json to value: where in the grid
    folder: Path
    config_files: list[str]
    overrides: dict[str, Any]

    @property
    def cases(self) -> Path:
        """The result; the run is done when it exists."""
        return self.folder / "eval" / "cases.csv"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "models" / "checkpoint.pt"

    @property
    def name(self) -> str:
        return f"{self.variant}, {point_name(self.point)}"


def point_name(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in point.items())


def read_settings(file: Path, group: str) -> dict[str, Any]:
    """``compare.json``, with the wanted group as ``variants``.

    ===========  =======================================================================================================
    a group      name to the overrides of train.json; ``config`` among them names an overlay file of the same folder.
                 ``variants`` is the group taken by default; the first of a group is tested against each other one
    overrides    for all runs; ``{output}`` is the folder of the comparison
    grid         key of train.json to its values, the outermost first: a list, ``each label`` or ``each fold``
    columns      columns of the runs' ``cases.csv``: one table for each value of the first, if there are two, and one
                 column for each value of the last
    measure      the column to compare; more is better
    floor        optional: ``name`` and the ``measure`` (a column) of what needs no training
    ===========  =======================================================================================================
    """
    if not file.is_file():
        raise SystemExit(f"{file}: expected the settings of the comparison, found no such file")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{file}: expected JSON, found an error: {error}") from error
    groups = [key for key in settings if key not in KEYS]
    given = {"floor": {}} | settings
    problems = [f"`{key}`: expected a {kind.__name__}, found {json.dumps(given.get(key))}"
                for key, kind in KEYS.items() if not isinstance(given.get(key), kind)]
    problems += [f"`{key}`: expected a group of variants, found {json.dumps(settings[key])}; settings are "
                 f"{', '.join(KEYS)}" for key in groups if not _is_group(settings[key])]
    if group not in groups:
        problems.append(f"group: expected one of {', '.join(groups)}, found {group}")
    if problems:
        raise SystemExit("\n  ".join([f"{file}:", *problems]))
    return {key: given[key] for key in KEYS} | {"variants": settings[group]}


def choose_variants(variants: dict[str, dict], wanted: Sequence[str] | None) -> dict[str, dict]:
    unknown = [name for name in wanted or [] if name not in variants]
    if unknown:
        raise SystemExit(f"variants: expected some of {', '.join(variants)}, found {', '.join(unknown)}")
    return {name: variants[name] for name in wanted} if wanted else variants


def read_grid(grid: dict[str, Any], axes: Mapping[str, Sequence[int] | None], dataset: Dataset) -> dict[str, list]:
    """The values of each axis: as asked for on the command line, else as ``compare.json`` says.

    Args:
        axes: ``seeds``, ``folds`` and ``labels`` (of the axis over ``each label``); None is not asked for.
    """
    keys = {"seeds": "seed", "folds": "fold", "labels": next((k for k, v in grid.items() if v == "each label"), None)}
    values = {key: _expand(key, value, dataset) for key, value in grid.items()}
    for flag, chosen in axes.items():
        if chosen is None:
            continue
        if keys[flag] not in values:
            raise SystemExit(f"--{flag}: this comparison has no such axis; its grid is over {', '.join(grid)}")
        unknown = [label for label in chosen if label not in dataset.labels] if flag == "labels" else []
        if unknown:
            raise SystemExit(f"--{flag}: expected some of {dataset.labels}, found {unknown}")
        values[keys[flag]] = [[label] for label in chosen] if flag == "labels" else list(chosen)
    return values


def check_overrides(overrides: Mapping[str, Any], grid: Mapping[str, Any]) -> None:
    """Refuse what would have no effect, because the grid or the comparison sets it for every run."""
    taken = [key for key in overrides if key in grid or key in TAKEN]
    if taken:
        raise SystemExit(f"overrides: the comparison itself sets {', '.join(taken)} of each run; its grid is over "
                         f"{', '.join(grid)} (--seeds, --folds, --labels), its folder is --output")


def make_runs(
    configs: Path, variants: dict[str, dict], grid: dict[str, list], overrides: dict[str, Any], output: Path
) -> list[Run]:
    """All runs; those of one grid point are neighbours, so that an interrupted comparison is still a paired one."""
    runs = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        for name, changes in variants.items():
            files = ["train.json", *([changes["config"]] if "config" in changes else [])]
            folder = output / "runs" / _slug(point_name(point)) / _slug(name)
            own = {key: value for key, value in changes.items() if key != "config"}
            merged = _fill(overrides | own | point, output)
            runs.append(Run(name, point, folder, [str(configs / file) for file in files], merged))
    return runs


def _is_group(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(changes, dict) for changes in value.values())


def _expand(key: str, value: Any, dataset: Dataset) -> list:
    if value == "each label":
        return [[label] for label in sorted(dataset.labels)]
    if value == "each fold":
        return list(range(len(dataset.folds))) or [0]
    if isinstance(value, list) and value:
        return value
    raise SystemExit(f'grid: expected a list, "each label" or "each fold" for `{key}`, found {json.dumps(value)}')


def _fill(value: Any, output: Path) -> Any:
    """``{output}`` in texts, at any depth."""
    if isinstance(value, dict):
        return {key: _fill(item, output) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, output) for item in value]
    return value.replace("{output}", str(output)) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
