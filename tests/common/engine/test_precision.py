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


def test_a_gpu_and_those_who_do_not_ask_get_what_they_say(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert use_bfloat16(True, "cuda") and use_bfloat16(True, torch.device("cuda:1"))
        assert not use_bfloat16(False, "cpu") and not use_bfloat16(False, "cuda")
