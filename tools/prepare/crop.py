"""The cut around the label, which the papers on a single structure make."""

from __future__ import annotations

import numpy as np

from common.data.dataset import DataError

__all__ = ["box_around", "check_crop"]


def check_crop(crop: str) -> None:
    """Refuse a value of the option ``crop``.

    Raises:
        DataError: it is neither ``label`` nor ``none``.
    """
    if crop not in ("label", "none"):
        raise DataError(f"crop: expected label or none, found {crop}; correct --crop")


def box_around(label: np.ndarray, margin: int, least: int = 0) -> tuple[slice, ...]:
    """The box around the voxels that are not 0, with a margin as far as the volume goes.

    Args:
        label: ``(*spatial)``, not all 0.
        margin: voxels on each side.
        least: an edge that is shorter without the margin grows on each side by half of what lacks, rounded down.
    """
    box = []
    for axis, size in enumerate(label.shape):
        inside = np.flatnonzero(label.any(axis=tuple(i for i in range(label.ndim) if i != axis)))
        low, high = int(inside[0]), int(inside[-1]) + 1
        more = margin + max(least - (high - low), 0) // 2
        box.append(slice(max(low - more, 0), min(high + more, size)))
    return tuple(box)
