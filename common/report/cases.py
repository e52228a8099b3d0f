"""Per-case scores that count what a network missed, and their summary table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance, compute_iou

from .markdown import markdown

NAN = float("nan")
UNITS = ("mm", "px")  # of a spacing
DISTANCE_UNITS = ("mm", "voxels")
COLUMN_UNITS = (*UNITS, "voxels")
_STATUSES = ("absent", "missed", "false_positive")


def score_structure(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    distances: bool = True,
    distance_unit: str = "mm",
    unit: str = "mm",
    symmetric: bool = True,
) -> dict[str, Any]:
    """Scores of one structure in one case.

    ======================  ==============  =============  ================  ====================
    truth / prediction      status          Dice, Jaccard  HD95, ASD         HD95, ASD found only
    ======================  ==============  =============  ================  ====================
    present / present       ok              share          distance          distance
    present / empty         missed          0              volume diagonal   nan
    empty / present         false_positive  0              nan               nan
    empty / empty           absent          nan            nan               nan
    ======================  ==============  =============  ================  ====================

    HD95 is the larger of the two directed 95th percentiles; ASD averages the distances of both surfaces to the other
    (symmetric). The unit stands in the names of their columns: ``hd95_mm``, ``asd_px``. Volumes are nan in 2D and
    without millimetres. nan never enters a mean.

    Args:
        prediction: boolean mask, or anything where not 0 means inside.
        truth: the same for the truth.
        spacing: mm per voxel, one number for each axis; for data without spacing usually 1 for each.
        distances: False leaves HD95 and ASD out (nan): they take most of the time.
        distance_unit: "mm", or the ``unit`` of data without it; "voxels" whatever their spacing, as much of the
            literature prints them.
        unit: of ``spacing``: "mm", or "px" for data without spacing.
        symmetric: False gives the ASD of older papers, from the prediction's surface to that of the truth alone, which
            does not see what the prediction leaves out; the column's name stays.

    Shape:
        both ``(*spatial)``.

    Raises:
        ValueError: shapes or spacing do not fit, or a unit is another.
    """
    if unit not in UNITS:
        raise ValueError(f"unit: expected one of {', '.join(UNITS)}, found {unit}.")
    prediction, truth = np.asarray(prediction) != 0, np.asarray(truth) != 0
    spacing = [float(step) for step in spacing]
    if prediction.shape != truth.shape or len(spacing) != truth.ndim or min(spacing) <= 0:
        raise ValueError(
            "expected two masks of one shape and a positive spacing for each axis, found prediction "
            f"{prediction.shape}, truth {truth.shape}, spacing {tuple(spacing)}."
        )
    voxel_ml = math.prod(spacing) / 1000 if truth.ndim == 3 and unit == "mm" else NAN
    counts = {"truth_voxels": int(truth.sum()), "prediction_voxels": int(prediction.sum())}
    volumes = {"truth_ml": counts["truth_voxels"] * voxel_ml, "prediction_ml": counts["prediction_voxels"] * voxel_ml}
    status = _status(counts["truth_voxels"], counts["prediction_voxels"])
    unit = column_unit(unit, distance_unit)
    spacing = [1.0] * truth.ndim if unit == "voxels" else spacing
    *shares, hd95, asd = _measures(status, prediction, truth, spacing, distances, symmetric)
    found = [value if status == "ok" else NAN for value in (hd95, asd)]
    measures = dict(zip(_measure_names(unit), (*shares, hd95, found[0], asd, found[1]), strict=True))
    return {"status": status, **measures, **counts, **volumes}


def check_distance_unit(distance_unit: str) -> str:
    """``distance_unit`` as it is: for those who want to know before a training and not after it.

    Raises:
        ValueError: it is neither mm nor voxels.
    """
    if distance_unit not in DISTANCE_UNITS:
        raise ValueError(f"distance_unit: expected one of {', '.join(DISTANCE_UNITS)}, found {distance_unit}.")
    return distance_unit


def column_unit(unit: str, distance_unit: str) -> str:
    """The unit of HD95 and ASD, which stands in the names of their columns: that of the spacing, or voxels."""
    return "voxels" if check_distance_unit(distance_unit) == "voxels" else unit


def case_rows(
    case: str,
    prediction: np.ndarray,
    truth: np.ndarray,
    structures: Mapping[int, str],
    spacing: Sequence[float],
    unit: str = "mm",
    distances: bool = True,
    distance_unit: str = "mm",
    **extra: Any,
) -> list[dict[str, Any]]:
    """One row for each structure of two label maps, with ``extra`` columns (protocol, seed, ...) behind the case.

    Args:
        structures: label value to name, without the background.
        spacing, unit, distances, distance_unit: as in :func:`score_structure`.
    """
    rows = []
    for label, name in structures.items():
        scores = score_structure(prediction == label, truth == label, spacing, distances, distance_unit, unit)
        rows.append({"case": case, **extra, "structure": name, **scores})
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], by: Sequence[str] = ("structure",)) -> list[dict[str, Any]]:
    """Mean and sample standard deviation for each group, then over all rows ("all"), with the counts.

    Args:
        by: columns that make a group; the last one is pooled in the rows named "all".

    Returns:
        dicts with the columns of ``by``, ``n`` (rows), ``n_absent``, ``n_missed``, ``n_false_positive`` and for each
        measure ``<measure>_mean`` and ``<measure>_std`` (nan without enough values).

    Raises:
        ValueError: the rows' distances have several units.
    """
    names = _measure_names(_unit(rows))
    *outer, last = by
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((*(row[column] for column in outer), row[last]), []).append(row)
    for row in rows:
        groups.setdefault((*(row[column] for column in outer), "all"), []).append(row)
    return [dict(zip(by, key, strict=True)) | _summary(group, names) for key, group in groups.items()]


def format_table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a Markdown table that also reads well as plain text."""
    names = list(summary[0])[: list(summary[0]).index("n")] if summary else []
    unit = _unit(summary, "_mean")
    distances = [f"HD95 {unit}", f"HD95 {unit}, found only", f"ASD {unit}"]
    head = [*names, "Dice", "Jaccard", *distances, "n", "absent", "missed", "false positive"]
    body = [
        [
            *(str(line[name]) for name in names),
            *(_plus_minus(line, measure, 3) for measure in ("dice", "jaccard")),
            *(_plus_minus(line, measure, 1) for measure in _measure_names(unit)[2:5]),
            *(str(line[count]) for count in ("n", "n_absent", "n_missed", "n_false_positive")),
        ]
        for line in summary
    ]
    return markdown([head, *body])


