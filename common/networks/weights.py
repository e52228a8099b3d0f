"""The weights of a model file, into the network that they were trained in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ignite.engine import Engine, Events
from torch import nn

from common.engine.checkpoint import load_checkpoint
from common.engine.unwrap import unwrap

logger = logging.getLogger(__name__)


def load_weights(network: nn.Module, model_file: str | Path) -> None:
    """Load ``model.pt``, a flat state dict, into the network; a data parallel wrapper is looked through.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds the weights of another network.
    """
    network, state = unwrap(network), load_checkpoint(model_file)
    found = {key: getattr(value, "shape", ()) for key, value in state.items()} if isinstance(state, Mapping) else {}
    expected = {key: value.shape for key, value in network.state_dict().items()}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        # not torch's own text, which lists all of them and says nothing of configs
        raise ValueError(
            f"{model_file}: expected the weights of the configured {type(network).__name__}, found those of another "
            f"network ({len(wrong)} tensors are missing, unknown or of another shape, such as {wrong[0]}); use the "
            "config files and the settings of its training. A model trained with volume.json needs volume_inference."
            "json over inference.json, and volume.json over train.json to be evaluated; others need neither."
        )
    network.load_state_dict(state)
    logger.info("weights from %s", model_file)


class WeightsLoader:
    """Handler that does :func:`load_weights` when the engine starts.

    MONAI's ``CheckpointLoader`` says neither that there is no model yet nor which config a model needs.
    """

    def __init__(self, network: nn.Module, model_file: str | Path) -> None:
        self.network, self.model_file = network, model_file

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        load_weights(self.network, self.model_file)
