"""When bfloat16 saves time."""

from __future__ import annotations

import warnings

import torch

__all__ = ["use_bfloat16"]

_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and of ARM, as torch.cpu.get_capabilities names them


def use_bfloat16(amp: bool, device: torch.device | str) -> bool:
    """Whether to autocast to bfloat16 on this device.

    Args:
        amp: what the user asks for.

    Returns:
        ``amp``, but False with a warning on a CPU without arithmetic units for bfloat16, where torch imitates it: a
        training step takes several times as long as in float32.
    """
    if not amp or torch.device(device).type != "cpu":
        return amp
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot say
        return True
    capabilities = torch.cpu.get_capabilities()
    if any(capabilities.get(unit) for unit in _UNITS):
        return True
    warnings.warn("amp: this CPU has no units for bfloat16 and would be several times slower; computing in float32.",
                  stacklevel=2)  # fmt: skip
    return False
