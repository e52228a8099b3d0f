"""The wrapper of several GPUs, and the module inside it: saved names are the same with one GPU and with many."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def unwrap(thing: Any) -> Any:
    """``thing.module`` for the two wrappers of torch, else ``thing``."""
    return thing.module if isinstance(thing, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else thing


def wrap(module: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """For several processes, each with its ``device``; a module without weights stays as it is, which torch refuses.

    Args:
        options: of ``DistributedDataParallel``.
    """
    if not any(weight.requires_grad for weight in module.parameters()):
        return module
    devices = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, devices, **options)
