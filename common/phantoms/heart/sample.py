"""A data set of 26 seeded hearts, of which four that resemble one another are labelled to learn from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.data.write import Case, write_dataset

from .anatomy import STRUCTURES, Subject
from .phantom import Acquisition, draw_scan

__all__ = ["SPLITS", "TRAITS", "draw_cases", "draw_subjects", "write_hearts"]

# lowest and highest value of each trait; the units are those of `Subject`
TRAITS = {
    "shift_x": (-4, 28), "shift_y": (-16, 14), "turn": (-40, 40),
    "cavity": (15, 29), "wall": (6, 14), "length": (58, 80), "base": (20, 35), "right": (0.75, 1.2),
    "papillary": (0.12, 0.26), "fat": (1, 8),
    "blood": (160, 215), "muscle": (60, 110), "fat_tone": (150, 250),
    "gamma": (0.75, 1.4), "shading": (0.1, 1.3), "noise": (3, 14), "blur": (0.1, 0.8),
}  # fmt: skip
# of each split: its first subject's number, how many there are, and the part of every trait's range that they cover
SPLITS = {"training": (1, 4, (0.2, 0.6)), "unlabeled": (5, 16, (0.0, 1.0)), "validation": (21, 6, (0.0, 1.0))}


def write_hearts(directory: str | os.PathLike, name: str, acquisition: Acquisition, seed: int) -> Path:
    """Write the data set.

    Everything is drawn from ``seed``: the same seed gives the same files, byte for byte. Unlabelled and validation
    subjects are as various as each other; the labelled ones show only a part of that variety. The traits of the
    subjects are the same in every acquisition; textures, vessels and the organs around the heart are not.

    Args:
        directory: folder to create; it must not exist or be empty.
        name: of the data set.
        acquisition: how the subjects are scanned.
        seed: which subjects.

    Returns:
        The folder: ``training`` 4 labelled scans, ``unlabeled`` 16 images, ``validation`` 6 labelled scans.

    Raises:
        FileExistsError: ``directory`` is there already.
    """
    about = {"description": "Synthetic hearts in the look of short-axis cine MRI", "licence": "Apache-2.0"}
    cases = {split: draw_cases(split, seed, acquisition) for split in SPLITS}
    return write_dataset(directory, name, {"0": "synthetic cine MRI"}, STRUCTURES, **cases, extra=about)


def draw_cases(split: str, seed: int, acquisition: Acquisition) -> Iterator[Case]:
    """The scans of a split, each with its label; they depend on the arguments alone."""
    for number, subject in enumerate(draw_subjects(split, seed), SPLITS[split][0]):
        image, label = draw_scan(np.random.default_rng([seed, number]), subject, acquisition)
        yield Case(f"heart_{number:02d}", image, label, acquisition.affine)


def draw_subjects(split: str, seed: int) -> list[Subject]:
    """The traits of a split's subjects: a Latin hypercube, so that they are spread evenly in every trait."""
    first, count, (low, high) = SPLITS[split]
    rng = np.random.default_rng([seed, first, 1])
    ranks = rng.permuted(np.tile(np.arange(count), (len(TRAITS), 1)), axis=1)
    shares = low + (high - low) * (ranks + rng.random(ranks.shape)) / count
    lows, highs = np.array(list(TRAITS.values())).T[..., None]
    values = (lows + (highs - lows) * shares).T.tolist()
    return [Subject(**dict(zip(TRAITS, row, strict=True))) for row in values]
