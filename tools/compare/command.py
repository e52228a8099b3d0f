"""The command: plan the grid, run what is missing, and make the tables from what there is."""

from __future__ import annotations

import csv
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.data.check import check_dataset
from common.data.dataset import DataError, Dataset, read_dataset
from common.report import write_cases_csv

from .picture import save_picture
from .plan import Run, check_overrides, choose_variants, make_runs, point_name, read_grid, read_settings
from .runs import claim_folders
from .table import format_tables, make_tables
from .workers import execute

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


def compare(
    bundle: str,
    dataset_dir: str,
    output: str | None = None,
    group: str = "variants",
    variants: Any = None,
    axes: Mapping[str, Any] | None = None,
    processes: int = 1,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Run what is missing of a comparison and write ``cases.csv``, ``table.md`` and ``table.png`` into its folder.

    Args:
        axes: chosen values for ``seeds``, ``folds`` and ``labels``; None takes those of the settings.
        overrides: keys of train.json, for all runs.
        The others are those of ``python -m tools compare --help``.

    Raises:
        SystemExit: with the text of the error, when nothing can be run; with code 1, when a run has failed.
    """
    configs = _configs(bundle)
    settings = read_settings(Path(config) if config else configs / "compare.json", group)
    settings["variants"] = choose_variants(settings["variants"], _listed(variants))
    dataset = _dataset(dataset_dir)
    grid = read_grid(settings["grid"], {flag: _numbers(flag, value) for flag, value in (axes or {}).items()}, dataset)
    for changes in (settings["overrides"], overrides or {}, *settings["variants"].values()):
        check_overrides(changes, grid)
    suffix = "" if group == "variants" else f"_{group}"
    folder = Path(output) if output else BUNDLES / bundle / "eval" / "compare" / f"{dataset.name}{suffix}"
    folder = folder.absolute()
    shared = settings["overrides"] | dict(overrides or {}) | {"dataset_dir": str(dataset.directory)}
    runs = make_runs(configs, settings["variants"], grid, shared, folder)
    claim_folders(runs)
    failed = run_all(runs, processes)
    text = report(runs, settings, folder, _footer(runs, grid, shared))
    print(f"{text}\n\ntables: {folder / 'table.md'}\npicture: {folder / 'table.png'}\ncases: {folder / 'cases.csv'}")
    if failed:
        lines = [f"  {run.name}: {error}\n    {run.folder / 'run.log'}" for run, error in failed]
        head = f"{len(failed)} of {len(runs)} runs failed; the same command runs them again:"
        raise SystemExit("\n".join([head, *lines]))


def run_all(runs: Sequence[Run], processes: int) -> list[tuple[Run, str]]:
    """Run those without a result; returns the failed ones with their errors."""
    missing, failed = [run for run in runs if not run.cases.is_file()], []
    if not missing:
        return failed
    bar = tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run", dynamic_ncols=True)
    with bar, closing(execute(missing, processes)) as ended:
        try:
            for run, error in ended:
                if error is not None:
                    failed.append((run, error))
                bar.set_postfix_str(f"{run.name}{' FAILED' if error is not None else ''}", refresh=False)
                bar.update()
        except KeyboardInterrupt:
            done = sum(run.cases.is_file() for run in runs)
            raise SystemExit(f"stopped; {done} of {len(runs)} runs are done, the same command goes on.") from None
    return failed


def report(runs: Sequence[Run], settings: dict[str, Any], folder: Path, footer: str) -> str:
    """Collect the rows of all runs, and write the tables of the grid points at which every variant is done."""
    numbers = {settings["measure"], settings["floor"].get("measure", settings["measure"])}
    rows = {run.folder: read_rows(run, numbers) for run in runs if run.cases.is_file()}
    write_cases_csv([row for own in rows.values() for row in own], folder / "cases.csv")
    points = {point_name(run.point): True for run in runs}
    for run in runs:
        points[point_name(run.point)] &= run.folder in rows
    complete = [row for run in runs if points[point_name(run.point)] for row in rows[run.folder]]
    share = f"{sum(points.values())} of {len(points)} grid points ({', '.join(runs[0].point)}) have all variants"
    if not complete:
        return f"no table: {share}."
    tables = make_tables(complete, settings)
    first = next(iter(settings["variants"]))
    note = "" if all(points.values()) else f"\n\nNot complete: {share}; only these are in the tables."
    save_picture(tables, folder / "table.png", settings["measure"])
    text = f"{format_tables(tables, first)}{note}\n\n{footer}"
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    return text


def read_rows(run: Run, numbers: set[str]) -> list[dict[str, Any]]:
    """The rows of a run, with its variant and its place in the grid in front."""
    place = {key: "+".join(map(str, value)) if isinstance(value, list) else value for key, value in run.point.items()}
    with open(run.cases, newline="", encoding="utf-8") as file:
        rows = [{"variant": run.variant, **place, **row} for row in csv.DictReader(file)]
    try:
        return [row | {key: float(row[key]) if row[key] else math.nan for key in numbers} for row in rows]
    except KeyError as error:
        raise SystemExit(f"{run.cases}: expected the columns {', '.join(sorted(numbers))}, found no {error}") from error


def _footer(runs: Sequence[Run], grid: Mapping[str, list], shared: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{key} {value}" for key, value in shared.items() if isinstance(value, (int, float)))
    return "\n".join([
        "Mean over all rows ± standard deviation of the seeds' means. Tests: the unit is a structure of a case, its",
        "seeds, folds and supports averaged; Student's interval, Wilcoxon's signed rank p (two-sided, uncorrected).",
        "",
        f"    python -m tools {shlex.join(sys.argv[1:])}",
        "",
        f"{len(runs)} runs: " + "; ".join(f"{key} {', '.join(map(str, values))}" for key, values in grid.items()),
        f"Overrides: {numbers or 'none'}. torch {version('torch')}, monai {version('monai')}.",
    ])


def _configs(bundle: str) -> Path:
    folder = BUNDLES / bundle / "configs"
    if not (folder / "train.json").is_file():
        found = sorted(file.parents[1].name for file in BUNDLES.glob("*/configs/train.json"))
        raise SystemExit(f"bundle: expected one of {', '.join(found)}, found {bundle}")
    return folder


def _dataset(dataset_dir: str) -> Dataset:
    """The data set, checked once here and not first by the first run."""
    try:
        dataset = read_dataset(dataset_dir)
        check_dataset(dataset, channels=len(dataset.modality))
    except DataError as error:
        raise SystemExit(str(error)) from error
    return dataset


def _listed(value: Any) -> list[str] | None:
    """A list from the command line, where fire makes a tuple of ``a,b``, and a number of ``1``."""
    if value is None:
        return None
    return [str(item).strip() for item in (value if isinstance(value, (list, tuple)) else str(value).split(","))]


def _numbers(flag: str, value: Any) -> list[int] | None:
    listed = _listed(value)
    if listed is not None and not all(item.isdecimal() for item in listed):
        raise SystemExit(f"--{flag}: expected numbers such as 0,1,2, found {value}")
    return None if listed is None else [int(item) for item in listed]
