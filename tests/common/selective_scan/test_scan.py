"""The scan of every backend that runs on the CPU: six questions, and the ways in which scans go wrong numerically."""

import math

import numpy as np
import pytest
import torch

from common.selective_scan import available_backends, selective_scan
from common.selective_scan.dispatch import BACKENDS
from tools.bench.peak import peak

CPU = ("reference", "torch", "native")


@pytest.fixture(name="backend", params=CPU)
def _backend(request):
    if (reason := BACKENDS[request.param].unavailable()) is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def naive(u, delta, A, B, C, D, bias, softplus=True):
    """One number at a time, in float64."""
    u, delta, A, B, C, D, bias = (None if x is None else x.detach().double().numpy() for x in (
        u, delta, A, B, C, D, bias))  # fmt: skip
    (batch, channels, length), state, y = u.shape, A.shape[1], np.zeros(u.shape)
    for b, d, t in np.ndindex(batch, channels, length):
        if t == 0:
            h = [0.0] * state
        group = d * B.shape[1] // channels if B.ndim == 4 else 0
        B_t, C_t = (x[b, group, :, t] if x.ndim == 4 else x[b, :, t] for x in (B, C))
        dt = delta[b, d, t] + (0 if bias is None else bias[d])
        dt = np.logaddexp(0, dt) if softplus else dt
        h = [np.exp(dt * A[d, n]) * h[n] + dt * u[b, d, t] * B_t[n] for n in range(state)]
        y[b, d, t] = sum(C_t[n] * h[n] for n in range(state)) + (0 if D is None else D[d] * u[b, d, t])
    return torch.from_numpy(y)


def off(x, exact):
    """Largest difference over the largest value."""
    return float(((x.double() - exact.double()).abs().max() / exact.abs().max()).detach())


def test_value_by_hand(backend):
    """Decays 1/2 and 1; the states are 1, 5/2, 17/4 and 1, 1, 4; the second is read out from the second step on."""
    u, delta = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.ones(1, 1, 3)
    A = torch.tensor([[-math.log(2), 0.0]])
    B, C = torch.tensor([[[1.0, 1, 1], [1, 0, 1]]]), torch.tensor([[[1.0, 1, 1], [0, 1, 1]]])
    y = selective_scan(u, delta, A, B, C, backend=backend)
    torch.testing.assert_close(y, torch.tensor([[[1.0, 3.5, 8.25]]]))
    skipped = selective_scan(u, delta, A, B, C, D=torch.tensor([2.0]), backend=backend)
    torch.testing.assert_close(skipped, torch.tensor([[[3.0, 7.5, 14.25]]]))
    # softplus(log(e - 1)) = 1: the bias makes of zeros the same steps
    biased = selective_scan(u, 0 * delta, A, B, C, None, torch.tensor([math.log(math.e - 1)]), True, backend)
    torch.testing.assert_close(biased, y)


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("options", [(), ("D", "delta_bias"), ("D",), ("delta_bias",)])
def test_same_as_naive_loop(backend, inputs, groups, options):
    drawn = inputs(length=37, groups=groups, options=options)
    tensors = [x if x is None else x.detach().float() for x in drawn]
    for softplus in (True, False):
        y = selective_scan(*tensors, softplus, backend)
        assert y.dtype == torch.float32 and off(y, naive(*tensors, softplus)) < 1e-6
        tensors[1] = tensors[1].abs() + 3  # positive steps, also with the bias


@pytest.mark.parametrize("channels, state, groups", [(40, 16, 1), (35, 5, 7), (70, 3, 2)])
def test_backends_agree_with_float64(backend, inputs, everything, recast, channels, state, groups):
    exact = everything(BACKENDS["reference"].scan, inputs(2, channels, state, 700, groups))
    found = everything(BACKENDS[backend].scan, recast(inputs(2, channels, state, 700, groups), torch.float32))
    assert off(found[0], exact[0]) < 1e-6
    assert max(off(x, y) for x, y in zip(found[1:], exact[1:], strict=True)) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread, shift", [(0.0, 0.0), (10.0, 0.0), (1.0, -1000.0), (1.0, 1000.0), (1000.0, 0.0)])
