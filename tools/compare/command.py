"""The command: plan the grid, run what is missing, and make the tables from what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.data.check import check_dataset
from common.data.dataset import DataError, Dataset, read_dataset
from common.report.file_names import file_name
from common.semi_supervised.data import keep_labels
from tools.bundles import home_of

from .grid import folds_made_by, read_grid
from .plan import Run, check_overrides, make_runs
from .report import footer, report
from .runs import claim_folders
from .settings import choose_variants, read_settings
from .workers import execute


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

    Below its tables ``table.md`` says what was scored, and how many minutes a run of each variant took.

    Args:
        axes: chosen values for ``seeds``, ``folds``, ``labels`` and ``domains``; None takes those of the settings.
        overrides: keys of train.json, for all runs.
        The others are those of ``python -m tools compare --help``.

    Raises:
        OSError: see :func:`.claim_folders`.
        SystemExit: with the text of the error, when nothing can be run; with code 1, when a run has failed.
    """
    home = home_of(bundle)
    configs = home / "configs"
    settings = read_settings(Path(config) if config else configs / "compare.json", group)
    settings["variants"] = choose_variants(settings["variants"], _listed(variants))
    dataset = _dataset(dataset_dir, (settings["overrides"] | dict(overrides or {})).get("labelled"))
    chosen = {flag: _chosen(flag, value) for flag, value in (axes or {}).items()}
    grid = read_grid(settings["grid"], chosen, dataset, folds_made_by(home))
    for changes in (settings["overrides"], overrides or {}, *settings["variants"].values()):
        check_overrides(changes, grid)
    fixed = set.intersection(*map(set, settings["variants"].values()))
    idle = [key for key in overrides or {} if key in fixed]
    if idle:
        raise SystemExit(f"{', '.join(idle)}: each variant of `{group}` has its own; change them in a file, --config")
    suffix = "" if group == "variants" else f"_{group}"
    folder = Path(output) if output else home / "eval" / "compare" / file_name(f"{dataset.name}{suffix}")
    folder = folder.absolute()
    shared = settings["overrides"] | dict(overrides or {}) | {"dataset_dir": str(dataset.directory)}
    runs = make_runs(configs, settings["variants"], grid, shared, folder)
    claim_folders(runs)
    failed = run_all(runs, processes)
    everyones = {key: value for key, value in shared.items() if key not in fixed}
    text = report(runs, settings, folder, footer(runs, grid, everyones))
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
        except KeyboardInterrupt as stop:
            done = sum(run.cases.is_file() for run in runs)
            text = f"{done} of {len(runs)} runs are done; the same command goes on."
            raise KeyboardInterrupt(*stop.args, text) from None
    return failed


def _dataset(dataset_dir: str, labelled: int | None) -> Dataset:
    """The data set, checked once here and not first by the first run; no label that the runs do not use is opened."""
    try:
        dataset = read_dataset(dataset_dir)
        check_dataset(keep_labels(dataset, labelled) if labelled else dataset, channels=dataset.channels)
    except DataError as error:
        raise SystemExit(str(error)) from error
    return dataset


def _listed(value: Any) -> list[str] | None:
    """A list from the command line, where fire makes a tuple of ``a,b``, and a number of ``1``."""
    if value is None:
        return None
    return [str(item).strip() for item in (value if isinstance(value, (list, tuple)) else str(value).split(","))]


def _chosen(flag: str, value: Any) -> list | None:
    """The values of an axis; only domains have names."""
    listed = _listed(value)
    if listed is None or flag == "domains":
        return listed
    if not all(item.isdecimal() for item in listed):
        raise SystemExit(f"--{flag}: expected numbers such as 0,1,2, found {value}")
    return [int(item) for item in listed]
