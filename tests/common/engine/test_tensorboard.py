"""One event file for a run: losses of each iteration, metrics of each validation."""

import pytest
import torch
from ignite.engine import Engine, Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.engine import TensorBoard


@pytest.fixture(name="trainer")
def _trainer(tmp_path):
    """Two epochs of two steps, each with a validation behind it."""
    trainer = Engine(lambda engine, _: {"loss": torch.tensor(float(engine.state.iteration)), "wide": torch.ones(2)})
    evaluator = Engine(lambda *_: None)

    @evaluator.on(Events.EPOCH_COMPLETED)
    def score(engine):
        engine.state.metrics["val_dice"] = trainer.state.epoch / 10

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate():
        evaluator.run([0])

    TensorBoard(str(tmp_path), evaluator).attach(trainer)
    return trainer


def test_losses_and_metrics_stand_in_one_file(trainer, tmp_path):
    assert not list(tmp_path.iterdir())  # a training that is refused leaves none
    trainer.run([0, 0], max_epochs=2)
    (file,) = tmp_path.iterdir()
    read = EventAccumulator(str(file))
    read.Reload()
    scalars = {tag: [event.value for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert [1, 2, 3, 4] in scalars.values()
    assert scalars["val_dice"] == pytest.approx([0.1, 0.2])


def test_other_processes_write_none(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    TensorBoard(str(tmp_path / "second"), Engine(lambda *_: None)).attach(trainer)
    trainer.run([0], max_epochs=1)
    assert not (tmp_path / "second").exists()
