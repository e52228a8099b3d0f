"""One progress bar for a whole run, and at its end where the results are."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .nan_stop import first_loss

logger = logging.getLogger(__name__)


class ProgressBarHandler:
    """Show iterations of all epochs in one bar, with the loss and the latest validation metric.

    ignite's own bar starts anew in every epoch and knows no resumed start, so this drives tqdm itself. Log lines appear
    above the bar. Where stderr is no terminal, ten log lines per run (level INFO) take the place of the bar.

    Args:
        evaluator: the validation of the trainer, whose key metric is shown; None when there is none.
        folders: of the results, named when the run ends.
    """

    def __init__(self, evaluator: Evaluator | None = None, folders: Sequence[str | Path] = ()) -> None:
        self.evaluator, self.folders = evaluator, folders
        self._bar: tqdm | None = None
        self._open = ExitStack()
        self._tenth = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self._completed)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)

    def _epoch_started(self, engine: Engine) -> None:
        state = engine.state
        if getattr(state, "rank", 0) == 0 and self._bar is None and sys.stderr.isatty():
            total = state.epoch_length * state.max_epochs if state.epoch_length else None
            # `initial`: a resumed run starts where it was
            bar = tqdm(total=total, initial=state.iteration, unit="it", dynamic_ncols=True)
            self._bar = self._open.enter_context(bar)
            self._open.enter_context(logging_redirect_tqdm())
        if self._bar is not None:
            self._bar.set_description(f"epoch {state.epoch}/{state.max_epochs}", refresh=False)

    def _iteration_completed(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(engine), refresh=False)
            self._bar.update()
        elif getattr(engine.state, "rank", 0) == 0:
            self._log_tenth(engine)

    def _log_tenth(self, engine: Engine) -> None:
        state = engine.state
        total = (state.epoch_length or 0) * state.max_epochs
        tenth = 10 * state.iteration // total if total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            logger.info("%3d %%: epoch %d/%d, iteration %d/%d, %s", 100 * state.iteration // total, state.epoch,
                        state.max_epochs, state.iteration, total, self._numbers(engine))

    def _epoch_completed(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(engine))  # with the metric of a validation that just ended

    def _numbers(self, engine: Engine) -> str:
        numbers = [f"loss {first_loss(engine.state.output):.4f}"]
        state: Any = None if self.evaluator is None else self.evaluator.state
        if state is not None and state.key_metric_name in state.metrics:
            numbers.append(f"{state.key_metric_name} {float(state.metrics[state.key_metric_name]):.4f}")
            numbers.append(f"best {float(state.best_metric):.4f} (epoch {state.best_metric_epoch})")
        return ", ".join(numbers)

    def _completed(self, engine: Engine) -> None:
        self._close()
        for folder in self.folders if getattr(engine.state, "rank", 0) == 0 else ():
            logger.info("results: %s", Path(folder).absolute())

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self._close()
        raise error  # ignite leaves that to the handlers of this event

    def _close(self) -> None:
        self._open.close()
        self._bar, self._tenth = None, 0
