"""From an image file to what a network sees: one description, which training, evaluation and inference share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import (
    Compose,
    CopyItemsd,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    MapTransform,
    NormalizeIntensityd,
    Resized,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Transform,
)

from common.data.dataset import KINDS, DataError
from common.data.orient import PLANES, OrientScand
from common.data.scan import ScanReader
from common.data.shrink import ShrinkByAread, ZoomByAread, ZoomByMajorityd
from common.description import described

INTENSITIES = {
    "bytes": lambda: ScaleIntensityRanged("image", 0, 255, 0.0, 1.0, clip=True),
    "percentiles": lambda: ScaleIntensityRangePercentilesd("image", 0, 99.5, 0.0, 1.0, clip=True),
    "zscore": lambda: NormalizeIntensityd("image", channel_wise=True),
}


class CheckFinited(MapTransform):
    """Refuse an image that is not finite when the network gets it, whatever its file holds.

    Raises:
        DataError: naming the file.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        for key in self.key_iterator(data):
            if not bool(torch.isfinite(torch.as_tensor(data[key])).all()):
                name = getattr(data[key], "meta", {}).get("filename_or_obj", "the image")
                raise DataError(f"{name}: expected finite values for the network, found NaN or Inf after "
                                "normalisation; look for fill values in the file.")  # fmt: skip
        return data


@described()
class Preprocessing:
    """The deterministic steps before a network, the same wherever a model is used; ``model.json`` records them.

    In this order: load; channels first; turn to ``orientation`` and ``slices``; shrink by ``zoom``; the ``intensity``
    steps; resize to ``image_size``. Images are shrunk by area; a label takes, of a smaller voxel, the class that fills
    most of it (``zoom``) or the nearest one (``image_size``).

    Args:
        channels: of an image file.
        kinds: which files are taken, of ``photographs`` (PNG, JPEG) and ``scans`` (NIfTI).
        orientation: axis codes that scans are turned to, or null.
        slices: the axis that becomes the last one, along which scans are cut: ``thickest``, that across ``sagittal``,
            ``coronal`` or ``axial`` planes, or null; see :class:`.OrientScand`.
        zoom: new size over old, for all axes or each, or null.
        intensity: steps out of ``bytes`` (0..255 to 0..1), ``percentiles`` (least value and 99.5th percentile to 0..1,
            clipped) and ``zscore`` (mean 0, standard deviation 1, of each channel).
        image_size: of an image, or of each slice of a scan; null leaves the size alone.

    Raises:
        ValueError: an unknown kind or step, no kind, or a value of another type.
    """

    def __init__(
        self,
        channels: int = 1,
        kinds: Sequence[str] = ("scans",),
        orientation: str | None = "RAS",
        zoom: float | Sequence[float] | None = None,
        intensity: Sequence[str] = ("zscore",),
        image_size: Sequence[int] | None = None,
        slices: str | None = None,
    ) -> None:
        for option, given, known in (("kinds", kinds, KINDS), ("intensity", intensity, INTENSITIES)):
            fits = isinstance(given, (list, tuple)) and all(name in list(known) for name in given)
            if not fits or (option == "kinds" and not given):
                raise ValueError(f"{option}: expected a list out of {', '.join(known)}, found {given!r}.")
        if slices not in (None, "thickest", *PLANES):
            raise ValueError(f"slices: expected thickest, {', '.join(PLANES)} or null, found {slices!r}.")
        _check_values(channels, orientation, zoom, image_size)
        self.channels, self.kinds, self.orientation, self.slices = channels, list(kinds), orientation, slices
        self.zoom, self.intensity, self.image_size = zoom, list(intensity), image_size

    def training(self, classes: int | None = None) -> Compose:
        """Image and, where there is one, label at the network's size.

        Args:
            classes: number of labels with the background, which ``zoom`` asks for.

        Raises:
            ValueError: there is a ``zoom`` and no ``classes``.
        """
        keys = ["image", "label"]
        steps: list[Transform] = self._load(keys)
        if self.zoom is not None:
            if classes is None:  # MONAI would make a label of zeros
                raise ValueError("training: expected the number of classes, which zoom asks for, found none; give it.")
            steps += [
                ZoomByMajorityd("label", self.zoom, classes, allow_missing_keys=True),
                ZoomByAread("image", self.zoom),
            ]
        steps += self._intensity()
        if self.image_size is not None:
            steps.append(Resized(keys, self._size(), mode=["area", "nearest-exact"], allow_missing_keys=True))
        return Compose([*steps, CheckFinited("image")])

    def evaluation(self) -> Compose:
        """The image at the network's size; the label, and the image as ``native``, at the file's own."""
        steps = [*self._load(["image", "label"]), CopyItemsd("image", names="native")]
        zoom = [] if self.zoom is None else [ZoomByAread("image", self.zoom)]
        resize = [] if self.image_size is None else [Resized("image", self._size(), mode="area")]
        return Compose([*steps, *zoom, *self._intensity(), *resize, CheckFinited("image")])

    def inference(self, checks: Sequence[Callable] = ()) -> Compose:
        """The image alone, with steps that ``Invertd`` takes back smoothly.

        Args:
            checks: transforms right after loading.
        """
        load, *others = self._load(["image"])
        zoom = [] if self.zoom is None else [ZoomByAread("image", self.zoom)]
        resize = [] if self.image_size is None else [ShrinkByAread("image", self._size())]
        return Compose([load, *checks, *others, *zoom, *self._intensity(), *resize, CheckFinited("image")])

    def _load(self, keys: Sequence[str]) -> list[Transform]:
        load = LoadImaged(keys, allow_missing_keys=True)
        load.register(ScanReader())
        steps = [load, EnsureChannelFirstd(keys, allow_missing_keys=True)]
        if "label" in keys:  # a slope of the header leaves 1.9999999, which would become 1
            steps.append(Lambdad("label", torch.round, allow_missing_keys=True))
        if self.orientation is not None or self.slices is not None:
            steps.append(OrientScand(keys, self.orientation, self.slices, allow_missing_keys=True))
        return steps

    def _intensity(self) -> list[Transform]:
        return [INTENSITIES[name]() for name in self.intensity]

    def _size(self) -> list[int]:
        """A scan's third axis keeps its length where two are given."""
        return [*self.image_size, -1][:3] if self.kinds == ["scans"] else list(self.image_size)


def _check_values(channels: Any, orientation: Any, zoom: Any, image_size: Any) -> None:
    """A model.json may hold anything: what does not fit would end in the text of a library."""
    problems = []
    if not _is_length(channels):
        problems.append(f"channels: expected a whole number of 1 or more, found {channels!r}")
    if orientation is not None and not _are_axis_codes(orientation):
        problems.append(f"orientation: expected axis codes such as RAS, or null, found {orientation!r}")
    if zoom is not None and not all(type(factor) in (int, float) for factor in _as_list(zoom)):
        problems.append(f"zoom: expected a number, a list of one for each axis, or null, found {zoom!r}")
    if image_size is not None and not (len(_as_list(image_size)) in (2, 3) and all(map(_is_length, image_size))):
        problems.append(f"image_size: expected a list of two or three lengths, or null, found {image_size!r}")
    if problems:
        raise ValueError(f"{'; '.join(problems)}; correct it.")


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_axis_codes(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 3 and all(set(pair) & set(value) for pair in PLANES.values())
