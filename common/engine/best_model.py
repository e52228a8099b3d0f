"""`models/model.pt`: the weights to deploy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn

from common.description import describe

from .checkpoint import save_atomic
from .model_record import SELECTIONS, read_model, record_file, write_model_record
from .nan_stop import refuse_bad_weights
from .unwrap import unwrap

logger = logging.getLogger(__name__)


class BestModelSaver:
    """Write the flat state dict of ``network`` each time the evaluator's key metric improves.

    Goes into the trainer's handlers. "Improves" is what the evaluator's ``metric_cmp_fn`` says; its best value lives in
    ``evaluator.state`` and survives a restart through ``FullStateCheckpoint``, so a worse later epoch never takes the
    place of a better earlier one. A NaN metric is never the best. When the run ends and no validation gave a
    metric (no validation data, ``val_interval`` larger than ``max_epochs``), the last weights are written instead.

    Beside the weights goes ``model.json`` (:mod:`common.engine.model_record`): what the model is, and which of the two
    rules its weights were chosen by.

    Args:
        path: the file, ``models/model.pt``.
        network: what to save; a ``DistributedDataParallel`` is unwrapped.
        evaluator: the validation of the trainer; None when there is none.
        selection: ``validation``, as above, or ``last``: the weights at the end of the run whatever validation says,
            so that the validation cases stay unseen and can be reported on.
        model: what ``model.json`` records, the section ``model`` of train.json.

    Raises:
        ValueError: the selection is another.
        TypeError: ``model`` holds what a file cannot, such as a network of a class that is not described.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        model: Mapping[str, Any],
        evaluator: Evaluator | None = None,
        selection: str = "validation",
    ) -> None:
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
        self.selection = selection
        self.path = Path(path)
        self.network = network
        self.evaluator = evaluator
        self.model = describe(model)  # now: a network that no file can describe is refused before the training

    def attach(self, engine: Engine) -> None:
        if self.evaluator is not None and self.selection == "validation":
            # after the evaluator's own comparison, which its constructor registered on the same event
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._validated)
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _validated(self, evaluator: Engine) -> None:
        state = evaluator.state
        # the value too: with validation inside an epoch, the second one of an epoch may be worse than the first
        if state.best_metric_epoch != state.epoch or state.metrics[state.key_metric_name] is not state.best_metric:
            return
        if math.isnan(state.best_metric):
            # MONAI takes the first value whatever it is, and nothing compares greater than NaN afterwards
            logger.warning("%s is NaN in epoch %d: not the best.", state.key_metric_name, state.epoch)
            state.best_metric, state.best_metric_epoch = -1, -1
            return
        self._save(evaluator, "validation")
        logger.info("%s %.4f in epoch %d: best so far, saved to %s.", state.key_metric_name, state.best_metric,
                    state.epoch, self.path)

    def _completed(self, trainer: Engine) -> None:
        if self.selection == "last":
            self._save(trainer, "last")
            return
        validated = self.evaluator is not None and self.evaluator.state.best_metric_epoch != -1
        known = self.path.is_file() and record_file(self.path).is_file()
        if validated and known and read_model(self.path)["selection"] == "validation":
            return
        logger.warning("%s in this run: the last weights go to %s.",
                       f"no best model at {self.path}" if validated else "no validation metric", self.path)
        self._save(trainer, "last")

    def _save(self, engine: Engine, selection: str) -> None:
        if getattr(engine.state, "rank", 0) == 0:
            network = unwrap(self.network)
            refuse_bad_weights(network, "the network")
            save_atomic(network.state_dict(), self.path)
            write_model_record(self.path, self.model, selection)