def test_finite_at_the_extremes(backend, inputs, dtype, spread, shift):
    """Steps of zero keep the state, long ones forget it; the right value is far inside float16."""
    if backend == "native" and dtype == torch.float64:
        pytest.skip("float32 only")
    tensors = inputs(length=70, spread=spread, dtype=dtype)
    tensors[0] = (tensors[0] / 1000).detach().requires_grad_()
    delta = (tensors[1] + shift).detach().requires_grad_()
    tensors[1] = delta
    y = selective_scan(*tensors, True, backend)
    y.sum().backward()
    assert y.dtype == dtype and y.isfinite().all()
    grads = [x.grad for x in tensors]
    assert all(x.grad.dtype == x.dtype for x in tensors)
    if dtype != torch.float16:  # whose gradients of A may leave its range
        assert all(x.isfinite().all() for x in grads)
    # torch's softplus drops exp(-x) from x = 20 on, in float64 too
    low = {torch.float64: 1e-9, torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert off(y, naive(*tensors)) < low


@pytest.mark.parametrize("batch, length", [(2, 0), (0, 5), (0, 0)])
def test_nothing_to_scan(backend, inputs, batch, length):
    tensors = inputs(batch=batch, length=length, dtype=torch.float32)
    y = selective_scan(*tensors, True, backend)
    assert y.shape == (batch, 6, length) and y.dtype == torch.float32
    y.sum().backward()
    assert tensors[0].grad.shape == y.shape


@pytest.mark.parametrize(
    "place, name, bad",
    [
        (1, "delta", torch.zeros(2, 6, 44)),
        (2, "A", torch.zeros(5, 4)),
        (3, "B", torch.zeros(2, 4, 44)),
        (4, "C", torch.zeros(2, 2, 4, 45)),
        (5, "D", torch.zeros(6, 1)),
        (6, "delta_bias", torch.zeros(1)),
        (3, "B", torch.zeros(2, 1, 4, 45, dtype=torch.long)),
        (2, "A", torch.zeros(6, 4, dtype=torch.complex64)),
        (6, "delta_bias", torch.zeros(6, device="meta")),
    ],
)
def test_bad_input_is_refused_by_name(backend, inputs, place, name, bad):
    tensors = inputs(dtype=torch.float32)
    tensors[place] = bad
    with pytest.raises(ValueError, match=rf"\b{name} should"):
        selective_scan(*tensors, True, backend)


def test_all_bad_inputs_are_named_at_once(inputs):
    tensors = inputs(dtype=torch.float32)
    tensors[1], tensors[6] = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match=r"delta should have shape \[2, 6, 45\], has \[1\]; .*delta_bias should"):
        selective_scan(*tensors)
    with pytest.raises(ValueError, match="6 channels with 4 states in 4 groups"):
        selective_scan(*inputs(channels=6, groups=4))
    with pytest.raises(ValueError, match=r"A \(D, N\)"):
        selective_scan(*tensors[:2], torch.zeros(3), *tensors[3:])


@pytest.mark.parametrize("spread", [0.5, 3.0, 10.0])
def test_decays_whose_product_leaves_float32(backend, inputs, everything, recast, spread):
    """exp(-sum of steps) overflows within 64 tokens at the first already; exp of differences loses digits later."""
    exact = everything(BACKENDS["reference"].scan, inputs(1, 8, 16, 500, spread=spread))
    found = everything(BACKENDS[backend].scan, recast(inputs(1, 8, 16, 500, spread=spread), torch.float32))
    assert off(found[0], exact[0]) < 1e-6
    assert max(off(x, y) for x, y in zip(found[1:], exact[1:], strict=True)) < 5e-6


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_long_and_slow(backend, inputs, everything, recast):
    """No drift over 10000 steps that hardly decay: neither of the state nor of sums over the tokens."""
    tensors = inputs(1, 2, 2, 10000, dtype=torch.float32)
    tensors[2] = (tensors[2] / 1000).detach().requires_grad_()
    exact = everything(BACKENDS["reference"].scan, recast(tensors, torch.float64))
    found = everything(BACKENDS[backend].scan, tensors)
    assert off(found[0], exact[0]) < 3e-6
    assert max(off(x, y) for x, y in zip(found[1:], exact[1:], strict=True)) < 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_scanned_in_float32(backend, inputs, dtype):
    """A state kept in bfloat16 would drop 1 - dt * A altogether."""
    tensors = inputs(1, 2, 2, 1000, options=())
    tensors[1], tensors[2] = torch.full_like(tensors[1], -5.0), tensors[2] / 100
    tensors = [x if x is None else x.detach().to(dtype).requires_grad_() for x in tensors]
    y = selective_scan(*tensors, delta_softplus=True, backend=backend)
    exact = naive(*tensors)
    assert y.dtype == dtype and off(y, exact) <= float(torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_low_precision_are_summed_in_float32(backend, inputs, recast, dtype):
    """Those of B and C are sums over the channels, those of A, D and the bias over the tokens."""
    tensors = recast(inputs(2, 96, 3, 60), dtype)
    weight = torch.randn(2, 96, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad((selective_scan(*tensors, True, backend).double() * weight).sum(), tensors)
    leaves = recast(tensors, torch.float64)
    exact = torch.autograd.grad((BACKENDS["reference"].scan(*leaves, True) * weight).sum(), leaves)
    assert all(x.dtype == dtype for x in found)
    assert max(off(x, y) for x, y in zip(found, exact, strict=True)) < torch.finfo(dtype).eps


def test_autocast_changes_nothing(backend, inputs):
    tensors = inputs(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = selective_scan(*tensors, True, backend)
    assert torch.equal(y, selective_scan(*tensors, True, backend))


def test_softplus_of_small_steps_keeps_its_digits(backend):
    """log(1 + e) would round 3e-7 to a multiple of 1e-7; each step adds softplus(-15) to a state that never decays."""
    ones = torch.ones(1, 1, 3)
    y = selective_scan(ones, -15 * ones, torch.zeros(1, 1), ones, ones, None, None, True, backend)
    exact = torch.tensor([[[1.0, 2.0, 3.0]]], dtype=torch.float64) * np.log1p(np.exp(-15.0))
    assert off(y, exact) < 1e-6


def test_layouts_and_subsets(backend, inputs, everything):
    """Expanded, transposed and strided inputs; gradients of some of them only."""
    tensors = inputs(2, 6, 4, 45, dtype=torch.float32, groups=None)
    plain = everything(BACKENDS[backend].scan, tensors)
    strange = [x.detach() for x in tensors]
    strange[0] = strange[0].transpose(1, 2).contiguous().transpose(1, 2)
    strange[3] = torch.stack([strange[3]] * 2, 3)[..., 0]
    for chosen in ((0,), (2, 6), (3, 5), (1,)):
        given = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(strange)]
        y, *grads = everything(BACKENDS[backend].scan, given)
        torch.testing.assert_close([y, *grads], [plain[0], *(plain[1 + i] for i in chosen)])
    expanded = [strange[0][:1].expand(2, -1, -1), *strange[1:]]
    copied = [x.clone() for x in expanded]
    torch.testing.assert_close(BACKENDS[backend].scan(*expanded, True), BACKENDS[backend].scan(*copied, True))


@pytest.mark.parametrize("backend", ["torch", "native"], indirect=True)
def test_nothing_is_kept_without_gradients(backend, inputs):
    """For the backward, states of every 32nd step at least, 4 bytes a number."""
    tensors = inputs(2, 16, 8, 8000, dtype=torch.float32)

    def run():
        return selective_scan(*tensors, True, backend)

    kept = peak(run)
    with torch.no_grad():
        assert run().grad_fn is None and peak(run) <= kept - 2 * 16 * 8 * 8000 / 32 * 4
    tensors = [x.detach() for x in tensors]
    assert run().grad_fn is None and peak(run) <= kept - 2 * 16 * 8 * 8000 / 32 * 4


def test_every_backend_reports(inputs):
    reasons = available_backends()
    assert reasons["torch"] == reasons["reference"] == "ok" and set(reasons) == set(BACKENDS)
    assert all(reasons.values())
