"""The two-level scan: all its borders, its derivatives, and its memory."""

import pytest
import torch

from common.selective_scan import chunked_forward, reference_backend, torch_backend
from tools.bench.peak import peak


@pytest.fixture(name="tiny")
def _tiny(monkeypatch):
    """Segments of 3 chunks of 4 steps, tiles of 2 channels."""
    monkeypatch.setattr(chunked_forward, "plan", lambda *_: (4, 3, 2))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 11, 12, 13, 41])
@pytest.mark.parametrize("channels, state, groups", [(1, 1, 1), (3, 4, None), (6, 16, 2)])
def test_same_at_all_borders(tiny, inputs, everything, length, channels, state, groups):
    tensors = inputs(2, channels, state, length, groups)
    exact = everything(reference_backend.scan, tensors)
    torch.testing.assert_close(everything(torch_backend.scan, tensors), exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [31, 33, 1025, 4097])
def test_same_by_its_own_plan(inputs, everything, length):
    tensors = inputs(1, 3, 2, length)
    exact = everything(reference_backend.scan, tensors)
    torch.testing.assert_close(everything(torch_backend.scan, tensors), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [(), ("D", "delta_bias"), ("D",)])
@pytest.mark.parametrize("softplus", [True, False])
def test_gradcheck(monkeypatch, inputs, options, softplus):
    """Three segments of two chunks of two steps, tiles of two channels of three; entry by entry for all options."""
    monkeypatch.setattr(chunked_forward, "plan", lambda *_: (2, 2, 2))
    tensors = inputs(1, 3, 2, 9, options=options)
    if not softplus:
        tensors[1] = (tensors[1].abs() + 3).detach().requires_grad_()  # positive, also with the bias
    thorough = len(options) == 2 and softplus
    assert torch.autograd.gradcheck(lambda *x: torch_backend.scan(*x, softplus), tensors, fast_mode=not thorough)


def test_second_derivative_is_refused_and_the_reference_has_it(inputs):
    tensors = inputs(1, 2, 2, 5)
    slope = torch.ones_like(tensors[0]).requires_grad_()
    (first,) = torch.autograd.grad(torch_backend.scan(*tensors), tensors[0], slope, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    assert torch.autograd.gradgradcheck(lambda *x: reference_backend.scan(*x, True), tensors, fast_mode=True)


@pytest.mark.parametrize("length", [1, 50, 200, 1960, 15680, 163840])
@pytest.mark.parametrize("rows, channels", [(1, 16), (2, 64), (6, 256), (64, 32)])
def test_plan_covers_the_length_within_its_memory(length, rows, channels):
    for cuda in (False, True):
        steps, chunks, block = chunked_forward.plan(rows, channels, 16, length, cuda)
        assert 1 <= block <= channels and 1 <= chunks <= max(1, -(-length // steps))
        tile = rows * block * 16 * chunks
        assert tile <= 131072 if not cuda else tile * steps <= 2**26


def test_autograd_follows_the_plain_forward(tiny, inputs, everything):
    """A scripted network has no backward of ours."""
    tensors = inputs(2, 6, 4, 41, 2)

    def plain(*x):
        return chunked_forward.forward(*x, (4, 3, 2), False)[0]

    torch.testing.assert_close(everything(plain, tensors), everything(reference_backend.scan, tensors))


def test_peak_memory(inputs):
    """Far below B * D * L * N numbers, 123 MiB, of which autograd would keep several."""
    tensors = inputs(2, 64, 16, 15680, dtype=torch.float32)
    slope = torch.ones(2, 64, 15680)
    both = peak(lambda: torch.autograd.grad(torch_backend.scan(*tensors, True), tensors, slope))
    assert both < 250 * 2**20
    with torch.no_grad():
        assert peak(lambda: torch_backend.scan(*tensors, True)) < 123 * 2**20
