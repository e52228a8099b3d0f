"""``cases.csv``: the rows of a report, for spreadsheets and for comparisons."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.temporary import replaced

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # a text that spreadsheets would calculate
_MARK = "'"  # before it: they show what follows as text


def write_cases_csv(rows: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write the rows, replacing an older file at once; nan becomes an empty cell, columns are the union of all rows.

    A text that a spreadsheet would take for a formula gets an apostrophe in front, as does one that begins with an
    apostrophe; :func:`read_cases_csv` takes it away.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    # half a character, as in file names of another encoding, is written as its number
    with replaced(path) as part, open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def read_cases_csv(path: str | Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns, and the rows with their texts as they were given to :func:`write_cases_csv`."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [{key: value.removeprefix(_MARK) for key, value in row.items()} for row in reader]
        return list(reader.fieldnames or []), rows


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    if isinstance(value, str) and value.lstrip(" ").startswith((*_FORMULA, _MARK)):
        return _MARK + value
    return value
