"""Resizing whose inverse is smooth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.transforms import Invertd, MapTransform, Resized, Zoomd
from monai.utils import ensure_tuple_rep

LINEAR = {2: "bilinear", 3: "trilinear"}  # by the number of axes


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
        return super().inverse(_linear_back(self.key_iterator(data), data))


class ZoomByAread(Zoomd):
    """:class:`monai.transforms.Zoomd` by area, whose inverse is linear; see :class:`ShrinkByAread`.

    Args:
        keys: images ``(C, *spatial)`` with their meta data.
        zoom: new size over old, for all axes or each; above 1 enlarges. An axis of which nothing would be left, such as
            that of a single slice, stays as it is.
    """

    def __init__(self, keys: Any, zoom: float | Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, zoom, mode="area", keep_size=False, allow_missing_keys=allow_missing_keys)
        self.zoom = zoom

    def __call__(self, data: Mapping[Any, Any], lazy: bool | None = None) -> dict[Any, Any]:
        size = data[self.first_key(data)].shape[1:]
        factors = zip(size, ensure_tuple_rep(self.zoom, len(size)), strict=True)
        self.zoomer.zoom = [factor if length * factor >= 1 else 1.0 for length, factor in factors]
        return super().__call__(data, lazy)

    def inverse(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        return super().inverse(_linear_back(self.key_iterator(data), data))


class ZoomByMajorityd(MapTransform):
    """Zoom label maps like :class:`ZoomByAread` zooms images: a voxel takes the class that fills most of it.

    Among equal shares the lowest class. One class after the other, so that memory does not grow with their number.

    Args:
        keys: label maps ``(1, *spatial)``.
        zoom: as for :class:`ZoomByAread`.
        classes: number of labels with the background.
    """

    def __init__(
        self, keys: Any, zoom: float | Sequence[float], classes: int, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.classes, self.zoom = classes, ZoomByAread("mask", zoom)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            label, best, largest = done[key], None, None
            for number in range(self.classes):
                if number > 0 and not bool((label == number).any()):
                    continue  # of a hundred structures a scan may show a few
                share = self.zoom({"mask": (label == number).float()})["mask"]
                if best is None:
                    best, largest = torch.zeros_like(share), share
                else:
                    more = share > largest
                    best[more], largest = float(number), torch.maximum(share, largest)
            done[key] = best
        return done


def _linear_back(keys: Iterable, data: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The same data, whose last operation is inverted linearly."""
    for key in keys:
        data[key].applied_operations[-1]["extra_info"]["mode"] = LINEAR[data[key].ndim - 1]
    return data


def enlarge(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Logits ``(K, *spatial)`` of a reduced image, linearly on the grid ``(K, *size)`` that it was reduced from."""
    return F.interpolate(logits[None], size=tuple(size), mode=LINEAR[logits.ndim - 1], align_corners=False)[0]


def largest_class(logits: Iterable[torch.Tensor]) -> torch.Tensor:
    """The class of the largest logit at each voxel, the lowest of equal ones; one class in memory at a time.

    Args:
        logits: of each class in turn, ``(1, *spatial)``.

    Shape:
        ``(1, *spatial)``, uint8.

    Raises:
        ValueError: more than 256 classes, or none.
    """
    best = largest = None
    for number, own in enumerate(logits):
        if number > 255:
            raise ValueError("expected at most 255 structures, found more: a label map is uint8.")
        if best is None:
            best, largest = torch.zeros_like(own, dtype=torch.uint8), own
        else:
            more = own > largest
            best[more], largest = number, torch.where(more, own, largest)
    if best is None:
        raise ValueError("expected logits of a class or more, found none.")
    return best


class InvertToLabelMapd(MapTransform):
    """MONAI's ``Invertd`` of logits and their argmax, one class after the other: memory does not grow with the classes.

    Args:
        keys: logits ``(K, *size)`` of an image, which become a label map ``(1, *native)``, uint8.
        transform: what the image went through.
        orig_keys: the image, with its meta data.
    """

    def __init__(self, keys: Any, transform: Any, orig_keys: Any = "image") -> None:
        super().__init__(keys)
        self.orig_keys, self.transform = orig_keys, transform

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            invert = Invertd(key, self.transform, self.orig_keys, nearest_interp=False)
            classes = range(len(done[key]))
            done[key] = largest_class(invert({**done, key: done[key][k : k + 1]})[key] for k in classes)
        return done
