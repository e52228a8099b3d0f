"""The data set to train on: the user's, or the sample data."""

from __future__ import annotations

from typing import Any

from common.data import ensure_sample_data
from common.semi_supervised import read_semi_supervised

from .sample import generate_sample_data

__all__ = ["read_datalist"]


def read_datalist(dataset_dir: str, bundle_root: str, **options: Any) -> dict[str, Any]:
    """:func:`common.semi_supervised.read_semi_supervised`, and under ``sample`` whether these are the sample data.

    Generates them when their folder is missing.
    """
    sample = ensure_sample_data(dataset_dir, bundle_root, generate_sample_data)
    return read_semi_supervised(dataset_dir, **options) | {"sample": sample}
