"""Whether a backend that needs more than PyTorch works on this machine, found by running it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["fault_of"]


def fault_of(scan: Callable, device: str) -> str | None:
    """Why ``scan`` does not work on ``device``, or None when a scan of 1 x 1 x 4 ones is right forward and backward.

    An installation can break in many ways (a missing module, an undefined symbol, a driver too old for the kernels),
    so whatever is raised is the reason. What the caller is in the midst of (gradient checkpointing or other hooks of
    saved tensors, ``no_grad``, ``inference_mode``, autocast, transforms of ``torch.func``) belongs to its thread, so
    the trial has a thread of its own: it neither sees these nor is seen by them.
    """
    with ThreadPoolExecutor(1) as own:
        return own.submit(_trial, scan, device).result()


def _trial(scan: Callable, device: str) -> str | None:
    try:
        kind = {"device": device, "dtype": torch.float32}  # whatever the defaults are
        u, ones = (torch.ones(1, 1, 4, requires_grad=grad, **kind) for grad in (True, False))
        out = scan(u, ones, torch.zeros(1, 1, **kind), ones, ones, None, None, False)
        (grad,) = torch.autograd.grad(out.sum(), u)
        found = [*out.flatten().tolist(), *grad.flatten().tolist()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if found == [1, 2, 3, 4, 4, 3, 2, 1] else f"a scan of ones gave {found}"
