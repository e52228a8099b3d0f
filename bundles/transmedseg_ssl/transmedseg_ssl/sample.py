"""Sample data: 26 hearts as stacks of thick slices, of which four that resemble one another are labelled."""

from __future__ import annotations

import os
from pathlib import Path

from common.phantoms.heart import STACK, write_hearts

__all__ = ["generate_sample_data"]


def generate_sample_data(directory: str | os.PathLike, seed: int = 0) -> Path:
    """Write the sample data set: 4 labelled scans, 16 images, 6 labelled scans to score, of 64 x 64 x 12 voxels.

    Args:
        directory: folder to create; it must not exist or be empty.
        seed: which subjects; the same seed gives the same files, byte for byte.

    Returns:
        The folder.

    Raises:
        FileExistsError: ``directory`` is there already.
    """
    return write_hearts(directory, "heart_phantom", STACK, seed)
