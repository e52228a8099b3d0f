"""Sample data: twelve seeded abdominal phantoms, one of them the annotated scan that masks are taken from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from apscl_fewshot.phantom import ORGANS, Canvas, draw_abdomen, smooth_noise
from common.data.write import Case, atomic_folder, write_dataset

__all__ = ["generate_sample_data"]

SHAPE, SPACING = (128, 128, 24), (2.5, 2.5, 7.5)
# axes to the left, the front and the head, as the abdominal MR sets have them; NIfTI's own first axis points right
AFFINE = np.array([[-2.5, 0, 0, 158.75], [0, 2.5, 0, -158.75], [0, 0, 7.5, -86.25], [0, 0, 0, 1]])
TRAINING, VALIDATION = 8, 3
SLABS = 2  # a slice is the mean of two thinner ones: partial volume between slices


def generate_sample_data(directory: str | os.PathLike, seed: int = 0) -> Path:
    """Write the sample data set and, inside it, ``support/``: a data set of the one annotated support scan.

    Everything is drawn from ``seed``: the same seed gives the same files, byte for byte.

    Args:
        directory: folder to create; it must not exist or be empty.
        seed: which twelve subjects.

    Returns:
        The folder: ``training`` 8 scans, ``validation`` 3; ``support/`` has 1 in ``training``.
    """
    about = {"description": "Synthetic abdomens in the look of fat-suppressed T2 MRI", "licence": "Apache-2.0"}
    numbers = iter(range(1, TRAINING + VALIDATION + 2))

    def subjects(count: int) -> Iterator[Case]:
        return (draw_subject(next(numbers), seed) for _ in range(count))

    with atomic_folder(directory) as root:
        modality = {"0": "synthetic T2 MRI"}
        training, validation = subjects(TRAINING), subjects(VALIDATION)
        write_dataset(root, "phantom", modality, ORGANS, training=training, validation=validation, extra=about)
        write_dataset(root / "support", "phantom_support", modality, ORGANS, training=subjects(1), extra=about)
    return Path(directory)


def draw_subject(number: int, seed: int) -> Case:
    """The scan and label of one subject, who depends on ``seed`` and ``number`` alone."""
    rng = np.random.default_rng([seed, number])
    fine_shape, fine_spacing = (*SHAPE[:2], SHAPE[2] * SLABS), (*SPACING[:2], SPACING[2] / SLABS)
    points = _subject_points(rng, fine_shape, fine_spacing)
    lumps = smooth_noise(rng, fine_shape, fine_spacing, sigma=12)
    grain = smooth_noise(rng, fine_shape, fine_spacing, sigma=3)
    canvas = Canvas(points, lumps, grain, edge=SPACING[0], rng=rng)
    draw_abdomen(canvas)
    tissue = canvas.image.reshape(*SHAPE, SLABS).mean(-1)
    shares = canvas.shares.reshape(-1, *SHAPE, SLABS).mean(-1)
    return Case(f"phantom_{number:02d}", _scan(rng, tissue), shares.argmax(0).astype(np.uint8), AFFINE)


def _subject_points(rng: np.random.Generator, shape: tuple, spacing: tuple) -> np.ndarray:
    """Where each voxel lies in the subject: pose (turn, shift, size) and a smooth bend of up to about 2 cm."""
    axes = [((np.arange(n) - (n - 1) / 2) * d).astype(np.float32) for n, d in zip(shape, spacing, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    turn = np.deg2rad(rng.uniform(-8, 8))
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    size = rng.uniform(0.98, 1.14) * rng.uniform(0.93, 1.07, 3)
    shift = rng.uniform(-1, 1, 3) * (12, 10, 9)
    x, y, z = grid - shift.astype(np.float32).reshape(3, 1, 1, 1)
    points = np.stack([cos * x + sin * y, cos * y - sin * x, z]).astype(np.float32)
    for axis, strength in enumerate((6, 6, 5)):
        points[axis] /= np.float32(size[axis])
        points[axis] += np.float32(strength) * smooth_noise(rng, shape, spacing, sigma=45)
    return points


def _scan(rng: np.random.Generator, tissue: np.ndarray) -> np.ndarray:
    """What a scanner makes of tissue: contrast curve, coil shading, Rician noise, 255 at the 99.5th percentile."""
    curve = 255 * (np.clip(tissue, 0, 255) / 255) ** rng.uniform(0.9, 1.1)
    shaded = curve * np.exp(rng.uniform(0.03, 0.08) * smooth_noise(rng, SHAPE, SPACING, sigma=70))
    level = rng.uniform(3, 6)
    real, imaginary = rng.normal(0, level, (2, *SHAPE))
    magnitude = np.hypot(shaded + real, imaginary)
    return np.clip(magnitude * (255 / np.percentile(magnitude, 99.5)), 0, 255)
