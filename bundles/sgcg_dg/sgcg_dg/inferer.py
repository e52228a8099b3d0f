"""How a whole scan or photograph goes through the network, and from logits to a label map."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.inferers import SliceInferer
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

from common.data import make_cleanup
from common.data.draws import plain

from .protocol import BATCH, Protocol, clean_mask
from .regions import Regions


class WholeInferer(SliceInferer):
    """A photograph as it is, a scan slice by slice along its last axis; both at the network's size.

    Args:
        image_size: of a slice.

    Shape:
        ``(1, C, H, W)`` or ``(1, C, H, W, S)`` to logits ``(1, K, ...)`` of the same size.
    """

    def __init__(self, image_size: Sequence[int]) -> None:
        super().__init__(spatial_dim=2, roi_size=image_size, sw_batch_size=BATCH)

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        return network(inputs) if inputs.ndim == 4 else super().__call__(inputs, network, *args, **kwargs)


class RegionsToLabeld(MapTransform):
    """Logits of the regions to a label map; inner regions are drawn over outer ones.

    Args:
        regions: name to label ids, as in training.
        cleanup: of each region, see :func:`common.data.make_cleanup`.

    Shape:
        ``(K, *spatial)`` to ``(1, *spatial)``, uint8.
    """

    def __init__(self, keys: Any, regions: Mapping[str, Sequence[int]], cleanup: Sequence[str]) -> None:
        super().__init__(keys)
        self.regions = Regions(regions, {label: str(label) for ids in regions.values() for label in ids})
        self.clean = make_cleanup(cleanup)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        data = dict(data)
        for key in self.key_iterator(data):
            shares = (logits.float().cpu().sigmoid() for logits in plain(data[key]))
            masks = [clean_mask(share > Protocol.threshold, self.clean) for share in shares]
            label = self.regions.label_map(masks)[None]
            data[key] = convert_to_dst_type(label, data[key], dtype=torch.uint8)[0]  # keeps the affine
        return data
