"""Overlay pictures of what an evaluator predicts, for scans and photographs without a truth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events

from common.data.check import read_volume
from common.data.items import file_stem
from common.data.photograph import is_photograph

from .file_names import FileNames
from .overlay import save_overlay

logger = logging.getLogger(__name__)


class OverlayHandler:
    """Write ``found_<case>.png`` for every image an inference evaluator has segmented.

    Args:
        output_dir: folder of the pictures.
        labels: label value in the prediction to name.
    """

    def __init__(self, output_dir: str, labels: Mapping[int, str]) -> None:
        self.output_dir = Path(output_dir)
        self.labels = dict(labels)
        self.names = FileNames()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        for case, output in zip(engine.state.batch, engine.state.output, strict=True):
            source = Path(case["image"].meta["filename_or_obj"])
            image, affine = read_volume(str(source))  # the file itself: the batch holds what the network saw
            name = file_stem(source.name)
            file = self.output_dir / f"found_{self.names(name)}.png"
            prediction = np.asarray(output["pred"])[0]
            if is_photograph(source):
                prediction = prediction.T[..., None]  # MONAI reads photographs with x first, read_volume with y
            save_overlay(file, image, None, prediction, self.labels, affine, name)
            logger.info("picture: %s", file)
