"""Stop a run at the first loss or weight that is not finite, and say where it happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import nn


class StopOnNan:
    """End training with an error when the loss is NaN or infinite.

    The error leaves before the epoch ends, so the checkpoints of the last good epoch stay as they are.

    Raises:
        FloatingPointError: at the iteration whose loss is not finite; names epoch, iteration and cases.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        losses = [torch.as_tensor(loss).detach().float().flatten() for loss in _losses(engine.state.output)]
        if not losses:
            raise KeyError("StopOnNan: expected `loss` in the trainer's output, found none.")
        values = torch.cat([loss.cpu() for loss in losses])
        if torch.isfinite(values).all():
            return
        named = [name for key in ("case", "unlabeled_case") for name in _named(engine.state.batch, key)]
        cases = list(dict.fromkeys(named or _files(engine.state.batch)))
        state = engine.state
        raise FloatingPointError(
            f"the loss is {values[~torch.isfinite(values)][0].item()} in epoch {state.epoch}, iteration "
            f"{state.iteration}, cases: {', '.join(cases) or 'not named in the batch'}. Training stopped, and the last "
            "checkpoint stays. Look at these cases, lower learning_rate or switch amp off, and go on with resume=True."
        )


def refuse_bad_weights(module: nn.Module, name: str) -> None:
    """Check that every parameter is finite, before it takes the place of a good checkpoint.

    Raises:
        FloatingPointError: some are not; a finite loss in the last iteration does not exclude it.
    """
    bad = [key for key, value in module.named_parameters() if not torch.isfinite(value).all()]
    if bad:
        raise FloatingPointError(
            f"{len(bad)} parameters of {name} hold NaN or infinite values (first: {bad[0]}). They are not saved, "
            "and the last checkpoint stays. Lower learning_rate or switch amp off, and go on with resume=True."
        )


def refuse_bad_logits(logits: torch.Tensor, case: str) -> None:
    """Check what a network gives for a case, before it becomes an empty map.

    Raises:
        FloatingPointError: NaN or infinite values.
    """
    if not torch.isfinite(logits).all():
        raise FloatingPointError(
            f"{case}: expected finite logits of the network, found NaN or infinite values, of which no label map can "
            "be made. Switch amp off; if that does not help, the model has diverged: take another checkpoint, or train "
            "again with a lower learning_rate."
        )


def first_loss(output: Any) -> float:
    """The loss in a trainer's output, NaN when there is none."""
    return next((float(torch.as_tensor(loss).detach().float().mean()) for loss in _losses(output)), float("nan"))


def _losses(output: Any) -> Iterator[Any]:
    if isinstance(output, Mapping):
        if "loss" in output:
            yield output["loss"]
    elif isinstance(output, (list, tuple)):  # MONAI decollates the output to one dict per case
        for item in output:
            yield from _losses(item)
    elif isinstance(output, (float, int, torch.Tensor)):
        yield output


def _named(batch: Any, key: str) -> list[str]:
    """All texts under ``key``, however batches of several streams are nested."""
    if isinstance(batch, Mapping):
        own = batch.get(key, [])
        own = [own] if isinstance(own, str) else [str(value) for value in own]
        return own + [name for value in batch.values() for name in _named(value, key)]
    if isinstance(batch, (list, tuple)):
        return [name for value in batch for name in _named(value, key)]
    return []


def _files(batch: Any) -> list[str]:
    """Without case names, the files that the images were read from."""
    if isinstance(batch, MetaTensor):
        found = batch.meta.get("filename_or_obj", [])
        return [found] if isinstance(found, str) else [str(file) for file in found]
    values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return [name for value in values for name in _files(value)]
