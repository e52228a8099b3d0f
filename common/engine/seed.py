"""Random numbers that depend on the epoch only, so that a resumed run draws the same ones."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import set_rnd


class SeedEachEpoch:
    """Reseed everything from (seed, epoch, rank) when an epoch starts, then open the data loader anew.

    No state of a generator needs to be in a checkpoint, and the number of epochs done before does not matter. Covered:
    ``random``, ``numpy``, ``torch`` on all devices, the loader's own generator, and MONAI's random transforms, which
    keep their own generators. The loader, its dataset and samplers are told ``set_epoch(epoch)`` where they have it.
    Workers are started after that, also in the first epoch and in that of a resumed run, and also when the trainer's
    ``epoch_length`` is not the loader's length.

    Place it first in the list; a handler that changes the data at EPOCH_STARTED goes before it.

    Args:
        seed: the run's seed.

    Raises:
        ValueError: the loader has ``persistent_workers``, which keep their random state and their old dataset.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        loader, epoch = engine.state.dataloader, engine.state.epoch
        if getattr(loader, "persistent_workers", False):
            raise ValueError("persistent_workers=True cannot be resumed exactly: set it to False in the data loader.")
        seed = self._seed(epoch, getattr(engine.state, "rank", 0))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if getattr(loader, "generator", None) is not None:
            loader.generator.manual_seed(seed)
        dataset = getattr(loader, "dataset", None)
        set_rnd(dataset, seed)
        parts: list[Any] = [loader, dataset, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        engine.set_data(loader)  # ignite would go on with an iterator that is not used up

    def _seed(self, epoch: int, rank: int) -> int:
        return int(np.random.SeedSequence([self.seed, epoch, rank]).generate_state(1)[0])
