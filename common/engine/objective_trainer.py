"""MONAI's supervised trainer for methods whose loss needs more than a prediction and a label."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from .precision import use_bfloat16
from .stopping import end_if_stopped


class ObjectiveTrainer(SupervisedTrainer):
    """One step: ``logits, terms = loss_function(network, batch, step)``, then the gradient of ``terms["loss"]``.

    The objective runs the network itself, as often and on whatever it needs. ``step`` counts from 0 and is the engine's
    own, ``engine.state.iteration - 1``, so that ramps go on where a resumed run was. ``engine.state.output`` holds the
    logits, the image and label that they belong to, and every term of the loss under its name. ``amp`` is bfloat16
    autocast (see :func:`.use_bfloat16`): it needs no loss scaling, hence no scaler to checkpoint.

    Args:
        grad_clip: largest norm of the gradient of each group of the optimizer's parameters, or null.
        image_key, label_key: what in the batch the logits are of.
        kwargs: as :class:`monai.engines.SupervisedTrainer`; ``loss_function`` is the objective.

    Raises:
        ValueError: ``amp`` for three-dimensional convolutions on a CPU: where a map is two voxels long, oneDNN leaves
            their gradient uninitialised in bfloat16 (torch 2.13), which mostly shows nowhere.
    """

    def __init__(
        self,
        grad_clip: float | None = None,
        amp: bool = False,
        image_key: str = Keys.IMAGE,
        label_key: str = Keys.LABEL,
        **kwargs: Any,
    ) -> None:
        super().__init__(decollate=False, **kwargs)
        if amp and self.state.device.type == "cpu" and any(isinstance(m, nn.Conv3d) for m in self.network.modules()):
            raise ValueError("amp: on a CPU, 3-D convolutions have unreliable gradients in bfloat16; set it to false.")
        self.grad_clip = grad_clip
        self.bfloat16 = use_bfloat16(amp, self.state.device)
        self.image_key = image_key
        self.label_key = label_key

    def _iteration(self, engine: ObjectiveTrainer, batchdata: dict[str, Any]) -> dict[str, torch.Tensor]:
        end_if_stopped()
        device = engine.state.device
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batchdata.items()}
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=engine.bfloat16):
            logits, terms = engine.loss_function(engine.network, batch, engine.state.iteration - 1)
        shown = {Keys.IMAGE: batch[engine.image_key], Keys.LABEL: batch[engine.label_key]}
        engine.state.output = {**shown, Keys.PRED: logits, **terms}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        terms["loss"].backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        for group in engine.optimizer.param_groups if engine.grad_clip is not None else ():
            nn.utils.clip_grad_norm_(group["params"], engine.grad_clip)
        engine.optimizer.step()
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def loss_terms(output: dict[str, torch.Tensor]) -> dict[str, float]:
    """Every scalar of a trainer's output, for the logging handlers."""
    scalars = {name: value for name, value in output.items() if isinstance(value, torch.Tensor) and value.ndim == 0}
    return {name: value.item() for name, value in scalars.items()}