def _status(truth_voxels: int, prediction_voxels: int) -> str:
    if truth_voxels:
        return "ok" if prediction_voxels else "missed"
    return "false_positive" if prediction_voxels else "absent"


def _measure_names(unit: str) -> tuple[str, ...]:
    return ("dice", "jaccard", f"hd95_{unit}", f"hd95_{unit}_found_only", f"asd_{unit}", f"asd_{unit}_found_only")


def _unit(rows: Sequence[Mapping[str, Any]], ending: str = "") -> str:
    """The one unit of the rows' distances."""
    found = [unit for unit in COLUMN_UNITS if any(f"hd95_{unit}{ending}" in row for row in rows)]
    if len(found) > 1:
        raise ValueError(f"expected distances in one unit, found {' and '.join(found)}: make a table of each.")
    return found[0] if found else UNITS[0]


def _measures(
    status: str, prediction: np.ndarray, truth: np.ndarray, spacing: list[float], distances: bool, symmetric: bool
) -> tuple[float, float, float, float]:
    """Dice, Jaccard, HD95, ASD."""
    if status == "missed" and distances:
        diagonal = math.dist([0.0] * truth.ndim, [size * step for size, step in zip(truth.shape, spacing, strict=True)])
        return 0.0, 0.0, diagonal, diagonal
    if status != "ok":
        share = NAN if status == "absent" else 0.0
        return share, share, NAN, NAN
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing}
    shares = [compute(*pair, include_background=True).item() for compute in (compute_dice, compute_iou)]
    if not distances:
        return *shares, NAN, NAN
    with warnings.catch_warnings():  # MONAI 1.6 calls a function of its own with an argument it has deprecated
        warnings.filterwarnings("ignore", "monai.metrics.utils get_mask_edges", FutureWarning)
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options).item()
        asd = compute_average_surface_distance(*pair, symmetric=symmetric, **options).item()
    return *shares, hd95, asd


def _summary(rows: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {"n": len(rows)}
    summary |= {f"n_{status}": sum(row["status"] == status for row in rows) for status in _STATUSES}
    for measure in measures:
        values = [row[measure] for row in rows if not math.isnan(row[measure])]
        summary[f"{measure}_mean"] = fmean(values) if values else NAN
        summary[f"{measure}_std"] = stdev(values) if len(values) > 1 else NAN
    return summary


def _plus_minus(line: Mapping[str, Any], measure: str, digits: int) -> str:
    mean, deviation = line[f"{measure}_mean"], line[f"{measure}_std"]
    if math.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{digits}f}")
