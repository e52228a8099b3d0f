"""The curves of a run for TensorBoard: one file, whatever the number of processes."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from torch.utils.tensorboard import SummaryWriter

from .objective_trainer import loss_terms


class TensorBoard:
    """Losses of each iteration, by :func:`.loss_terms`, and the metrics of each validation.

    Of several processes the first writes. The file is begun when the training is, not when it is refused.

    Args:
        log_dir: folder of the event file.
        evaluator: of the validation.
    """

    def __init__(self, log_dir: str, evaluator: Engine) -> None:
        self.log_dir, self.evaluator = log_dir, evaluator
        self.writer: SummaryWriter | None = None

    def attach(self, engine: Engine) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, lambda: self.writer.flush())

    def _begin(self, engine: Engine) -> None:
        if self.writer is not None:  # run again: one curve
            return
        self.writer = SummaryWriter(log_dir=self.log_dir)
        TensorBoardStatsHandler(self.writer, tag_name="train", output_transform=loss_terms).attach(engine)
        TensorBoardStatsHandler(
            self.writer, output_transform=lambda output: None, global_epoch_transform=lambda epoch: epoch
        ).attach(self.evaluator)
