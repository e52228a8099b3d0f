"""The data set to train on: the user's, or the sample data."""

from __future__ import annotations

from typing import Any

from common.data import ensure_sample_data
from common.semi_supervised.data import read_semi_supervised

from .sample import generate_sample_data


def read_datalist(dataset_dir: str, bundle_root: str, **options: Any) -> dict[str, Any]:
    """:func:`common.semi_supervised.read_semi_supervised`, and under ``sample`` whether these are the sample data.

    Generates them when their folder is missing.

    Raises:
        ValueError: slices are asked for.
    """
    if options.get("spatial_dims", 3) != 3:
        raise ValueError(f"spatial_dims: expected 3, found {options['spatial_dims']}; transmedseg_ssl takes slices.")
    sample = ensure_sample_data(dataset_dir, bundle_root, generate_sample_data)
    return read_semi_supervised(dataset_dir, **options) | {"sample": sample}
