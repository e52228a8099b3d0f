import sys
from types import ModuleType

import pytest
import torch

from common.selective_scan import mamba_ssm_backend

EXTENSION, INTERFACE = "selective_scan_cuda", "mamba_ssm.ops.selective_scan_interface"


def install(monkeypatch, function):
    """Modules that stand for mamba-ssm with ``function`` as its scan; what it was called with is listed."""
    calls = []

    def selective_scan_fn(*args, **kwargs):
        calls.append((args, kwargs))
        return function(*args, **kwargs)

    for name in (EXTENSION, "mamba_ssm", "mamba_ssm.ops", INTERFACE):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[INTERFACE].selective_scan_fn = selective_scan_fn
    return calls


def loop(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False):
    """A scan of one group, for tensors that are already as the kernels demand."""
    B, C = (x if x.dim() == 3 else x[:, 0] for x in (B, C))
    state, out = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = (delta[:, :, t, None] * A).exp() * state + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        out.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(out, -1)


@pytest.fixture(autouse=True)
def forget_probes():
    mamba_ssm_backend._probe.cache_clear()
    yield
    mamba_ssm_backend._probe.cache_clear()


def inputs(dtype=torch.float32, length=5):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    return [
        noise(2, length, 3).mT,  # tokens not next to each other in memory
        noise(2, 3, length),
        -noise(3, 4).exp(),
        noise(2, 4, 1).expand(2, 4, length),
        noise(2, 1, 4, length),
        noise(3),
        noise(3),
    ]


def test_layout_and_dtypes_are_those_the_kernels_demand(monkeypatch):
    calls = install(monkeypatch, lambda u, *_, **__: torch.zeros_like(u))
    given = inputs(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mamba_ssm_backend.scan(*given, True)
    assert out.dtype == torch.bfloat16
    ((args, kwargs),) = calls
    u, delta, A, B, C, D = args
    bias = kwargs["delta_bias"]
    assert {x.dtype for x in (u, delta, B, C)} == {torch.bfloat16}
    assert {x.dtype for x in (A, D, bias)} == {torch.float32}
    assert all(x.stride(-1) == 1 for x in (u, delta, B, C)) and all(x.is_contiguous() for x in (A, D, bias))
    assert kwargs["delta_softplus"] is True
    for x, y in zip((u, delta, A, B, C, D, bias), given, strict=True):
        assert torch.equal(x, y.to(x.dtype))


def test_autocast_is_off_around_the_call(monkeypatch):
    seen = []
    install(monkeypatch, lambda u, *_, **__: seen.append(torch.is_autocast_enabled("cpu")) or u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mamba_ssm_backend.scan(*inputs(), True)
    assert seen == [False]


def test_dtypes_that_differ_meet_in_float32(monkeypatch):
    calls = install(monkeypatch, lambda u, *_, **__: torch.zeros_like(u))
    given = inputs(torch.float16)
    given[1] = given[1].float()
    assert mamba_ssm_backend.scan(*given, True).dtype == torch.float16
    args, kwargs = calls[0]
    assert {x.dtype for x in (*args, kwargs["delta_bias"])} == {torch.float32}


def test_inputs_not_given_stay_so(monkeypatch):
    calls = install(monkeypatch, loop)
    u, delta, A, B, C, *_ = inputs()
    u.requires_grad_()
    y = mamba_ssm_backend.scan(u, delta, A, B, C, None, None, False)
    assert calls[0][0][5] is None and calls[0][1]["delta_bias"] is None and y.requires_grad


def test_refuses_what_the_kernels_cannot_take(monkeypatch):
    calls = install(monkeypatch, loop)
    with pytest.raises(TypeError, match="torch.float64.*backend='torch'"):
        mamba_ssm_backend.scan(*inputs(torch.float64), True)
    given = inputs()
    given[2] = torch.ones(3, 257)
    with pytest.raises(ValueError, match="at most 256 states, got 257"):
        mamba_ssm_backend.scan(*given, True)
    assert calls == []


def test_probe_runs_the_scan_once_and_remembers(monkeypatch):
    calls = install(monkeypatch, loop)
    with torch.no_grad():  # as when the first scan of a process is one of inference
        assert mamba_ssm_backend._probe("cpu") is None
    with torch.inference_mode():
        assert mamba_ssm_backend._probe("cpu") is None
    assert len(calls) == 1 and calls[0][0][0].shape == (1, 1, 4)


def test_probe_works_in_inference_mode(monkeypatch):
    install(monkeypatch, loop)
    with torch.inference_mode():
        assert mamba_ssm_backend._probe("cpu") is None


def test_probe_tells_a_wrong_result(monkeypatch):
    install(monkeypatch, lambda *args, **kwargs: 2 * loop(*args, **kwargs))
    assert "a scan of ones gave [2.0, 4.0" in mamba_ssm_backend._probe("cpu")


@pytest.mark.parametrize("error", [ImportError("undefined symbol: _ZN3c104"), OSError("libcudart.so.12")])
def test_an_import_that_fails_is_the_reason(error, monkeypatch):
    class Finder:
        def find_spec(self, name, *_):
            if name == EXTENSION:
                raise error

    monkeypatch.delitem(sys.modules, EXTENSION, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert mamba_ssm_backend._probe("cpu") == f"{type(error).__name__}: {error}"


def test_a_package_without_its_extension_is_not_used(monkeypatch):
    """Later releases import without their kernels and fail only when called."""
    install(monkeypatch, loop)
    monkeypatch.setitem(sys.modules, EXTENSION, None)
    assert EXTENSION in mamba_ssm_backend._probe("cpu")


def test_a_call_that_fails_is_the_reason(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available for execution on the device")

    install(monkeypatch, broken)
    assert mamba_ssm_backend._probe("cpu") == "RuntimeError: no kernel image is available for execution on the device"


def test_is_not_even_imported_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    calls = install(monkeypatch, loop)
    assert mamba_ssm_backend.unavailable() == "torch sees no CUDA device" and calls == []


def test_equals_the_recurrence_where_it_works():
    reason = mamba_ssm_backend.unavailable()
    if reason is not None:
        pytest.skip(f"mamba-ssm cannot be used: {reason}")
    u, delta, A, B, C, *_ = inputs(length=70)
    delta = delta.abs()
    found = mamba_ssm_backend.scan(*(x.cuda() for x in (u, delta, A, B, C)), None, None, False)
    torch.testing.assert_close(found.cpu(), loop(u, delta, A, B, C), atol=1e-5, rtol=1e-5)
