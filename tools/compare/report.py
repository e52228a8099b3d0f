"""What a comparison leaves in its folder: the rows of all runs, and the tables with their picture."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from common.data.temporary import replaced
from common.report import read_cases_csv, write_cases_csv
from common.report.markdown import plain
from common.report.plain_text import one_line

from .measure import column_of
from .picture import save_picture
from .plan import Run, point_name, text_of
from .table import format_tables, label_of, make_tables


def report(runs: Sequence[Run], settings: dict[str, Any], folder: Path, end: str) -> str:
    """Collect the rows of all runs, and write the tables of the grid points at which every variant is done."""
    done = [run for run in runs if run.cases.is_file()]
    settings = settings | (with_units(settings, done[0].cases) if done else {})
    rows = {run.folder: read_rows(run, settings) for run in done}
    write_cases_csv([row for own in rows.values() for row in own], folder / "cases.csv")
    points = {point_name(run.point): True for run in runs}
    for run in runs:
        points[point_name(run.point)] &= run.folder in rows
    complete = [row for run in runs if points[point_name(run.point)] for row in rows[run.folder]]
    share = f"{sum(points.values())} of {len(points)} grid points ({', '.join(runs[0].point)}) have all variants"
    tables = make_tables(complete, settings)
    if not tables:
        return f"no table: {share}{', but no row has a number to compare' if complete else ''}."
    notes = [] if all(points.values()) else [f"Not complete: {share}; only these are in the tables."]
    empty = {label_of(entry) for entry in settings["tables"]} - {table.label for table in tables}
    notes += [f"No table of {label}: no row has a number of it." for label in sorted(empty)]
    lines: dict[str, dict[str, None]] = {}
    for run in runs:
        for line in said(run) if points[point_name(run.point)] else ():
            lines.setdefault(line, {})[run.variant] = None
    notes += [line if len(lines) == 1 else f"{plain(', '.join(variants))}: {line}" for line, variants in lines.items()]
    notes += minutes([run for run in runs if points[point_name(run.point)]])
    save_picture(tables, folder / "table.png")
    text = "\n\n".join([format_tables(tables, next(iter(settings["variants"]))), *notes, end])
    with replaced(folder / "table.md") as part:
        part.write_text(text + "\n", encoding="utf-8")
    return text


def said(run: Run) -> list[str]:
    """What its summary states about the scores, below the table: which split, which checkpoint."""
    file = run.cases.with_name("summary.md")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line for line in lines if line.startswith(("Scored: ", "The checkpoint "))]


def minutes(runs: Sequence[Run]) -> list[str]:
    """How long a run of each variant took, in the mean of those that were not interrupted."""
    taken: dict[str, list[float | None]] = {}
    for run in runs:
        known = float(run.seconds.read_text(encoding="utf-8")) / 60 if run.seconds.is_file() else None
        taken.setdefault(run.variant, []).append(known)
    each = []
    for variant, values in taken.items():
        known = [value for value in values if value is not None]
        of = "" if len(known) == len(values) else f" ({len(known)} of {len(values)} runs)"
        each.append(f"{variant} {mean(known):.1f}{of}" if known else f"{variant} not known")
    return [f"Minutes of a run with its scoring, in the mean: {plain(', '.join(each))}."]


def with_units(settings: Mapping[str, Any], cases: Path) -> dict[str, Any]:
    """``tables`` and ``floor`` of the settings with their measures named as the columns of a run are."""
    columns, _ = read_cases_csv(cases)
    floor = dict(settings["floor"])
    if floor:
        floor["measures"] = {column_of(measure, columns): column_of(source, columns)
                             for measure, source in floor["measures"].items()}  # fmt: skip
    tables = [entry | {"measure": column_of(entry["measure"], columns)} for entry in settings["tables"]]
    return {"tables": tables, "floor": floor}


def read_rows(run: Run, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run, with its variant and its place in the grid in front, and numbers where there are measures."""
    place = {key: text_of(value) if isinstance(value, list) else value for key, value in run.point.items()}
    rows = [{"variant": run.variant, **place, **row} for row in read_cases_csv(run.cases)[1]]
    numbers = {entry["measure"] for entry in settings["tables"]} | set(settings["floor"].get("measures", {}).values())
    needed = sorted({"case", *numbers, *(column for entry in settings["tables"] for column in entry["columns"])})
    missing = [column for column in needed if rows and column not in rows[0]]
    if missing:
        found = f"found no {', '.join(missing)}"
        raise SystemExit(f"{run.cases}: expected the columns {', '.join(needed)}, {found}; correct compare.json")
    return [row | {key: float(row[key]) if row[key] else math.nan for key in numbers} for row in rows]


def _grid(grid: Mapping[str, list]) -> str:
    return plain("; ".join(f"{key} {', '.join(map(str, values))}" for key, values in grid.items()))


def footer(runs: Sequence[Run], grid: Mapping[str, list], shared: Mapping[str, Any]) -> str:
    """How the numbers were made."""
    # not whole lists of transforms
    short = ", ".join(f"{key} {value}" for key, value in shared.items() if len(str(value)) <= 40)
    return "\n".join([
        "Mean over all rows ± standard deviation of the seeds' means. Tests: the unit is a case (patient), n of them;",
        "of each structure its seeds, folds, supports etc. are averaged, then its structures, each counting alike.",
        "Student's interval, Wilcoxon's signed rank p (two-sided, uncorrected).",
        "",
        f"    python -m tools {one_line(shlex.join(sys.argv[1:]))}",
        "",
        f"{len(runs)} runs: " + _grid(grid),
        f"Overrides: {plain(short) or 'none'}. torch {version('torch')}, monai {version('monai')}.",
    ])
