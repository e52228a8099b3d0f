"""On a GPU every backend gives the results and gradients of the loop in float64; also where autocast is on."""

import pytest
import torch

from common.selective_scan import selective_scan
from common.selective_scan.dispatch import BACKENDS

OPTIONS = [
    {},
    {"length": 1000, "channels": 64, "state": 16},
    {"groups": None, "options": ()},
    {"groups": 3, "channels": 6, "state": 1, "length": 33},
]


@pytest.fixture(name="backend", params=("torch", "triton", "mamba_ssm", "auto"))
def _backend(request):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if request.param != "auto" and (reason := BACKENDS[request.param].unavailable()) is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def results(tensors, slope, backend):
    """The output, and the gradients of all inputs that are given."""
    y = selective_scan(*tensors, delta_softplus=True, backend=backend)
    leaves = [x for x in tensors if x is not None]
    return [y.detach(), *torch.autograd.grad(y, leaves, slope.to(y))]


def compare(found, exact, output, gradients):
    for x, y, limit in zip(found, exact, [output] + [gradients] * (len(exact) - 1), strict=True):
        assert float((x.double().cpu() - y).abs().max()) <= limit * float(y.abs().max())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_loop_in_float64(backend, inputs, options):
    tensors = inputs(**options)
    slope = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = results(tensors, slope, "reference")
    there = [x if x is None else x.detach().float().cuda().requires_grad_() for x in tensors]
    compare(results(there, slope, backend), exact, 1e-5, 1e-4)
    with torch.autocast("cuda", torch.bfloat16):  # the scan itself stays in float32
        compare(results(there, slope, backend), exact, 1e-5, 1e-4)


def test_short_numbers_come_back_as_they_are(backend, inputs):
    """bfloat16 in and out; computed in float32 of what was given."""
    tensors = inputs(length=70)
    slope = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = [x if x is None else x.detach().bfloat16().cuda().requires_grad_() for x in tensors]
    exact = results([x if x is None else x.detach().double().cpu().requires_grad_() for x in there], slope, "reference")
    found = results(there, slope, backend)
    assert {x.dtype for x in found} == {torch.bfloat16}
    compare(found, exact, 1e-2, 1e-2)
