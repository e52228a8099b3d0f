"""The compiled scan: its borders, its threads, its memory, and what happens where it cannot be compiled."""

import ctypes
import os
import shutil

import pytest
import torch

from common.selective_scan import native_backend, native_build, torch_backend
from tools.bench.peak import peak

PATH, COMPILER = os.environ.get("PATH", ""), shutil.which("g++") or shutil.which("clang++")


@pytest.fixture(name="native")
def _native():
    if (reason := native_backend.unavailable()) is not None:
        pytest.skip(reason)
    return native_backend


@pytest.mark.parametrize("length", [1, 31, 32, 33, 65])
@pytest.mark.parametrize("channels, groups", [(1, 1), (15, 3), (17, None), (150, 2)])
def test_same_at_all_borders(native, inputs, everything, recast, length, channels, groups):
    """Chunks of 32 tokens, vectors of at most 16 channels, four of those walked back together."""
    tensors = inputs(2, channels, 3, length, groups)
    exact = everything(torch_backend.scan, tensors)
    for x, y in zip(everything(native.scan, recast(tensors, torch.float32)), exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0, atol=3e-6 * float(y.abs().max()))


@pytest.mark.parametrize("batch, groups", [(1, 1), (3, 2)])
def test_threads_change_nothing(native, monkeypatch, inputs, everything, batch, groups):
    """Few rows are dealt out by channels, which add up B and C in another order; many rows as they are."""
    tensors = inputs(batch, 70, 4, 40, groups, dtype=torch.float32)
    one = everything(native.scan, tensors)
    monkeypatch.setattr(native_backend, "_threads", lambda *_: 4)
    torch.testing.assert_close(everything(native.scan, tensors), one, rtol=1e-5, atol=1e-5)


def test_second_derivative_and_other_tensors_are_refused(native, inputs):
    tensors = inputs(1, 2, 2, 5, dtype=torch.float32)
    slope = torch.ones_like(tensors[0]).requires_grad_()
    (first,) = torch.autograd.grad(native.scan(*tensors), tensors[0], slope, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    with pytest.raises(ValueError, match="float32 on the CPU, got torch.float64"):
        native.scan(*inputs())


def test_tiny_numbers_of_others_are_left_alone(native, inputs):
    """Flushing them to zero is a setting of a thread, and is put back."""
    native.scan(*inputs(dtype=torch.float32))
    assert float(torch.tensor([1e-40]) * 1) > 0


def test_not_a_number_is_not_hidden(native, inputs):
    tensors = [x.detach() for x in inputs(1, 2, 2, 9, dtype=torch.float32)]
    tensors[1][0, 0, 4] = float("nan")
    y = native.scan(*tensors, True)
    assert y[0, 0, :4].isfinite().all() and y[0, 0, 4:].isnan().all() and y[0, 1].isfinite().all()


def test_peak_memory(native, inputs):
    tensors = inputs(2, 64, 16, 15680, dtype=torch.float32)
    slope = torch.ones(2, 64, 15680)
    assert peak(lambda: torch.autograd.grad(native.scan(*tensors, True), tensors, slope)) < 60 * 2**20


@pytest.fixture(name="fresh")
def _fresh(monkeypatch, tmp_path):
    """An empty cache, no compiler, and a way to put one there that does as told."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    (tmp_path / "bin").mkdir()

    def put(script):
        compiler = tmp_path / "bin" / "g++"
        compiler.write_text(f"#!{shell}\n{script}\n")
        compiler.chmod(0o755)
        return tmp_path / "cache" / "label-efficient-bundles"

    shell = "/bin/sh"
    return put


load = native_build.load.__wrapped__  # without what it remembers of earlier calls


def test_no_compiler_is_the_reason(fresh):
    assert "no C++ compiler" in load()


def test_what_the_compiler_said_is_the_reason_and_nothing_is_left(fresh):
    folder = fresh("echo 'no such header' >&2; exit 1")
    assert "no such header" in load() and os.listdir(folder) == []


def test_another_compiler_is_tried(fresh):
    """Where none works, each has its say."""
    folder = fresh("echo second >&2; exit 1")
    compiler = folder.parents[1] / "bin" / "c++"
    broken = 'for last; do :; done; echo broken > "$last"'
    for script, reason in (("echo first >&2; exit 1", "first"), (broken, "OSError")):
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
        found = load()
        assert found.index(reason) < found.index("second")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_a_broken_compiler_hides_no_working_one(fresh):
    folder = fresh(f'PATH="{PATH}" exec "{COMPILER}" "$@"')
    broken = folder.parents[1] / "bin" / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert isinstance(load(), ctypes.CDLL)


def test_a_library_without_the_functions_is_the_reason(fresh, monkeypatch):
    folder = fresh('for last; do :; done; echo library > "$last"')
    monkeypatch.setattr(native_build.ctypes, "CDLL", lambda file: object())
    assert "scan_forward" in load() and folder.is_dir()


def test_a_broken_library_is_the_reason(fresh):
    fresh('for last; do :; done; echo broken > "$last"')
    assert "OSError" in load()


@pytest.mark.parametrize("kind", [{"device": "meta"}, {"dtype": torch.float64}])
def test_it_is_found_whatever_the_default_device_and_dtype(native, kind):
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    native.unavailable.cache_clear()
    try:
        torch.set_default_device(kind.get("device", device))
        torch.set_default_dtype(kind.get("dtype", dtype))
        assert native.unavailable() is None
    finally:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        native.unavailable.cache_clear()


def test_compiled_once_in_a_private_folder(fresh):
    folder = fresh('for last; do :; done; echo library > "$last"')
    file = native_build._compiled(str(folder.parents[1] / "bin" / "g++"))
    assert file.parent == folder and file.read_text() == "library\n" and folder.stat().st_mode & 0o777 == 0o700
    fresh("exit 1")
    assert native_build._compiled(str(folder.parents[1] / "bin" / "g++")) == file


def test_a_folder_that_others_can_write_is_refused(fresh):
    folder = fresh("exit 1")
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert "XDG_CACHE_HOME" in load()


def test_backend_without_library_raises_the_reason(monkeypatch, inputs):
    monkeypatch.setattr(native_backend, "unavailable", lambda: "no compiler")
    with pytest.raises(RuntimeError, match="no compiler"):
        native_backend.scan(*inputs(dtype=torch.float32))


def test_flags_change_no_process_and_suit_no_other_machine():
    flags = {*native_build.FLAGS, *sum(native_build.TARGETS.values(), ())}
    assert not {"-ffast-math", "-march=native", "-fopenmp"} & flags
