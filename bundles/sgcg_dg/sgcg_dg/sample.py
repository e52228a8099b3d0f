"""Sample data: optic discs of four made-up centres, of which no two share colour, contrast and sharpness."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.data.write import Case, write_dataset
from sgcg_dg.phantom import STRUCTURES, Look, draw_region

__all__ = ["CENTRES", "SIZES", "draw_case", "generate_sample_data"]

SIZES = {"centre_a": (12, 4), "centre_b": (18, 6), "centre_c": (24, 8), "centre_d": (21, 7)}  # training, validation

CENTRES = {
    # dark and warm, strongly vignetted, sharp
    "centre_a": Look(
        colours=((0.90, 0.10, 0.0), (0.12, 0.70, 0.0), (0.06, 0.14, 0.25)),
        gamma=1.15, haze=0.03, haze_colour=(0.5, 0.2, 0.1), vignette=0.5, shading=0.25, blur=0.7, noise=0.012,
        disc=35, vessels=4, vessel_width=1.0, texture=5, spots=0.06,
    ),
    # pale and greenish grey, sharp and noisy, small discs, many fine vessels
    "centre_b": Look(
        colours=((0.70, 0.25, 0.0), (0.20, 0.85, 0.1), (0.10, 0.45, 0.55)),
        gamma=0.85, haze=0.14, haze_colour=(0.5, 0.52, 0.45), vignette=0.35, shading=0.25, blur=0.5, noise=0.02,
        disc=28, vessels=12, vessel_width=0.8, texture=1.5, spots=0.08,
    ),
    # pink and hazy, of low contrast, out of focus
    "centre_c": Look(
        colours=((0.95, 0.05, 0.05), (0.15, 0.65, 0.1), (0.15, 0.35, 0.55)),
        gamma=0.9, haze=0.25, haze_colour=(0.80, 0.45, 0.42), vignette=0.1, shading=0.15, blur=2.2, noise=0.004,
        disc=38, vessels=5, vessel_width=1.3, texture=8, spots=0.05,
    ),
    # bright orange and yellow, of high contrast, slightly soft
    "centre_d": Look(
        colours=((1.25, 0.15, 0.0), (0.05, 1.15, 0.05), (0.0, 0.05, 0.45)),
        gamma=1.25, haze=0.02, haze_colour=(0.8, 0.5, 0.2), vignette=0.25, shading=0.2, blur=1.0, noise=0.008,
        disc=31, vessels=6, vessel_width=1.15, texture=3, spots=0.08,
    ),
}


def generate_sample_data(directory: str | os.PathLike, seed: int = 0) -> Path:
    """Write the sample data set: 128 x 128 PNG, every item with its ``domain``.

    Everything is drawn from ``seed``: the same seed gives the same files, byte for byte.

    Args:
        directory: folder to create; it must not exist or be empty.
        seed: which eyes; the centres keep their looks.

    Returns:
        The folder: ``training`` 75 images, ``validation`` 25, of four centres each.
    """
    about = {"description": "Synthetic optic disc regions of four centres", "licence": "Apache-2.0"}

    def cases(split: int) -> Iterator[Case]:
        for centre, sizes in SIZES.items():
            first = 1 + sum(sizes[:split])
            yield from (draw_case(centre, number, seed) for number in range(first, first + sizes[split]))

    modality = {"0": "synthetic colour fundus photograph, optic disc region"}
    return write_dataset(
        directory, "fundus_phantom", modality, STRUCTURES, training=cases(0), validation=cases(1), extra=about
    )


def draw_case(centre: str, number: int, seed: int) -> Case:
    """One image of a centre, which depends on ``seed``, the centre and ``number`` alone."""
    letter = centre[-1]
    image, label = draw_region(np.random.default_rng([seed, ord(letter), number]), CENTRES[centre])
    return Case(f"{letter}_{number:03d}", image, label, domain=centre)
