"""How a measure is written: its name, its unit and its digits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median

from common.report.cases import COLUMN_UNITS

SHARES = ("dice", "jaccard")  # of 1; written in percent
_SHORT = ("hd95", "asd")


def name_of(measure: str) -> tuple[str, str]:
    """The name and the unit: ``("Dice", "%")``, ``("HD95", "mm")`` of ``hd95_mm``, ``("Scatter", "")``."""
    if measure in SHARES:
        return measure.capitalize(), "%"
    parts = measure.split("_")
    units = [part for part in parts if part in COLUMN_UNITS]
    first, *rest = [part for part in parts if part not in COLUMN_UNITS] or parts
    return " ".join([first.upper() if first in _SHORT else first.capitalize(), *rest]), " ".join(units)


def column_of(measure: str, columns: Sequence[str]) -> str:
    """The column of a measure, whose unit need not be given: ``hd95_mm``, or ``hd95_px``, of ``hd95``."""
    found = [column for column in columns if set(column.split("_")) & set(_SHORT) and _bare(column) == measure]
    return measure if measure in columns or len(found) != 1 else found[0]


def _bare(column: str) -> str:
    return "_".join(part for part in column.split("_") if part not in COLUMN_UNITS)


def factor_of(measure: str) -> int:
    """From a column of ``cases.csv`` to what is printed."""
    return 100 if measure in SHARES else 1


def digits_of(measure: str, printed: Iterable[float]) -> int:
    """Decimals for a table: one for percent, else three significant digits of its median."""
    sizes = [abs(value) for value in printed if value and math.isfinite(value)]
    if measure in SHARES or not sizes:
        return 1
    return max(0, 2 - math.floor(math.log10(median(sizes))))
