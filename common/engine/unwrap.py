"""The module inside a data parallel wrapper, so that saved names are the same with one GPU and with many."""

from __future__ import annotations

from typing import Any

from torch import nn


def unwrap(thing: Any) -> Any:
    """``thing.module`` for the two wrappers of torch, else ``thing``."""
    return thing.module if isinstance(thing, (nn.DataParallel, nn.parallel.DistributedDataParallel)) else thing
