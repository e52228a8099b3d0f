"""Superpixels of slices as stand-ins for classes: training episodes that need no label."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from skimage.segmentation import felzenszwalb
from tqdm import tqdm

from common.data import DataError
from common.data.output_dir import check_output_dir
from common.data.temporary import remove_leftovers, replaced

# Our own: regions of about the size of organs. Scale and sizes are those of slices of 128 x 128 and grow with the area.
SETTINGS = {"scale": 100.0, "sigma": 0.8, "min_size": 60}  # of felzenszwalb, which joins smaller regions to others
MAX_SIZE = 2500  # pixels; larger regions are mostly background
AREA = 128 * 128


class Superpixels:
    """Felzenszwalb regions of every slice, cached on disk by the slices' content.

    Source: Ouyang et al., "Self-supervision with Superpixels", ECCV 2020; the segmentation is scikit-image's. The slice
    is scaled to 0..1 first. Regions of 60 to 2500 pixels of 128 x 128 (0.4 to 15 % of the slice)
    brighter than air (a tenth of the scan's intensity range) count: without these bounds half of the episodes are
    background.

    Args:
        cache_dir: folder for the regions (one file a scan), or null.
    """

    def __init__(self, cache_dir: str | None = None) -> None:
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.regions: list[np.ndarray] = []
        self.table: list[tuple[int, int, list[int]]] = []

    def fit(self, scans: Sequence[dict]) -> None:
        """Find the regions of scans with ``image`` ``(D, 1, H, W)``.

        Raises:
            DataError: no slice has a region of the size wanted.
            OSError: nothing can be written into ``cache_dir``.
        """
        if self.cache_dir is not None:
            remove_leftovers(check_output_dir(self.cache_dir))
        bar = tqdm(scans, desc="superpixels", unit="scan", leave=False, disable=None)
        self.regions = [self._scan_regions(scan["image"][:, 0].numpy()) for scan in bar]
        self.table = []
        for index, (scan, regions) in enumerate(zip(scans, self.regions, strict=True)):
            volume = scan["image"][:, 0].numpy()
            air, smallest, largest = volume.min() + 0.1 * np.ptp(volume), *size_bounds(volume.shape[1:])
            for z, (image, region) in enumerate(zip(volume, regions, strict=True)):
                size = np.bincount(region.ravel())
                mean = np.bincount(region.ravel(), weights=image.ravel()) / np.maximum(size, 1)
                fit = (size >= smallest) & (size <= largest) & (mean > air)
                if fit.any():
                    self.table.append((index, z, np.flatnonzero(fit).tolist()))
        if not self.table:
            raise DataError(
                f"no superpixel of {smallest} to {largest} pixels in {len(scans)} scans: "
                "set superpixel_share to 0, or a larger image_size."
            )

    def draw(self, rng: np.random.Generator) -> tuple[int, int, torch.Tensor]:
        """Scan, slice and mask ``(1, H, W)`` of a random region."""
        scan, z, ids = self.table[rng.integers(len(self.table))]
        return scan, z, torch.from_numpy(self.regions[scan][z] == rng.choice(ids))[None].float()

    def _scan_regions(self, volume: np.ndarray) -> np.ndarray:
        key = hashlib.sha256(
            repr((volume.shape, sorted(SETTINGS.items()))).encode() + volume.tobytes()
        ).hexdigest()
        file = None if self.cache_dir is None else self.cache_dir / f"{key[:32]}.npy"
        if file is not None and file.is_file():
            return np.load(file, allow_pickle=False)
        regions = np.stack([self._slice_regions(image) for image in volume]).astype(np.uint16)
        if file is not None:
            with replaced(file) as part, part.open("wb") as stream:
                np.save(stream, regions, allow_pickle=False)
        return regions

    def _slice_regions(self, image: np.ndarray) -> np.ndarray:
        span, smallest = np.ptp(image), size_bounds(image.shape)[0]
        scaled = (image - image.min()) / (span if span > 0 else 1.0)
        scale = SETTINGS["scale"] * image.size / AREA
        return felzenszwalb(scaled, scale=scale, sigma=SETTINGS["sigma"], min_size=smallest)


def size_bounds(shape: Sequence[int]) -> tuple[int, int]:
    """Pixels of the smallest and the largest region in slices of this height and width."""
    share = math.prod(shape) / AREA
    return round(SETTINGS["min_size"] * share), round(MAX_SIZE * share)
