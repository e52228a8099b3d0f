"""From logits to a label map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from .protocol import Protocol, largest_and_filled, threshold
from .regions import Regions


class RegionsToLabeld(MapTransform):
    """Logits of the regions to a label map; inner regions are drawn over outer ones.

    Args:
        regions: name to label ids, as in training.
        protocol: arguments of :class:`~sgcg_dg.protocol.Protocol`: head, threshold, largest component.

    Shape:
        ``(K, *spatial)`` (softmax: ``(1 + K, *spatial)``) to ``(1, *spatial)``, uint8.
    """

    def __init__(
        self, keys: Any, regions: Mapping[str, Sequence[int]], protocol: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(keys)
        self.regions = Regions(regions, {label: str(label) for ids in regions.values() for label in ids})
        self.protocol = Protocol(**(protocol or {}))

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            masks = threshold(torch.as_tensor(data[key]).as_subclass(torch.Tensor).float().cpu(), self.protocol)
            if self.protocol.largest_component:
                masks = torch.from_numpy(np.stack([largest_and_filled(mask) for mask in masks.numpy()]))
            label = self.regions.label_map(masks)[None]
            data[key] = convert_to_dst_type(label, data[key], dtype=torch.uint8)[0]  # keeps the affine
        return data
