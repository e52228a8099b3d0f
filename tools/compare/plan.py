"""What a comparison runs: each variant at each point of the grid."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.report.file_names import file_name

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
    def seconds(self) -> Path:
        """What it took, of a run that was not interrupted."""
        return self.folder / "seconds"

    @property
    def name(self) -> str:
        return f"{self.variant}, {point_name(self.point)}"


def point_name(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {text_of(value)}" for key, value in point.items())


def text_of(value: Any) -> str:
    """A value of the grid in a name or a table."""
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def check_overrides(overrides: Mapping[str, Any], grid: Mapping[str, Any]) -> None:
    """Refuse what would have no effect, because the grid or the comparison sets it for every run."""
    taken = [key for key in overrides if key in grid or key in TAKEN]
    if taken:
        raise SystemExit(f"overrides: the comparison itself sets {', '.join(taken)} of each run; its grid is over "
                         f"{', '.join(grid)} (--seeds, --folds, --labels, --domains), its folder is --output")


def make_runs(
    configs: Path, variants: dict[str, dict], grid: dict[str, list], overrides: dict[str, Any], output: Path
) -> list[Run]:
    """All runs; those of one grid point are neighbours, so that an interrupted comparison is still a paired one."""
    runs = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        for name, changes in variants.items():
            overlays = changes.get("config", [])
            files = ["train.json", *([overlays] if isinstance(overlays, str) else overlays)]
            folder = output / "runs" / _folder(point_name(point)) / _folder(name)
            own = {key: value for key, value in changes.items() if key != "config"}
            merged = _fill(overrides | own | point, output)
            runs.append(Run(name, point, folder, [str(configs / file) for file in files], merged))
    count = Counter(str(run.folder).casefold() for run in runs)  # some file systems know no capitals
    shared = [f"{run.folder}: {run.name}" for run in runs if count[str(run.folder).casefold()] > 1]
    if shared:
        raise SystemExit("\n  ".join(["expected a folder of its own for each run; name these otherwise, or leave out "
                                      "what is there twice:", *shared[:6]]))
    return runs


def _fill(value: Any, output: Path) -> Any:
    """``{output}`` in texts, at any depth."""
    if isinstance(value, dict):
        return {key: _fill(item, output) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, output) for item in value]
    return value.replace("{output}", str(output)) if isinstance(value, str) else value


def _folder(name: str) -> str:
    return file_name(re.sub(r"[^\w.+-]+", "_", name))
