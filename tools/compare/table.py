"""The tables of a comparison, as Markdown that reads well as plain text, and their picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .statistics import Difference, Rows, cell, mean_cell, paired


@dataclass(frozen=True)
class Table:
    """One table: a name (such as the protocol's), columns, and for each line of it (mean, std) of each column."""

    name: str
    columns: list[str]
    lines: dict[str, list[tuple[float, float]]]
    tests: dict[str, Difference]


def make_tables(rows: Rows, settings: dict[str, Any]) -> list[Table]:
    """One table for each value of the first of two ``columns``, in the order of the rows.

    Args:
        rows: lines of the runs' ``cases.csv`` with a ``variant``; numbers where ``measure`` and the floor's stand.
        settings: ``variants`` (in this order), ``columns``, ``measure`` and ``floor`` of ``compare.json``.
    """
    *outer, column = settings["columns"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[outer[0]] if outer else "", []).append(row)
    return [_table(name, own, column, settings) for name, own in groups.items()]


def _table(name: str, rows: Rows, column: str, settings: dict[str, Any]) -> Table:
    measure, floor = settings["measure"], settings["floor"]
    columns = list(dict.fromkeys(row[column] for row in rows))
    sides = {variant: (_scored(rows, measure, variant), measure) for variant in settings["variants"]}
    if floor:  # it does not depend on training: the first variant's rows hold all of it
        sides[floor["name"]] = (_scored(rows, floor["measure"], next(iter(sides))), floor["measure"])
    lines = {}
    for variant, (own, of) in sides.items():
        groups = [[row for row in own if row[column] == value] for value in columns]
        lines[variant] = [cell(group, of) for group in groups] + [mean_cell(groups, of)]
    if floor:
        lines[floor["name"]] = [(mean, math.nan) for mean, _ in lines[floor["name"]]]  # nothing of it has a seed
    (first, (ours, _)), *rivals = sides.items()
    tests = {rival: paired(ours, theirs, measure, ("case", column), of) for rival, (theirs, of) in rivals}
    return Table(name, [*columns, "mean"], lines, tests)


def _scored(rows: Rows, measure: str, variant: str) -> Rows:
    return [row for row in rows if row["variant"] == variant and not math.isnan(row[measure])]


def format_tables(tables: Sequence[Table], first: str) -> str:
    """All tables in percent points, each with the tests of the first variant against the others."""
    blocks = []
    for table in tables:
        head = [f"{table.name} (%)".strip(), *table.columns]
        body = [[name, *(_percent(*numbers) for numbers in line)] for name, line in table.lines.items()]
        blocks.append(_markdown([head, *body]))
        if table.tests:
            head = [f"{first} minus", "difference", "95 % interval", "p", "n"]
            body = [[name, *_test(test)] for name, test in table.tests.items()]
            blocks.append(_markdown([head, *body]))
    return "\n\n".join(blocks)


def _percent(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{100 * mean:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")


def _test(test: Difference) -> list[str]:
    if math.isnan(test.mean):
        return ["-", "-", "-", str(test.n)]
    interval = "-" if math.isnan(test.low) else f"{100 * test.low:+.1f} to {100 * test.high:+.1f}"
    p = "-" if math.isnan(test.p) else "< 0.001" if test.p < 0.001 else f"{test.p:.3f}"
    return [f"{100 * test.mean:+.1f}", interval, p, str(test.n)]


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
