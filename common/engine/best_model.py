"""`models/model.pt`: the weights to deploy, and `models/model.json`: what one must know to use them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn

from .checkpoint import save_atomic, write_atomic
from .nan_stop import refuse_bad_weights
from .unwrap import unwrap

logger = logging.getLogger(__name__)
SELECTIONS = {
    "last": "that of the last iteration (selection: last)",
    "validation": "the best on the validation cases (selection: validation)",
    None: "from elsewhere, how it was chosen is not known",
}
OPTIMISTIC = ("The checkpoint was chosen by the validation cases of its training: figures of those are optimistic. "
              "`--selection last` in the training gives honest ones.")  # fmt: skip


class BestModelSaver:
    """Write the flat state dict of ``network`` each time the evaluator's key metric improves.

    Goes into the trainer's handlers. "Improves" is what the evaluator's ``metric_cmp_fn`` says; its best value lives in
    ``evaluator.state`` and survives a restart through ``FullStateCheckpoint``, so a worse later epoch never takes the
    place of a better earlier one. A NaN metric is never the best. When the run ends and no validation gave a
    metric (no validation data, ``val_interval`` larger than ``max_epochs``), the last weights are written instead.

    Beside the weights goes ``model.json`` (:func:`read_record`): which of the two rules they were chosen by, and the
    ``settings``.

    Args:
        path: the file, ``models/model.pt``.
        network: what to save; a ``DistributedDataParallel`` is unwrapped.
        evaluator: the validation of the trainer; None when there is none.
        selection: ``validation``, as above, or ``last``: the weights at the end of the run whatever validation says,
            so that the validation cases stay unseen and can be reported on.
        settings: those of the training that inference and evaluation have to share, such as ``labels``; anything that
            JSON holds.

    Raises:
        ValueError: the selection is another.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        evaluator: Evaluator | None = None,
        selection: str = "validation",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if selection not in (known := [name for name in SELECTIONS if name]):
            raise ValueError(f"selection must be one of {', '.join(known)}, got {selection!r}.")
        self.selection = selection
        self.path = Path(path)
        self.network = network
        self.evaluator = evaluator
        self.settings = dict(settings or {})

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
        if validated and self.path.is_file() and read_record(self.path)["selection"] == "validation":
            return
        logger.warning("%s in this run: the last weights go to %s.",
                       f"no best model at {self.path}" if validated else "no validation metric", self.path)
        self._save(trainer, "last")

    def _save(self, engine: Engine, selection: str) -> None:
        if getattr(engine.state, "rank", 0) == 0:
            network = unwrap(self.network)
            refuse_bad_weights(network, "the network")
            save_atomic(network.state_dict(), self.path)
            record = {"selection": selection, "settings": self.settings}
            write_atomic(_record_of(self.path), lambda file: file.write(json.dumps(record, indent=4).encode()))


def read_record(model_file: str | Path) -> dict[str, Any]:
    """What stands beside a model that :class:`BestModelSaver` wrote: ``selection`` and ``settings``.

    Of a model without such a file, from elsewhere, nothing is known: None and no settings.

    Raises:
        ValueError: the file is no record.
    """
    file = _record_of(Path(model_file))
    if not file.is_file():
        return {"selection": None, "settings": {}}
    try:
        record = json.loads(file.read_text())
        return {"selection": record["selection"], "settings": dict(record["settings"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file}: expected the `selection` and `settings` of a training, found {error!r}. Delete the "
                         "file to use the settings of the config, or train again.") from error  # fmt: skip


def describe_selection(record: Mapping[str, Any], split: str) -> list[str]:
    """What a report says of the checkpoint that it scores on a split: how it was chosen, and a warning if by that one.

    Args:
        record: as :func:`read_record` gives it.
        split: ``validation`` where the cases scored are those that a selection by validation looks at.
    """
    network = record["settings"].get("inference_network")
    line = f"Checkpoint: {SELECTIONS[record['selection']]}{f', the {network}' if network else ''}."
    return [line, OPTIMISTIC] if record["selection"] == split else [line]


def read_settings(model_file: str | Path, required: bool = False) -> dict[str, Any]:
    """The settings of a training that others have to share, empty where nothing is known; see :func:`read_record`.

    Raises:
        ValueError: nothing is known, and ``required``; or the file is no record.
    """
    record = _record_of(Path(model_file))
    if required and not record.is_file():
        raise ValueError(f"{record}: expected the settings of the training, found no such file. A training leaves it "
                         "beside model.pt; copy it there too.")  # fmt: skip
    return read_record(model_file)["settings"]


def _record_of(model_file: Path) -> Path:
    return model_file.with_suffix(".json")
