"""Inputs of the scan, and its results with all gradients, for the tests of every backend."""

import pytest
import torch

OPTIONAL = ("D", "z", "delta_bias")


def _inputs(batch=2, channels=6, state=4, length=45, groups=1, dtype=torch.float64, options=OPTIONAL, spread=0.5):
    """u, delta, A, B, C, D, z, delta_bias; B and C without an axis of groups where that is None."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    shared = (batch, state, length) if groups is None else (batch, groups, state, length)
    rate = -torch.rand(channels, state, generator=draw, dtype=torch.float64) * 4
    u, delta, z = (normal(batch, channels, length) for _ in range(3))
    given = {"D": normal(channels), "z": z, "delta_bias": normal(channels) - 1}
    optional = [given[name] if name in options else None for name in OPTIONAL]
    tensors = [u, spread * delta, rate, normal(*shared), normal(*shared), *optional]
    return [x if x is None else x.to(dtype).requires_grad_() for x in tensors]


def _everything(scan, tensors, softplus=True):
    """Output, last state, and the gradients of a weighted sum of both in all inputs that are given."""
    draw, leaves = torch.Generator().manual_seed(1), [x for x in tensors if x is not None and x.requires_grad]
    y, h = scan(*tensors, softplus, True)
    weights = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x.dtype) for x in (y, h)]
    return [y.detach(), h.detach(), *torch.autograd.grad((y * weights[0]).sum() + (h * weights[1]).sum(), leaves)]


@pytest.fixture(name="inputs")
def _inputs_fixture():
    return _inputs


@pytest.fixture(name="everything")
def _everything_fixture():
    return _everything


@pytest.fixture(name="recast")
def _recast():
    """Copies of the tensors in another dtype, leaves with a gradient."""
    return lambda tensors, dtype: [x if x is None else x.detach().to(dtype).requires_grad_() for x in tensors]
