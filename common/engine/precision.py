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
        ``amp``, but False with a warning on a CPU or GPU without arithmetic units for bfloat16, where torch imitates
        it: a training step takes several times as long as in float32.
    """
    kind = torch.device(device).type
    if not amp or _has_units(kind):
        return amp
    warnings.warn(f"amp: this {kind.replace('cuda', 'gpu').upper()} has no units for bfloat16 and would be several "
                  "times slower; computing in float32.", stacklevel=2)  # fmt: skip
    return False


def _has_units(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot say
        return True
    return any(torch.cpu.get_capabilities().get(unit) for unit in _UNITS)
