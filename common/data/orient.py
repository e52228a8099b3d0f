"""Turning scans, so that slices are cut as they were acquired."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.transforms import Orientationd

PLANES = {"sagittal": "LR", "coronal": "PA", "axial": "IS"}  # and the directions across them
EQUAL = 1.01  # edges whose ratio is smaller are of one length


class OrientScand(Orientationd):
    """Turn a scan to axis codes, its slices along the last axis; a photograph stays as it is.

    Args:
        orientation: axis codes; null keeps the axes as they are stored.
        slices: ``thickest`` puts the axis of the thickest spacing last, among equals the last one; ``sagittal``,
            ``coronal`` or ``axial`` that across this plane; null moves no axis.

    Shape:
        ``(C, *spatial)`` with three axes, or two.
    """

    def __init__(
        self, keys: Any, orientation: str | None, slices: str | None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, axcodes=orientation or "RAS", labels=None, allow_missing_keys=allow_missing_keys)
        self.orientation, self.slices = orientation, slices

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> Mapping[Hashable, Any]:
        image = data[self.first_key(data)]
        if image.ndim != 4 or (self.orientation is None and self.slices is None):
            return data
        self.ornt_transform.axcodes = axis_codes(np.asarray(image.affine), self.orientation, self.slices)
        return super().__call__(data, lazy)

    def inverse(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        if self.orientation is None and self.slices is None or data[self.first_key(data)].ndim != 4:
            return data
        return super().inverse(data)


def axis_codes(affine: np.ndarray, orientation: str | None, slices: str | None) -> str:
    """The codes of a scan's three axes as :class:`OrientScand` turns them."""
    own = nib.aff2axcodes(affine)
    codes = list(orientation or own)
    if slices is None:
        return "".join(codes)
    if slices == "thickest":
        edges = {letter: edge for letter, edge in zip(own, nib.affines.voxel_sizes(affine), strict=True)}
        edge_of = [next(edges[other] for other in own if _along(code, other)) for code in codes]
        last = max(index for index in range(3) if edge_of[index] * EQUAL >= max(edge_of))
    else:
        last = next(index for index, code in enumerate(codes) if code in PLANES[slices])
    codes.append(codes.pop(last))
    return "".join(codes)


def _along(one: str, other: str) -> bool:
    return any({one, other} <= set(pair) for pair in PLANES.values())
