"""The weights of a model file, into the network that they were trained in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from common.description import refuse_not_finite

from .checkpoint import load_checkpoint
from .model_record import ModelRecord, read_model, say_differences
from .nan_stop import refuse_bad_logits
from .unwrap import unwrap

logger = logging.getLogger(__name__)


def load_model(network: nn.Module, model_file: str | Path, model: Mapping[str, Any]) -> ModelRecord:
    """Load ``model.pt``, a flat state dict, into the network; a data parallel wrapper is looked through.

    Says in one line what the run uses in another way than the ``model.json`` beside it.

    Args:
        model: what the run uses, as the section ``model`` of its config.

    Returns:
        what ``model.json`` says.

    Raises:
        FileNotFoundError: there is no such file, or no ``model.json`` beside it.
        ValueError: either is damaged, the weights are those of another network, or one of them is not finite.
    """
    record = read_model(model_file)
    changed = say_differences(record, model)
    network, state = unwrap(network), load_checkpoint(model_file)
    found = {key: getattr(value, "shape", ()) for key, value in state.items()} if isinstance(state, Mapping) else {}
    expected = {key: value.shape for key, value in network.state_dict().items()}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        # not torch's own text, which lists all of them and says nothing of configs
        cause = f"this run differs from {record.file}: {changed}" if changed else f"{record.file} is of another model"
        raise ValueError(
            f"{model_file}: expected the weights of the configured {type(network).__name__}, found those of another "
            f"network ({len(wrong)} tensors are missing, unknown or of another shape, such as {wrong[0]}); {cause}. "
            "Leave out the overrides of the network, or copy model.pt and model.json of one training."
        )
    refuse_not_finite(state, model_file)
    network.load_state_dict(state)
    logger.info("weights from %s", model_file)
    if changed:
        logger.warning("not as in %s: %s", record.file, changed)
    return record


class WeightsLoader:
    """Handler that does :func:`load_model` when the engine starts, and refuses logits that are not finite.

    MONAI's ``CheckpointLoader`` says neither that there is no model yet nor what a model needs.
    """

    def __init__(self, network: nn.Module, model_file: str | Path, model: Mapping[str, Any]) -> None:
        self.network, self.model_file, self.model = network, model_file, model

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)
        engine.register_events(IterationEvents.FORWARD_COMPLETED)  # where the engine is not one of MONAI's
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._forwarded)

    def __call__(self, engine: Engine) -> None:
        load_model(self.network, self.model_file, self.model)

    def _forwarded(self, engine: Engine) -> None:
        image = engine.state.output[Keys.IMAGE]
        names = getattr(image, "meta", {}).get("filename_or_obj", "the image")
        refuse_bad_logits(engine.state.output[Keys.PRED], names if isinstance(names, str) else ", ".join(names))
