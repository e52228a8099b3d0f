"""Which backend is chosen: an explicit one, else the environment's, else the first that takes the tensors."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from common.selective_scan import available_backends, dispatch, selective_scan


@pytest.fixture(name="used")
def _used(monkeypatch):
    """Backends that write down their name and what they were given; those in the dictionary `absent` are not there."""
    names, absent = [], {}

    def backend(name):
        def scan(u, *others):
            names.append(name)
            return u

        return SimpleNamespace(scan=scan, unavailable=lambda: absent.get(name))

    monkeypatch.setattr(dispatch, "BACKENDS", {name: backend(name) for name in dispatch.BACKENDS})
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    return SimpleNamespace(names=names, absent=absent)


@pytest.mark.parametrize(
    "dtype, name", [(torch.float32, "native"), (torch.bfloat16, "native"), (torch.float64, "torch")]
)
def test_automatic_on_the_cpu(used, inputs, dtype, name):
    selective_scan(*inputs(dtype=dtype))
    assert used.names == [name]


def test_without_a_compiler_the_plain_operations_serve_silently(used, inputs, caplog):
    used.absent["native"] = "no compiler"
    selective_scan(*inputs(dtype=torch.float32))
    assert used.names == ["torch"] and not caplog.records


@pytest.mark.parametrize(
    "absent, name", [((), "mamba_ssm"), (("mamba_ssm",), "triton"), (("mamba_ssm", "triton"), "torch")]
)
def test_automatic_on_cuda(used, absent, name, caplog):
    dispatch._warn_of_fallback.cache_clear()
    used.absent.update(dict.fromkeys(absent, "broken"))
    assert [dispatch._automatic("cuda", torch.float32, 16) for _ in range(2)] == [name] * 2
    assert len(caplog.records) == (name == "torch")  # once, with the reasons
    assert name != "torch" or "mamba_ssm: broken; triton: broken" in caplog.text
    assert dispatch._automatic("cuda", torch.float64, 16) == "torch"


def test_automatic_leaves_more_states_than_mamba_ssm_takes_to_triton(used):
    assert [dispatch._automatic("cuda", torch.float32, states) for states in (256, 257)] == ["mamba_ssm", "triton"]


def test_explicit_over_environment_over_automatic(used, inputs, monkeypatch):
    tensors = inputs(dtype=torch.float32)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "reference")
    selective_scan(*tensors)
    selective_scan(*tensors, backend="torch")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "auto")
    selective_scan(*tensors)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "")
    selective_scan(*tensors)
    assert used.names == ["reference", "torch", "native", "native"]


def test_forced_but_absent_raises_the_reason(used, inputs, monkeypatch):
    used.absent["triton"] = "ImportError: no such symbol"
    with pytest.raises(RuntimeError, match="'triton' cannot be used: ImportError: no such symbol"):
        selective_scan(*inputs(), backend="triton")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "triton")
    with pytest.raises(RuntimeError, match="no such symbol"):
        selective_scan(*inputs())
    assert used.names == [] and available_backends()["triton"] == "ImportError: no such symbol"


def test_unknown_names_list_the_known(used, inputs, monkeypatch):
    with pytest.raises(ValueError, match="backend='cuda'.*mamba_ssm, triton, native, torch, reference"):
        selective_scan(*inputs(), backend="cuda")
    monkeypatch.setenv(dispatch.ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match=f"{dispatch.ENVIRONMENT}='fast'"):
        selective_scan(*inputs())


def test_backends_are_given_one_dtype(used, inputs, monkeypatch):
    given = []
    dispatch.BACKENDS["torch"].scan = lambda *x: given.extend(x) or x[0]
    tensors = inputs(dtype=torch.bfloat16)
    tensors[2] = tensors[2].float()
    y = selective_scan(*tensors, True, backend="torch")
    assert {x.dtype for x in given[:7]} == {torch.float32} and given[7:] == [True] and y.dtype == torch.bfloat16


def test_without_triton_and_mamba_ssm():
    """As on a machine that has neither: a bundle with Mamba blocks is imported, and its network runs."""
    code = """
import sys
sys.modules |= dict.fromkeys(["triton", "mamba_ssm", "selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda"])
import torch
import diffcl_ssl.objective
from common.selective_scan import available_backends
from diffcl_ssl.network import ConvolutionalNetwork
logits = ConvolutionalNetwork(3, 1, 2, 4, "instance", d_state=2)(torch.randn(1, 1, 32, 32, 32))
assert logits.shape == (1, 2, 32, 32, 32) and logits.isfinite().all()
found = available_backends()
assert found["torch"] == "ok" and "ok" not in (found["triton"], found["mamba_ssm"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
