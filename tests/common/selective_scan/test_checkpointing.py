"""Gradient checkpointing and other hooks of saved tensors, and the trial of a backend whatever its caller is doing."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from common.networks.mamba import MambaBlock
from common.selective_scan import native_backend, selective_scan
from common.selective_scan.dispatch import BACKENDS, ENVIRONMENT

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(name="backend", params=("reference", "torch", "native"))
def _backend(request):
    if (reason := BACKENDS[request.param].unavailable()) is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def in_rows_far_apart():
    """What is given back lies in memory in another order, as by a hook that compresses."""
    return saved_tensors_hooks(lambda x: x.mT.contiguous() if x.dim() > 1 else x, lambda x: x.mT if x.dim() > 1 else x)


WAYS = {
    "checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=False),
    "reentrant": lambda f, x: checkpoint(f, x, use_reentrant=True),
    "one in another": lambda f, x: checkpoint(lambda y: checkpoint(f, y, use_reentrant=False), x, use_reentrant=False),
    "used twice": lambda f, x: checkpoint(lambda y: f(y) + f(y / 2), x, use_reentrant=False),
}
HOOKS = {"on the CPU": save_on_cpu, "apart": in_rows_far_apart}


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_without_checkpointing(backend, monkeypatch, way):
    """Also a second time from the same graph, and of the parameters."""
    monkeypatch.setenv(ENVIRONMENT, backend)
    torch.manual_seed(0)
    block, x = MambaBlock(4, d_state=3), torch.randn(2, 70, 4, requires_grad=True)
    plain = block(x) + block(x / 2) if way == "used twice" else block(x)
    exact = torch.autograd.grad(plain.square().sum(), [x, *block.parameters()])
    loss = WAYS[way](block, x).square().sum()
    for again in (True, False):
        if way == "reentrant":  # which knows backward() alone, and no second time
            block.zero_grad()
            loss.backward()
            found = [x.grad, *(p.grad for p in block.parameters())]
        else:
            found = torch.autograd.grad(loss, [x, *block.parameters()], retain_graph=again)
        torch.testing.assert_close(list(found), list(exact), rtol=1e-4, atol=1e-5)
        if way == "reentrant":
            break


@pytest.mark.parametrize("hook", HOOKS)
def test_gradients_are_those_without_hooks(backend, inputs, hook):
    tensors = inputs(2, 6, 4, 45, 2, dtype=torch.float32)
    exact = torch.autograd.grad(selective_scan(*tensors, True, backend).square().sum(), tensors)
    with HOOKS[hook]():
        y = selective_scan(*tensors, True, backend)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), tensors), exact, rtol=1e-4, atol=1e-4)


FIRST_CALLS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "hooks": lambda: saved_tensors_hooks(lambda x: None, lambda x: None),
    "no hooks allowed": lambda: torch.autograd.graph.disable_saved_tensors_hooks("not here"),
    "another device": lambda: torch.device("meta"),
}


@pytest.fixture(name="untried")
def _untried():
    """The compiled backend as in a fresh process: not tried out yet."""
    if (reason := native_backend.unavailable()) is not None:
        pytest.skip(reason)
    native_backend.unavailable.cache_clear()
    yield
    native_backend.unavailable.cache_clear()


@pytest.mark.parametrize("name", FIRST_CALLS)
def test_what_the_first_caller_does_is_no_fault_of_a_backend(untried, name):
    with FIRST_CALLS[name]():
        assert native_backend.unavailable() is None


def test_a_first_call_inside_a_checkpoint(untried):
    """The trial's own backward would unpack what the checkpoint has yet to recompute."""
    torch.manual_seed(0)
    block, x = MambaBlock(4, d_state=3), torch.randn(1, 33, 4, requires_grad=True)
    (found,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)
    assert native_backend.unavailable() is None
    torch.testing.assert_close(found, torch.autograd.grad(block(x).sum(), x)[0], rtol=1e-4, atol=1e-5)


def test_a_first_call_inside_a_transform(untried):
    """A transform takes no backward by hand, which the trial needs."""
    assert torch.func.grad(lambda x: x * (native_backend.unavailable() is None))(torch.ones(())) == 1


INTERPRETED = """
import torch
from torch.utils.checkpoint import checkpoint
from common.networks.mamba import MambaBlock
from common.selective_scan import triton_backend, selective_scan
block, x = MambaBlock(2, d_state=2), torch.randn(1, 9, 2, requires_grad=True)
(found,) = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).sum(), x)
assert triton_backend.unavailable() is None, triton_backend.unavailable()
torch.testing.assert_close(found, torch.autograd.grad(block(x).sum(), x)[0], rtol=1e-4, atol=1e-5)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_is_first_called_inside_a_checkpoint():
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", ENVIRONMENT: "triton"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
