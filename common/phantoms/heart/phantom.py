"""Cardiac phantom: short-axis scans through the ventricles and into the atria, of subjects who all differ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from .anatomy import Canvas, Subject, paint_chest, paint_heart

__all__ = ["STACK", "VOLUME", "Acquisition", "draw_scan"]


@dataclass(frozen=True)
class Acquisition:
    """How subjects are scanned.

    Args:
        shape: voxels to the right of the picture, down, and from the heart's apex to its base.
        spacing: their size along these axes, mm; the first two are equal.
        slabs: a slice is the mean of so many thinner ones: partial volume between slices.
        breath: spread of the place of a slice's breath-hold, mm; 0 when all slices are taken at once.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    slabs: int
    breath: float

    @property
    def fine(self) -> Acquisition:
        """The same view in slabs, which are painted before they are averaged."""
        (*plane, slices), (*pixel, thickness) = self.shape, self.spacing
        return replace(self, shape=(*plane, slices * self.slabs), spacing=(*pixel, thickness / self.slabs), slabs=1)

    @property
    def affine(self) -> np.ndarray:
        """4 x 4, in RAS+ and mm: the axes go to the patient's left, to the back, and up; the origin is the middle."""
        steps = np.array(self.spacing) * (-1, -1, 1)
        affine = np.diag([*steps, 1.0])
        affine[:3, 3] = -steps * (np.array(self.shape) - 1) / 2
        return affine


STACK = Acquisition((64, 64, 12), (2.5, 2.5, 8.0), slabs=3, breath=1.2)  # thick slices, each in a breath-hold
VOLUME = Acquisition((48, 48, 24), (3.3, 3.3, 4.0), slabs=2, breath=0.0)  # as much of the chest, taken at once


def draw_scan(rng: np.random.Generator, subject: Subject, acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """One scan.

    Args:
        rng: decides everything that ``subject`` does not.
        subject: who is scanned.
        acquisition: how.

    Returns:
        Image, 0 .. 255, and label, uint8, both in the acquisition's shape. Papillary muscles belong to the cavity;
        atria and great vessels, as bright as the ventricles, are background.
    """
    chest, heart = _points(rng, subject, acquisition)
    fine = acquisition.fine
    canvas = Canvas(chest, _smooth_noise(rng, 3, fine), _smooth_noise(rng, 9, fine), edge=fine.spacing[0])
    paint_chest(rng, canvas, subject)
    canvas.points = heart
    paint_heart(rng, canvas, subject)
    tissue = canvas.image.reshape(*acquisition.shape, acquisition.slabs).mean(-1)
    shares = canvas.shares.reshape(-1, *acquisition.shape, acquisition.slabs).mean(-1)
    return _scan(rng, tissue, subject), shares.argmax(0).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, width: float, fine: Acquisition) -> np.ndarray:
    """Noise of unit deviation, smoothed with a Gaussian of ``width`` mm."""
    sigma = [width / step for step in fine.spacing]
    field = ndimage.gaussian_filter(rng.standard_normal(fine.shape, np.float32), sigma, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def _points(rng: np.random.Generator, subject: Subject, acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Where each voxel lies in the chest, and in the heart, which is tilted, bent and turned in it.

    Every slice is a breath-hold of its own where these differ, so neighbours do not quite fit.
    """
    fine = acquisition.fine
    grid = zip(fine.shape, fine.spacing, strict=True)
    axes = [((np.arange(size) - (size - 1) / 2) * step).astype(np.float32) for size, step in grid]
    chest = np.stack(np.meshgrid(*axes, indexing="ij"))
    breath = np.repeat(rng.normal(0, acquisition.breath, (2, acquisition.shape[2])), acquisition.slabs, axis=1)
    place = breath + [[subject.shift_x], [subject.shift_y]]
    chest[:2] -= place[:, None, None].astype(np.float32)
    lean = rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    x, y = (chest[i] - lean[i] * chest[2] + 2 * _smooth_noise(rng, 20, fine) for i in range(2))
    cos, sin = (np.float32(wave(np.deg2rad(subject.turn))) for wave in (np.cos, np.sin))
    return chest, np.stack([cos * x + sin * y, cos * y - sin * x, chest[2]])


def _scan(rng: np.random.Generator, tissue: np.ndarray, subject: Subject) -> np.ndarray:
    """What a scanner makes of tissue: tone curve, coil shading, blur, Rician noise, 255 at the 99.5th percentile."""
    curve = 255 * (np.clip(tissue, 0, 255) / 255) ** subject.gamma
    x, y = np.meshgrid(*(np.linspace(-0.5, 0.5, size) for size in tissue.shape[:2]), indexing="ij")
    shaded = curve * np.exp(-subject.shading * (y + rng.uniform(-0.7, 0.7) * x))[..., None]
    blurred = ndimage.gaussian_filter(shaded, (subject.blur, subject.blur, 0))
    real, imaginary = rng.normal(0, subject.noise, (2, *tissue.shape))
    magnitude = np.hypot(blurred + real, imaginary)
    return np.clip(magnitude * (255 / np.percentile(magnitude, 99.5)), 0, 255)
