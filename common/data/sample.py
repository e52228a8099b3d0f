"""A bundle's sample data: made where they are missing, and not mixed with other people's images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.dataset import DataError

logger = logging.getLogger(__name__)


def ensure_sample_data(dataset_dir: str | Path, bundle_root: str | Path, generate: Callable[[Path], Any]) -> bool:
    """Generate the bundle's sample data where they are asked for and missing; returns whether they are asked for.

    Args:
        generate: makes the folder it is given, whole or not at all; always the same data.
    """
    directory = Path(dataset_dir)
    sample = directory.resolve() == (Path(bundle_root) / "sample_data").resolve()
    if sample and not directory.exists():
        logger.info("generating sample data in %s", directory)
        try:
            generate(directory)
        except OSError:
            if not (directory / "dataset.json").is_file():
                raise
            logger.info("another run was first; its data are the same")  # such as the other process of a torchrun
    return sample


def refuse_foreign(data: Sequence[Mapping[str, Any]], sample: bool) -> None:
    """No other people's images together with what dataset.json of the sample data says.

    A MONAI Label server replaces the labelled images, and leaves the classes and all that has no label.

    Args:
        data: items to train on; those of dataset.json have a ``case``.
        sample: dataset.json is that of the sample data.

    Raises:
        DataError: there are such images.
    """
    foreign = [str(item["image"]) for item in data if "case" not in item]
    if sample and foreign:
        raise DataError(
            "expected labelled images of the sample data, whose classes and other images are used, found "
            f"{foreign[0]}; set `dataset_dir` in train.json to your own data set."
        )
