"""`models/checkpoint.pt`: everything that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from common.description import describe, differences

from .checkpoint import load_checkpoint, save_atomic
from .nan_stop import refuse_bad_weights
from .stopping import on_stop
from .unwrap import unwrap

logger = logging.getLogger(__name__)

_SCHEDULE_LENGTHS = ("t_total", "T_max", "total_iters", "total_steps")


class FullStateCheckpoint:
    """Save the whole training state at the end of each epoch, and continue from it exactly.

    The trainer's epoch and iteration and the evaluator's best metric are handled here, because a handler's config
    cannot refer to its own trainer. Random numbers are not stored: ``SeedEachEpoch`` makes them depend on the epoch.

    Order: loads at STARTED (place it before other handlers of that event); saves as the last of all handlers at
    EPOCH_COMPLETED, whatever its place in the list, hence after validation, learning rate schedule and teacher update.
    An older file of the same settings is overwritten at the end of the first epoch, not before, and a run that does not
    resume says so; beside one of other settings it is refused.

    A resumed run takes ``max_epochs`` from its own config: more epochs go on, and a run that has them all ends at once.
    Optimizers and schedulers are restored, but for what may change and is said: the length of a schedule, so that a run
    can be made longer, and the learning rate, which takes effect from there on.

    Args:
        path: the file, ``models/checkpoint.pt``.
        objects: name to anything with ``state_dict`` and ``load_state_dict``: networks, teacher, optimizers,
            learning rate schedulers, banks. Networks with NaN are refused, and the last good file stays.
        resume: continue from ``path``.
        evaluator: the validation of the trainer, whose best metric is kept; None when there is none.
        interval: epochs between two saves; the last epoch is always saved.
        settings: what a resumed run must not change: the section ``model`` of the config, the objective, the fold left
            out; described objects or plain data. Saved too.

    Raises:
        FileNotFoundError: resume without a file at ``path`` (a mistyped ``ckpt_dir`` must not start a new training).
        ValueError: resume, and the file is damaged, or it belongs to a run with other settings or objects.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any],
        resume: bool = False,
        evaluator: Evaluator | None = None,
        interval: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.objects = {name: unwrap(thing) for name, thing in objects.items()}
        self.resume = resume
        self.evaluator = evaluator
        self.interval = interval
        self.settings = describe(settings or {}, strict=False)
        self._saved = 0  # the epoch whose state is in the file
        self._saving: tuple[int, tuple[int, int] | None] = (0, None)  # the epoch written last, and the file before
        stateless = [name for name, thing in self.objects.items() if not hasattr(thing, "load_state_dict")]
        if stateless:
            raise TypeError(f"expected objects with state_dict and load_state_dict, which {', '.join(stateless)} lack.")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._started)

    def _started(self, engine: Engine) -> None:
        self._saved, self._saving = 0, (0, self._file())
        on_stop(lambda: self._how_to_go_on(engine))
        if self.resume:
            self._load(engine)
        elif self.path.is_file():
            self._refuse_another_training()
            if getattr(engine.state, "rank", 0) == 0:
                logger.warning("%s: left by an earlier run, and replaced at the end of the first epoch of this new "
                               "one. To go on from it, stop now and add `--resume True`.", self.path)
        if not engine.has_event_handler(self._epoch_completed, Events.EPOCH_COMPLETED):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)  # here, to be behind all others

    def _epoch_completed(self, engine: Engine) -> None:
        last = engine.state.epoch == engine.state.max_epochs
        if getattr(engine.state, "rank", 0) != 0 or (engine.state.epoch % self.interval and not last):
            return
        for name, thing in self.objects.items():
            if isinstance(thing, nn.Module):
                refuse_bad_weights(thing, name)
        state = {key: getattr(engine.state, key) for key in ("epoch", "iteration", "epoch_length")}
        state["settings"] = self.settings
        state["objects"] = {name: thing.state_dict() for name, thing in self.objects.items()}
        if self.evaluator is not None:
            best = self.evaluator.state
            state |= {"best_metric": float(best.best_metric), "best_metric_epoch": best.best_metric_epoch}
        self._saving = engine.state.epoch, self._file()
        save_atomic(state, self.path)
        self._saved = engine.state.epoch

    def _how_to_go_on(self, engine: Engine) -> str:
        epoch, before = self._saving
        saved = epoch if self._file() != before else self._saved  # told to stop behind the last step of a save
        if saved:
            return (f"The state after epoch {saved} of {engine.state.max_epochs} is in {self.path}: the same "
                    "command with `--resume True` goes on from there.")  # fmt: skip
        return "No state of this run is saved yet: start again with the same command."

    def _file(self) -> tuple[int, int] | None:
        """Which file is there: one that is written again has another number on the disk, or at least another time."""
        if not self.path.is_file():
            return None
        found = self.path.stat()
        return found.st_ino, found.st_mtime_ns

    def _refuse_another_training(self) -> None:
        """A folder holds one training: the model of one must not be reported or exported as that of another."""
        try:
            saved = load_checkpoint(self.path)
        except ValueError:  # damaged, hence nobody's
            return
        if isinstance(saved, dict) and "settings" in saved and (changed := self._changes(saved)):
            raise ValueError(
                f"{self.path}: expected no training there, or one with the same settings, found one with others: "
                f"{changed}. Give this training folders of its own (--ckpt_dir, --output_dir), or delete "
                f"{self.path.parent} if you need the other no more."
            )

    def _load(self, engine: Engine) -> None:
        saved = load_checkpoint(self.path)
        self._check(saved)
        for name, thing in self.objects.items():
            self._restore(name, thing, saved["objects"][name])
        if self.evaluator is not None and "best_metric" in saved:
            self.evaluator.state.best_metric = saved["best_metric"]
            self.evaluator.state.best_metric_epoch = saved["best_metric_epoch"]
        self._restore_counters(engine, saved)
        self._saved = saved["epoch"]

    def _changes(self, saved: Any) -> str:
        then = saved.get("settings", {}) if isinstance(saved, dict) else {}
        return "; ".join(f"{key} was {_short(old)} and is now {_short(new)}"
                         for key, old, new in differences(then, self.settings))  # fmt: skip

    def _check(self, saved: Any) -> None:
        if not isinstance(saved, dict) or not {"epoch", "iteration", "objects"} <= saved.keys():
            raise ValueError(
                f"{self.path}: expected the full state of a run (epoch, iteration, objects), found something else, "
                "perhaps the weights of a model. Pass the checkpoint.pt that training wrote."
            )
        if changed := self._changes(saved):
            raise ValueError(
                f"{self.path}: expected the settings of the run that is resumed, found others: {changed}. Give them as "
                "they were, or start anew with another ckpt_dir and without resume."
            )
        if saved["objects"].keys() != self.objects.keys():
            raise ValueError(
                f"{self.path}: holds the state of {', '.join(saved['objects'])}, but this run needs "
                f"{', '.join(self.objects)}. Resume with the configuration of the first run."
            )

    def _restore(self, name: str, thing: Any, state: Any) -> None:
        if isinstance(thing, LRScheduler):
            state = self._with_lengths(name, state, thing.state_dict())
        elif isinstance(thing, Optimizer):
            state = self._with_rates(name, state, thing.state_dict())
        try:
            thing.load_state_dict(state)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path}: the state of {name} does not fit; resume with the first run's configuration. {error}"
            ) from error

    def _with_lengths(self, name: str, state: dict, fresh: dict) -> dict:
        """The state of a schedule with the lengths of this run's; a chain holds several."""
        for key in (k for k in _SCHEDULE_LENGTHS if k in fresh and fresh[k] != state.get(k)):
            logger.warning("%s: %s was %s and is now %s. The run goes on, but not as one run would have.", name, key,
                           state.get(key), fresh[key])
            state = {**state, key: fresh[key]}
        if "base_lrs" in fresh:
            state = {**state, "base_lrs": fresh["base_lrs"]}
        if len(parts := fresh.get("_schedulers", [])) == len(state.get("_schedulers", [])) > 0:
            pairs = zip(state["_schedulers"], parts, strict=True)
            state = {**state, "_schedulers": [self._with_lengths(name, *pair) for pair in pairs]}
        return state

    def _with_rates(self, name: str, state: dict, fresh: dict) -> dict:
        """The state of an optimizer with the learning rates of this run, at the same place of their schedule."""
        groups = []
        for old, new in zip(state["param_groups"], fresh["param_groups"], strict=False):
            then, now = (group.get("initial_lr", group["lr"]) for group in (old, new))
            if then != now:
                logger.warning("%s: the learning rate was %g and is now %g.", name, then, now)
                old = {**old, "lr": old["lr"] * now / then, "initial_lr": now}
            groups.append(old)
        return {**state, "param_groups": groups + state["param_groups"][len(groups) :]}

    def _restore_counters(self, engine: Engine, saved: dict) -> None:
        state = engine.state
        if state.epoch_length is None:  # an iterable data set; ignite finds its length during the first epoch
            state.epoch_length = saved["epoch_length"]
        if state.epoch_length != saved["epoch_length"]:
            logger.warning("%s: an epoch had %s iterations, now %s. The run goes on, but not as one run would have.",
                           self.path, saved["epoch_length"], state.epoch_length)
        state.epoch = saved["epoch"]
        state.iteration = saved["epoch"] * state.epoch_length
        if state.epoch >= state.max_epochs:
            logger.info("%s: %d of %d epochs are done, nothing to train. Raise max_epochs to go on.", self.path,
                        state.epoch, state.max_epochs)
        else:
            logger.info("%s: resumed after epoch %d of %d.", self.path, state.epoch, state.max_epochs)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
