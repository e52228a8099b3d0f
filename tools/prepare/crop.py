"""The cut around the label, which the papers on a single structure make."""

from __future__ import annotations

import numpy as np
from monai.transforms.utils import generate_spatial_bounding_box

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
    low, high = (np.array(ends) for ends in generate_spatial_bounding_box(label[None] != 0))
    more = margin + np.maximum(least - (high - low), 0) // 2
    return tuple(map(slice, np.maximum(low - more, 0).tolist(), np.minimum(high + more, label.shape).tolist()))
