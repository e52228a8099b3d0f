"""Selective scan by the CUDA kernels of the mamba-ssm package, where that is installed and works."""

from __future__ import annotations

import importlib
from functools import cache

import torch

from .probe import fault_of

__all__ = ["scan", "unavailable"]

MAX_STATES = 256  # the kernels' limit
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def unavailable() -> str | None:
    """Why mamba-ssm cannot be used here, or None when it can; it is imported and run once to find out."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return _probe("cuda")


def scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
) -> torch.Tensor:
    """The scan of `selective_scan` by mamba-ssm's ``selective_scan_fn``, in the layout and dtypes its kernels demand.

    The last axis is made contiguous, ``u, delta, B, C`` share one dtype (float32 where theirs differ), ``A, D,
    delta_bias`` are float32.

    Raises:
        TypeError: a dtype the kernels do not know, such as float64.
        ValueError: more than 256 states.
    """
    dtypes = {x.dtype for x in (u, delta, B, C)}
    if not dtypes <= set(DTYPES):
        raise TypeError(f"mamba-ssm takes {DTYPES}, got {sorted(map(str, dtypes))}; use backend='torch'.")
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"mamba-ssm takes at most {MAX_STATES} states, got {A.shape[1]}; use backend='torch'.")
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    rows = [_rows(x, dtype) for x in (u, delta, B, C)]
    rates = [None if x is None else x.float().contiguous() for x in (A, D, delta_bias)]
    with torch.autocast(u.device.type, enabled=False):
        y = _function()(*rows[:2], rates[0], *rows[2:], rates[1], delta_bias=rates[2], delta_softplus=delta_softplus)
    return y.to(u.dtype)


def _rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In that dtype, with the tokens next to each other in memory."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def _function():
    """mamba-ssm's function; the compiled extension is imported by itself, for later releases go without it silently."""
    importlib.import_module("selective_scan_cuda")
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn


@cache
def _probe(device: str) -> str | None:
    return fault_of(scan, device)
