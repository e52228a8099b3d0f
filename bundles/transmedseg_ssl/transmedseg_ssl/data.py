"""The data set to train on: the user's, or the sample data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from common.semi_supervised.data import read_semi_supervised

from .sample import generate_sample_data

logger = logging.getLogger(__name__)


def read_datalist(dataset_dir: str, bundle_root: str, **options: Any) -> dict[str, Any]:
    """:func:`common.semi_supervised.read_semi_supervised`, and under ``sample`` whether these are the sample data.

    Generates them when their folder is missing.
    """
    directory = Path(dataset_dir)
    sample = directory.resolve() == (Path(bundle_root) / "sample_data").resolve()
    if sample and not directory.exists():
        logger.info("generating sample data in %s", directory)
        generate_sample_data(directory)
    return read_semi_supervised(dataset_dir, **options) | {"sample": sample}
