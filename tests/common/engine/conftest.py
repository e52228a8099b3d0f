"""A tiny training run with what makes exact resume hard: dropout, Adam, a schedule, random data and transforms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import RandGaussianNoised
from torch import nn

from common.engine import BestModelSaver, FullStateCheckpoint, SeedEachEpoch


class EpochData(torch.utils.data.Dataset):
    """Items drawn from (seed, epoch, index), then changed by a transform that has a generator of its own."""

    def __init__(self, length: int = 8) -> None:
        self.length, self.epoch, self.noise = length, -1, RandGaussianNoised("image", prob=1.0, std=0.5)
        self.poisoned = {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        values = np.random.default_rng([7, self.epoch, index]).normal(size=4).astype(np.float32)
        values += np.random.normal() + torch.randn(1).item()  # the global generators of this process
        item = {"image": torch.from_numpy(values), "label": torch.from_numpy(values[:1] * 2), "case": f"case_{index}"}
        item["image"] = item["image"] * self.poisoned.get((self.epoch, index), 1.0)
        return self.noise(item)


class ScriptedMetric:
    """A key metric whose value in each epoch is given."""

    def __init__(self, values: dict) -> None:
        self.values = values

    def attach(self, engine, name: str) -> None:
        @engine.on(Events.EPOCH_COMPLETED)
        def _(engine):
            engine.state.metrics[name] = self.values[engine.state.epoch]


METRIC = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7}
MODEL = {"network": "two layers", "preprocessing": None, "labels": {1: "wall"}}


def build(
    folder, max_epochs=4, resume=False, workers=0, metric=None, interval=1, extra=(), epoch_length=None, **options
):
    """A trainer on the folder's model.pt and checkpoint.pt, with its parts as attributes."""
    torch.manual_seed(0)
    np.random.seed(0)
    run = SimpleNamespace(model=folder / "model.pt", checkpoint=folder / "checkpoint.pt", data=EpochData())
    run.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 1))
    run.optimizer = torch.optim.Adam(run.network.parameters(), lr=0.05)
    run.schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, step_size=1, gamma=0.7)
    metric = METRIC if metric is None else metric
    validation = DataLoader(run.data, batch_size=8) if metric else []
    run.evaluator = SupervisedEvaluator(
        "cpu", validation, run.network, key_val_metric={"score": ScriptedMetric(metric)}, decollate=False
    )
    objects = {"network": run.network, "optimizer": run.optimizer, "schedule": run.schedule}
    handlers = [
        FullStateCheckpoint(run.checkpoint, objects, resume, run.evaluator),
        SeedEachEpoch(seed=3),
        LrScheduleHandler(run.schedule, print_lr=False),
        ValidationHandler(interval, run.evaluator),
        BestModelSaver(run.model, run.network, MODEL, run.evaluator),
        *extra,
    ]
    run.loader = DataLoader(run.data, batch_size=2, shuffle=True, num_workers=workers, **options)
    run.trainer = SupervisedTrainer(
        "cpu", max_epochs, run.loader, run.network, run.optimizer, nn.MSELoss(), epoch_length, train_handlers=handlers
    )
    return run


@pytest.fixture(name="build")
def _build():
    return build


@pytest.fixture(name="model")
def _model():
    """What the model files of the tests say of their model."""
    return dict(MODEL)
