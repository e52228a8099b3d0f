import numpy as np
import pytest
import torch
from ignite.engine import Events

from common.engine import SeedEachEpoch


def batches(run):
    """Cases and first values of each batch, by epoch."""
    seen = {}

    @run.trainer.on(Events.GET_BATCH_COMPLETED)
    def _(engine):
        batch = engine.state.batch
        seen.setdefault(engine.state.epoch, []).append((batch["case"], batch["image"].flatten().tolist()))

    return seen


@pytest.mark.parametrize("workers", [0, 2])
def test_the_data_of_an_epoch_do_not_depend_on_the_epochs_before(build, tmp_path, workers):
    whole = build(tmp_path / "whole", workers=workers)
    all_epochs = batches(whole)
    whole.trainer.run()
    build(tmp_path / "halves", max_epochs=2, workers=workers).trainer.run()
    second = build(tmp_path / "halves", resume=True, workers=workers)
    resumed = batches(second)
    second.trainer.run()
    assert sorted(resumed) == [3, 4] and resumed == {epoch: all_epochs[epoch] for epoch in (3, 4)}
    assert all_epochs[1] != all_epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_epoch_is_seeded_before_its_loader_opens(build, tmp_path, workers):
    runs = []
    for state in (1, 2):  # whatever was drawn before
        run = build(tmp_path, max_epochs=1, workers=workers)
        torch.manual_seed(state)
        np.random.seed(state)
        runs.append(batches(run))
        run.trainer.run()
    assert runs[0] == runs[1]
    assert run.data.epoch == 1


def test_other_seeds_and_ranks_draw_other_numbers():
    seeds = {SeedEachEpoch(seed)._seed(epoch, rank) for seed in range(3) for epoch in range(3) for rank in range(3)}
    assert len(seeds) == 27


def test_a_loader_with_its_own_generator_is_reseeded(build, tmp_path):
    runs = []
    for state in (1, 2):
        run = build(tmp_path, max_epochs=2, generator=torch.Generator().manual_seed(state))
        runs.append(batches(run))
        run.trainer.run()
    assert runs[0] == runs[1]


def test_persistent_workers_are_refused(build, tmp_path):
    with pytest.raises(ValueError, match="persistent_workers"):
        build(tmp_path, workers=1, persistent_workers=True).trainer.run()
