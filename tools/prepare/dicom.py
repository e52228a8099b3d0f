"""DICOM slices: reading one, and stacking those of a scan by their positions in the patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from monai.utils import optional_import

from common.data.dataset import DataError
from tools.prepare.recipe import Bad

__all__ = ["Slice", "need_pydicom", "read_slice", "stack_order"]

pydicom, HAS_PYDICOM = optional_import("pydicom")

Slice = tuple[np.ndarray, np.ndarray, np.ndarray]  # as read_slice returns them


def need_pydicom(name: str) -> None:
    """Say how to install pydicom where it is not.

    Raises:
        DataError: it is not installed.
    """
    if not HAS_PYDICOM:
        raise DataError(f"reading {name} needs the package pydicom, which is not installed: pip install pydicom")


def read_slice(file: Path) -> Slice:
    """Pixels, position of the first pixel, and the steps to the next column and row (DICOM's LPS millimetres).

    Raises:
        Bad: the file cannot be read or is no slice.
    """
    try:
        data = pydicom.dcmread(file)
        pixels = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        position = np.array(data.ImagePositionPatient, dtype=float)
        along_row, along_column = np.array(data.ImageOrientationPatient, dtype=float).reshape(2, 3)
        # PixelSpacing is (between rows, between columns)
        steps = np.stack([along_row * float(data.PixelSpacing[1]), along_column * float(data.PixelSpacing[0])], axis=1)
    except (pydicom.errors.InvalidDicomError, AttributeError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise Bad([f"{file}: expected a DICOM slice, found {type(error).__name__}: {error}; copy it again"]) from error
    return pixels, position, steps


def stack_order(folder: Path, slices: list[Slice]) -> tuple[list[int], np.ndarray]:
    """The order of the slices of a scan along their normal, and the affine (RAS+) of the array column, row, slice.

    Raises:
        Bad: the slices do not form a volume.
    """
    if len(slices) < 2:
        raise Bad([f"{folder}: expected the slices of a volume, found {len(slices)}; unpack the download again"])
    steps = slices[0][2]
    normal = np.cross(steps[:, 0], steps[:, 1])
    normal /= np.linalg.norm(normal)
    heights = np.array([position @ normal for _, position, _ in slices])
    order = np.argsort(heights, kind="stable").tolist()
    gaps = np.diff(heights[order])
    if any(one[0].shape != slices[0][0].shape or not np.allclose(one[2], steps, atol=1e-4) for one in slices):
        raise Bad([f"{folder}: expected slices of one size, spacing and direction, found several; remove what does "
                   "not belong to the scan"])
    if gaps.min() < 0.01 or gaps.max() - gaps.min() > 0.1 * gaps.mean():
        found = f"{gaps.min():.2f} to {gaps.max():.2f} mm"
        raise Bad([f"{folder}: expected slices at even distances, found {found}; one is missing or there twice"])
    first, last = slices[order[0]][1], slices[order[-1]][1]
    affine = np.eye(4)
    affine[:3, :2] = steps
    affine[:3, 2] = (last - first) / (len(slices) - 1)
    affine[:3, 3] = first
    return order, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS
