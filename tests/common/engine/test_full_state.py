import logging

import numpy as np
import pytest
import torch
from ignite.engine import Events

from common.engine import FullStateCheckpoint, full_state, load_checkpoint, save_atomic, stopping
from common.networks import VNet


def parts(run):
    """Everything that must be equal, as tensors and plain values."""
    state = load_checkpoint(run.checkpoint)
    best = {key: state[key] for key in ("epoch", "iteration", "best_metric", "best_metric_epoch")}
    return state["objects"], load_checkpoint(run.model), best


@pytest.mark.parametrize("workers", [0, 2])
def test_four_epochs_equal_two_and_two(build, tmp_path, workers):
    whole = build(tmp_path / "whole", workers=workers)
    whole.trainer.run()
    build(tmp_path / "halves", max_epochs=2, workers=workers).trainer.run()
    second = build(tmp_path / "halves", resume=True, workers=workers)
    second.trainer.run()
    torch.testing.assert_close(parts(second), parts(whole), rtol=0, atol=0)
    torch.testing.assert_close(second.network.state_dict(), whole.network.state_dict(), rtol=0, atol=0)
    assert parts(whole)[2] == {"epoch": 4, "iteration": 16, "best_metric": 0.9, "best_metric_epoch": 2}
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.7**4)


@pytest.mark.parametrize("epoch_length", [3, 6])
def test_equal_too_when_an_epoch_is_not_one_pass(build, tmp_path, epoch_length):
    whole = build(tmp_path / "whole", epoch_length=epoch_length)
    whole.trainer.run()
    build(tmp_path / "halves", max_epochs=2, epoch_length=epoch_length).trainer.run()
    second = build(tmp_path / "halves", resume=True, epoch_length=epoch_length)
    second.trainer.run()
    torch.testing.assert_close(parts(second), parts(whole), rtol=0, atol=0)


def test_without_resume_a_run_starts_anew_and_replaces_the_file_after_its_first_epoch(build, tmp_path, caplog):
    build(tmp_path, max_epochs=2).trainer.run()
    assert "earlier run" not in caplog.text
    before = (tmp_path / "checkpoint.pt").read_bytes()
    seen = []
    again = build(tmp_path, max_epochs=1)

    @again.trainer.on(Events.ITERATION_COMPLETED)
    def _(engine):
        seen.append((engine.state.epoch, again.checkpoint.read_bytes() == before))

    again.trainer.run()
    assert seen == [(1, True)] * 4 and load_checkpoint(again.checkpoint)["epoch"] == 1
    assert f"{again.checkpoint}: left by an earlier run" in caplog.text and "`--resume True`" in caplog.text
    caplog.clear()
    build(tmp_path, max_epochs=2, resume=True).trainer.run()
    assert "earlier run" not in caplog.text


def test_a_worse_epoch_after_resume_does_not_replace_the_best_model(build, tmp_path):
    build(tmp_path, max_epochs=2).trainer.run()
    best = (tmp_path / "model.pt").read_bytes()
    build(tmp_path, max_epochs=3, resume=True).trainer.run()
    assert (tmp_path / "model.pt").read_bytes() == best


def test_a_finished_run_ends_at_once_and_says_so(build, tmp_path, caplog):
    build(tmp_path, max_epochs=2).trainer.run()
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with caplog.at_level(logging.INFO):
        again = build(tmp_path, max_epochs=2, resume=True)
        again.trainer.run()
    assert "2 of 2 epochs are done, nothing to train" in caplog.text
    assert again.trainer.state.iteration == 8
    assert files == {file: file.read_bytes() for file in tmp_path.iterdir()}


def test_resume_without_a_file_is_an_error(build, tmp_path):
    with pytest.raises(FileNotFoundError, match="checkpoint.pt: no such checkpoint"):
        build(tmp_path, resume=True).trainer.run()


def test_other_objects_other_shapes_and_other_files_are_refused(build, tmp_path):
    build(tmp_path, max_epochs=1).trainer.run()
    path, network = tmp_path / "checkpoint.pt", torch.nn.Linear(2, 2)
    wrong = build(tmp_path, extra=[FullStateCheckpoint(path, {"teacher": network}, resume=True)])
    with pytest.raises(ValueError, match="holds the state of network, optimizer, schedule, but this run needs teacher"):
        wrong.trainer.run()
    state = load_checkpoint(path)
    state["objects"]["network"] = network.state_dict()
    save_atomic(state, path)
    with pytest.raises(ValueError, match="the state of network does not fit"):
        build(tmp_path, resume=True).trainer.run()
    save_atomic(network.state_dict(), path)
    with pytest.raises(ValueError, match="full state of a run .* found something else"):
        build(tmp_path, resume=True).trainer.run()


def test_other_settings_are_refused(build, tmp_path):
    def run(resume=True, **settings):
        network = torch.nn.Linear(1, 1)
        handler = FullStateCheckpoint(tmp_path / "own.pt", {"network": network}, resume, settings=settings)
        build(tmp_path, max_epochs=1, extra=[handler]).trainer.run()

    run(resume=False, fold=np.int64(0), size=(8, 8), base=None, labels={1: "wall"})
    told = {"fold": 0, "size": [8, 8], "base": None, "labels": {"1": "wall"}}
    assert load_checkpoint(tmp_path / "own.pt")["settings"] == told
    run(size=[8, 8], fold=0, labels={1: "wall"})
    with pytest.raises(ValueError) as error:
        run(fold=1, size=[8, 9], base="uamt", labels={}, new=2)
    assert str(error.value).startswith(f"{tmp_path / 'own.pt'}: expected the settings of the run that is resumed")
    changed = ["fold was 0 and is now 1", "size was [8, 8] and is now [8, 9]", 'base was null and is now "uamt"',
               'labels.1 was "wall" and is now null', "new was null and is now 2"]  # fmt: skip
    assert f"found others: {'; '.join(changed)}. Give them as they were" in str(error.value)


def test_other_arguments_of_a_part_are_refused_by_their_place(build, tmp_path):
    def run(resume, width, loss):
        settings = {"model": {"network": VNet(2, width=width)}, "loss": loss}
        objects = {"network": torch.nn.Linear(1, 1)}
        handler = FullStateCheckpoint(tmp_path / "own.pt", objects, resume, settings=settings)
        build(tmp_path, max_epochs=1, extra=[handler]).trainer.run()

    run(False, 2, torch.nn.MSELoss())
    run(True, 2, torch.nn.MSELoss())
    with pytest.raises(ValueError) as error:
        run(True, 4, torch.nn.L1Loss())
    assert "found others: model.network.width was 2 and is now 4; loss.class was" in str(error.value)
    assert '"torch.nn.modules.loss.MSELoss" and is now "torch.nn.modules.loss.L1Loss". Give' in str(error.value)


def test_objects_without_state_are_refused(tmp_path):
    with pytest.raises(TypeError, match="which bank lack"):
        FullStateCheckpoint(tmp_path / "c.pt", {"bank": []})


def test_saves_after_the_other_handlers_of_the_epoch_whatever_the_order(build, tmp_path):
    run = build(tmp_path, max_epochs=1)  # the checkpoint handler is first in the list there

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def _(engine):
        run.network[0].weight.data.fill_(4.0)

    run.trainer.run()
    assert (load_checkpoint(run.checkpoint)["objects"]["network"]["0.weight"] == 4).all()


def test_interval_and_the_last_epoch(build, tmp_path):
    saved = []
    run = build(tmp_path, max_epochs=3)
    handler = FullStateCheckpoint(tmp_path / "second.pt", {"network": run.network}, interval=2)
    handler.attach(run.trainer)

    @run.trainer.on(Events.EPOCH_STARTED)
    def _(engine):
        saved.append((tmp_path / "second.pt").is_file() and load_checkpoint(tmp_path / "second.pt")["epoch"])

    run.trainer.run()
    assert saved == [False, False, 2] and load_checkpoint(tmp_path / "second.pt")["epoch"] == 3


def test_bad_weights_do_not_replace_a_good_checkpoint(build, tmp_path):
    run = build(tmp_path, interval=9)

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def _(engine):
        if engine.state.epoch == 2:
            run.network[3].bias.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match=r"1 parameters of network .* 3\.bias"):
        run.trainer.run()
    assert load_checkpoint(run.checkpoint)["epoch"] == 1


def test_a_changed_epoch_length_goes_on_with_a_warning(build, tmp_path, caplog):
    build(tmp_path, max_epochs=2).trainer.run()
    again = build(tmp_path, max_epochs=4, resume=True, epoch_length=2)
    again.trainer.run()
    assert (again.trainer.state.epoch, again.trainer.state.iteration) == (4, 8)
    assert "had 4 iterations, now 2" in caplog.text


def test_a_changed_schedule_length_counts_from_then_on(build, tmp_path, caplog):
    for resume, length in ((False, 2), (True, 9)):
        run = build(tmp_path, max_epochs=2 + resume)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, T_max=length)
        FullStateCheckpoint(tmp_path / "cosine.pt", {"cosine": schedule}, resume).attach(run.trainer)
        run.trainer.run()
    assert "cosine: T_max was 2 and is now 9" in caplog.text and schedule.T_max == 9


def test_a_changed_length_of_a_schedule_in_a_chain_counts_too(build, tmp_path, caplog):
    for resume, length in ((False, 2), (True, 9)):
        run = build(tmp_path, max_epochs=2 + resume)
        optimizer = torch.optim.SGD(run.network.parameters(), lr=1.0)
        parts = [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=3),
                 torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=length)]  # fmt: skip
        chain = torch.optim.lr_scheduler.ChainedScheduler(parts)
        FullStateCheckpoint(tmp_path / "chain.pt", {"chain": chain}, resume).attach(run.trainer)
        run.trainer.run()
    assert "chain: total_iters was 2 and is now 9" in caplog.text and caplog.text.count("total_iters") == 1
    assert [part.total_iters for part in parts] == [3, 9]


def test_a_run_that_is_stopped_within_a_save_says_which_state_is_there(build, tmp_path, monkeypatch):
    """Before the new file takes its place, and after."""
    told = []

    def save(state, path):
        told.append(stopping._advice[0]())
        save_atomic(state, path)
        told.append(stopping._advice[0]())

    monkeypatch.setattr(full_state, "save_atomic", save)
    build(tmp_path, max_epochs=2).trainer.run()
    kept = [int(text.split()[4]) if text.startswith("The state after epoch ") else 0 for text in told]
    assert kept == [0, 1, 1, 2]
