"""Resizing whose inverse is smooth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai.transforms import Resized


class ShrinkByAread(Resized):
    """:class:`monai.transforms.Resized` by area, whose inverse is linear.

    MONAI inverts with the mode of the way there, and logits enlarged by area are blocks; validation enlarges linearly.

    Args:
        keys: images ``(C, *spatial)`` with their meta data.
        spatial_size: as for ``Resized``.
    """

    def __init__(self, keys: Any, spatial_size: Sequence[int]) -> None:
        super().__init__(keys, spatial_size, mode="area")

    def inverse(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        for key in self.key_iterator(data):
            mode = "bilinear" if data[key].ndim == 3 else "trilinear"
            data[key].applied_operations[-1]["extra_info"]["mode"] = mode
        return super().inverse(data)
