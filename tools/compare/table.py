"""The tables of a comparison, as Markdown that reads well as plain text, and their picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.report.markdown import markdown

from .measure import digits_of, factor_of, name_of
from .plan import text_of
from .statistics import Difference, Rows, cell, mean_cell, paired


@dataclass(frozen=True)
class Table:
    """One table; its numbers are as they are printed, shares in percent."""

    name: str  # such as the protocol's; empty where `columns` name one column only
    head: str  # top left
    label: str  # of the measure
    digits: int  # decimals
    columns: list[str]
    lines: dict[str, list[tuple[float, float]]]  # (mean, std) of each column
    tests: dict[str, Difference]


def make_tables(rows: Rows, settings: dict[str, Any]) -> list[Table]:
    """For each entry of ``tables`` one table for each value of the first of its two ``columns``, in the rows' order.

    A table without a single number is left out.

    Args:
        rows: lines of the runs' ``cases.csv`` with a ``variant``; numbers where measures and the floor's stand.
        settings: ``variants`` (in this order), ``grid``, ``tables`` and ``floor`` of ``compare.json``.
    """
    tables = []
    for entry in settings["tables"]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            *outer, column = [text_of(row[key]) for key in entry["columns"]]
            if column and all(outer):
                groups.setdefault(outer[0] if outer else "", []).append(row)
        tables += [_table(name, own, entry, settings) for name, own in groups.items()]
    return [table for table in tables if any(mean == mean for line in table.lines.values() for mean, _ in line)]


def label_of(entry: dict[str, Any]) -> str:
    """The measure's name and unit, and the direction where it is not the usual one."""
    name, unit = name_of(entry["measure"])
    return " ".join([entry["title"] or name, *([f"({unit})"] if unit else [])]) + _direction(entry)


def _direction(entry: dict[str, Any]) -> str:
    return ", less is better" if entry["less_is_better"] else ""


def _table(name: str, rows: Rows, entry: dict[str, Any], settings: dict[str, Any]) -> Table:
    measure, column = entry["measure"], entry["columns"][-1]
    columns = list(dict.fromkeys(text_of(row[column]) for row in rows))
    sides = {variant: _scored(rows, variant, measure, measure) for variant in settings["variants"]}
    floor = settings["floor"].get("name") if measure in settings["floor"].get("measures", ()) else None
    if floor:  # it does not depend on training: the first variant's rows hold all of it
        sides[floor] = _scored(rows, next(iter(sides)), settings["floor"]["measures"][measure], measure)
    lines = {}
    for side, own in sides.items():
        groups = [[row for row in own if text_of(row[column]) == value] for value in columns]
        lines[side] = [cell(group, measure) for group in groups] + [mean_cell(groups, measure)]
    if floor:
        lines[floor] = [(mean, math.nan) for mean, _ in lines[floor]]  # nothing of it has a seed
    # what may tell the rows of a structure of a case apart
    within = {"scan", "support", *settings["grid"], *(key for other in settings["tables"] for key in other["columns"])}
    (_, ours), *rivals = sides.items()
    tests = {rival: paired(ours, theirs, measure, sorted(within)) for rival, theirs in rivals}
    digits = digits_of(measure, [mean for line in lines.values() for mean, _ in line])
    return Table(name, _head(name, entry, settings), label_of(entry), digits, [*columns, "mean"], lines, tests)


def _scored(rows: Rows, variant: str, source: str, measure: str) -> Rows:
    """The rows of a variant that have a number in the column ``source``, as a number of ``measure`` to print."""
    own = [row for row in rows if row["variant"] == variant and not math.isnan(row[source])]
    return [row | {measure: factor_of(measure) * row[source]} for row in own]


def _head(name: str, entry: dict[str, Any], settings: dict[str, Any]) -> str:
    """Where all tables are of one measure, a table's name and the unit say enough."""
    unit = name_of(entry["measure"])[1]
    if name and unit and not entry["title"] and len({other["measure"] for other in settings["tables"]}) == 1:
        return f"{name} ({unit}){_direction(entry)}"
    return f"{name}: {label_of(entry)}" if name else label_of(entry)


def format_tables(tables: Sequence[Table], first: str) -> str:
    """All tables, each with the tests of the first variant against the others: first minus other, for any measure."""
    blocks = []
    for table in tables:
        body = [[name, *(_number(*numbers, table.digits) for numbers in line)] for name, line in table.lines.items()]
        blocks.append(markdown([[table.head, *table.columns], *body]))
        if table.tests:
            head = [f"{first} minus", "difference", "95 % interval", "p", "n"]
            body = [[name, *_test(test, table.digits)] for name, test in table.tests.items()]
            blocks.append(markdown([head, *body]))
    return "\n\n".join(blocks)


def _number(mean: float, deviation: float, digits: int) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")


def _test(test: Difference, digits: int) -> list[str]:
    if math.isnan(test.mean):
        return ["-", "-", "-", str(test.n)]
    interval = "-" if math.isnan(test.low) else f"{test.low:+.{digits}f} to {test.high:+.{digits}f}"
    p = "-" if math.isnan(test.p) else "< 0.001" if test.p < 0.001 else f"{test.p:.3f}"
    return [f"{test.mean:+.{digits}f}", interval, p, str(test.n)]
