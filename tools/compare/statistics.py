"""Means over the grid and paired tests of per-case scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """The method minus a rival, over n cases."""

    mean: float
    low: float  # 95 % interval
    high: float
    p: float
    n: int


def cell(rows: Rows, measure: str) -> tuple[float, float]:
    """Mean over all rows, and the sample standard deviation of the seeds' means; nan where there are too few."""
    by_seed = units(rows, measure, ["seed"])
    return _mean([row[measure] for row in rows]), _spread(list(by_seed.values()))


def mean_cell(columns: Sequence[Rows], measure: str) -> tuple[float, float]:
    """The same for the mean of the columns, each of them counting alike; empty ones are left out."""
    columns = [rows for rows in columns if rows]
    by_seed = [units(rows, measure, ["seed"]) for rows in columns]
    shared = [seed for seed in by_seed[0] if all(seed in other for other in by_seed)] if columns else []
    means = [fmean(other[seed] for other in by_seed) for seed in shared]
    return _mean([cell(rows, measure)[0] for rows in columns]), _spread(means)


def paired(ours: Rows, theirs: Rows, measure: str, within: Sequence[str] = ()) -> Difference:
    """Wilcoxon's signed rank test (two-sided) and Student's interval of the mean over cases.

    The unit is the case, a patient: its structures are not independent of each other, and as units of their own they
    would make p too small. Of each structure the seeds, folds, supports and scans are averaged first, then the
    structures of the case, each of them counting alike. Only what both sides have counts. What is measured once a run
    has no case of its own: all of it is one unit, which has a difference and no test.

    Args:
        within: columns that tell the rows of a structure of a case apart, such as the seed: where one side lacks a
            seed's number, the other's does not count either.
    """
    left, right = (units(rows, measure, ("case", "structure", *within)) for rows in (ours, theirs))
    gains: dict[str, dict[str, list[float]]] = {}
    for key in left:
        if key in right:
            case, structure, *_ = key
            gains.setdefault(case, {}).setdefault(structure, []).append(left[key] - right[key])
    means = [fmean(map(fmean, structures.values())) for structures in gains.values()]
    difference = np.array(means).round(9)  # rounded: ties must stay ties
    mean = _mean(difference.tolist())
    if len(difference) < 2:
        return Difference(mean, math.nan, math.nan, math.nan, len(difference))
    low, high = stats.ttest_1samp(difference, 0).confidence_interval(0.95) if np.ptp(difference) else (mean, mean)
    p = stats.wilcoxon(difference).pvalue if difference.any() else 1.0
    return Difference(mean, float(low), float(high), float(p), len(difference))


def units(rows: Rows, measure: str, unit: Sequence[str]) -> dict[tuple, float]:
    """The mean of each unit."""
    groups: dict[tuple, list[float]] = defaultdict(list)
    for row in rows:
        groups[tuple(row.get(column) for column in unit)].append(row[measure])
    return {key: fmean(values) for key, values in groups.items()}


def _mean(values: list[float]) -> float:
    return fmean(values) if values else math.nan


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan
