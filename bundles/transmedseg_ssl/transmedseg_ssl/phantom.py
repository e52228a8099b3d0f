"""Cardiac phantom: short-axis scans through the ventricles and into the atria, of subjects who all differ."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from transmedseg_ssl.anatomy import Canvas, Subject, paint_chest, paint_heart

__all__ = ["SHAPE", "SPACING", "draw_scan"]

SHAPE, SPACING = (64, 64, 12), (2.5, 2.5, 8.0)
SLABS = 3  # a slice is the mean of three thinner ones: partial volume between slices
FINE_SHAPE, FINE_SPACING = (*SHAPE[:2], SHAPE[2] * SLABS), (*SPACING[:2], SPACING[2] / SLABS)


def draw_scan(rng: np.random.Generator, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """One scan.

    Args:
        rng: decides everything that ``subject`` does not.

    Returns:
        Image ``SHAPE``, 0 .. 255, and label ``SHAPE`` uint8. Papillary muscles belong to the cavity; atria and great
        vessels, as bright as the ventricles, are background.
    """
    chest, heart = _points(rng, subject)
    canvas = Canvas(chest, _smooth_noise(rng, 3), _smooth_noise(rng, 9), edge=SPACING[0])
    paint_chest(rng, canvas, subject)
    canvas.points = heart
    paint_heart(rng, canvas, subject)
    tissue = canvas.image.reshape(*SHAPE, SLABS).mean(-1)
    shares = canvas.shares.reshape(-1, *SHAPE, SLABS).mean(-1)
    return _scan(rng, tissue, subject), shares.argmax(0).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, width: float) -> np.ndarray:
    """Noise of unit deviation, smoothed with a Gaussian of ``width`` mm."""
    sigma = [width / step for step in FINE_SPACING]
    field = ndimage.gaussian_filter(rng.standard_normal(FINE_SHAPE, np.float32), sigma, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def _points(rng: np.random.Generator, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """Where each voxel lies in the chest, and in the heart, which is tilted, bent and turned in it.

    Every slice is a breath-hold of its own, so neighbours do not quite fit.
    """
    grid = zip(FINE_SHAPE, FINE_SPACING, strict=True)
    axes = [((np.arange(size) - (size - 1) / 2) * step).astype(np.float32) for size, step in grid]
    chest = np.stack(np.meshgrid(*axes, indexing="ij"))
    breath = np.repeat(rng.normal(0, 1.2, (2, SHAPE[2])), SLABS, axis=1)
    place = breath + [[subject.shift_x], [subject.shift_y]]
    chest[:2] -= place[:, None, None].astype(np.float32)
    lean = rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    x, y = (chest[i] - lean[i] * chest[2] + 2 * _smooth_noise(rng, 20) for i in range(2))
    cos, sin = (np.float32(wave(np.deg2rad(subject.turn))) for wave in (np.cos, np.sin))
    return chest, np.stack([cos * x + sin * y, cos * y - sin * x, chest[2]])


def _scan(rng: np.random.Generator, tissue: np.ndarray, subject: Subject) -> np.ndarray:
    """What a scanner makes of tissue: tone curve, coil shading, blur, Rician noise, 255 at the 99.5th percentile."""
    curve = 255 * (np.clip(tissue, 0, 255) / 255) ** subject.gamma
    x, y = np.meshgrid(*(np.linspace(-0.5, 0.5, size) for size in SHAPE[:2]), indexing="ij")
    shaded = curve * np.exp(-subject.shading * (y + rng.uniform(-0.7, 0.7) * x))[..., None]
    blurred = ndimage.gaussian_filter(shaded, (subject.blur, subject.blur, 0))
    real, imaginary = rng.normal(0, subject.noise, (2, *SHAPE))
    magnitude = np.hypot(blurred + real, imaginary)
    return np.clip(magnitude * (255 / np.percentile(magnitude, 99.5)), 0, 255)
