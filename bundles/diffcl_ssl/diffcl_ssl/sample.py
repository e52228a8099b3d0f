"""Sample data: 26 hearts as volumes, of which four that resemble one another are labelled."""

from __future__ import annotations

import os
from pathlib import Path

from common.phantoms.heart import VOLUME, write_hearts

__all__ = ["generate_sample_data"]


def generate_sample_data(directory: str | os.PathLike, seed: int = 0) -> Path:
    """Write the sample data set: 4 labelled scans, 16 images, 6 labelled scans to score, of 48 x 48 x 24 voxels.

    Args:
        directory: folder to create; it must not exist or be empty.
        seed: which subjects; the same seed gives the same files, byte for byte.

    Returns:
        The folder.

    Raises:
        FileExistsError: ``directory`` is there already.
    """
    return write_hearts(directory, "heart_volumes", VOLUME, seed)
