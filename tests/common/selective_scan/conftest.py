"""Inputs of the scan, and its output with all gradients, for the tests of every backend."""

import pytest
import torch

OPTIONAL = ("D", "delta_bias")


def _inputs(batch=2, channels=6, state=4, length=45, groups=1, dtype=torch.float64, options=OPTIONAL, spread=0.5):
    """u, delta, A, B, C, D, delta_bias; B and C without an axis of groups where that is None."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    shared = (batch, state, length) if groups is None else (batch, groups, state, length)
    rate = -torch.rand(channels, state, generator=draw, dtype=torch.float64) * 4
    u, delta = (normal(batch, channels, length) for _ in range(2))
    given = {"D": normal(channels), "delta_bias": normal(channels) - 1}
    optional = [given[name] if name in options else None for name in OPTIONAL]
    tensors = [u, spread * delta, rate, normal(*shared), normal(*shared), *optional]
    return [x if x is None else x.to(dtype).requires_grad_() for x in tensors]


def _everything(scan, tensors, softplus=True):
    """Output, and the gradients of a weighted sum of it in all inputs that are given."""
    draw, leaves = torch.Generator().manual_seed(1), [x for x in tensors if x is not None and x.requires_grad]
    y = scan(*tensors, softplus)
    weight = torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


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
