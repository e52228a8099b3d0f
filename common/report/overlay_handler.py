"""Overlay pictures of what an evaluator predicts, for scans without a truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events

from .overlay import save_overlay

logger = logging.getLogger(__name__)


class OverlayHandler:
    """Write ``overlay_<case>.png`` for every volume an inference evaluator has segmented.

    Args:
        output_dir: folder of the pictures.
        labels: label value in the prediction to name.
    """

    def __init__(self, output_dir: str, labels: Mapping[int, str]) -> None:
        self.output_dir = Path(output_dir)
        self.labels = dict(labels)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            source = Path(case["image"].meta["filename_or_obj"])
            image = nib.load(source)  # the file itself: the batch holds what the network saw
            name = source.name.split(".nii")[0]
            file = self.output_dir / f"overlay_{name}.png"
            prediction = np.asarray(output["pred"])[0]
            save_overlay(file, np.asarray(image.dataobj), None, prediction, self.labels, image.affine, name)
            logger.info("picture: %s", file)
