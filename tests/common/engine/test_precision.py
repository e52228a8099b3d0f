"""bfloat16 where it saves time, on whatever CPU the tests run."""

import warnings

import pytest
import torch

from common.engine import use_bfloat16

CPUS = {
    "x86 with vector units": ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
    "x86 with a matrix unit": ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, True),
    "x86 without": ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, False),
    "ARM with": ({"neon": True, "bf16": True}, True),
    "ARM without": ({"neon": True, "bf16": False}, False),
    "unknown": ({"architecture": "riscv64"}, False),
}


@pytest.mark.parametrize(("capabilities", "expected"), CPUS.values(), ids=CPUS)
def test_a_cpu_needs_units_for_it(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert use_bfloat16(True, torch.device("cpu")) is expected
    assert [("float32" in str(warning.message)) for warning in caught] == ([] if expected else [True])


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda:1")])
def test_a_gpu_needs_them_too_and_imitating_does_not_count(units, device, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": not units}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: units or including_emulation)
    assert use_bfloat16(True, device) is units
    said = [str(one.message).partition(" and ")[0] for one in recwarn]
    assert said == ([] if units else ["amp: this GPU has no units for bfloat16"])


def test_who_does_not_ask_gets_none_and_of_other_devices_nothing_is_known(monkeypatch, recwarn):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert not use_bfloat16(False, "cpu") and not use_bfloat16(False, "cuda") and use_bfloat16(True, "mps")
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
    assert use_bfloat16(True, "cpu") and not recwarn.list
