import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.selective_scan import triton_backend

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

# (batch, channels, groups (0: B and C without that axis), states, length, spread of delta, inputs left out, softplus);
# chunks are of 4 tokens and a carry's tiles of 4 chunks here, blocks of channels of 2
CASES = {
    "every input": (2, 2, 2, 3, 9, 0.5, (), True),
    "more chunks than a tile": (1, 1, 1, 2, 19, 0.5, (), True),
    "as few inputs as can be": (1, 1, 1, 1, 4, 0.5, ("D", "delta_bias"), False),
    "without a skip": (1, 1, 1, 2, 3, 0.5, ("D",), True),
    "one token": (1, 2, 0, 1, 1, 0.5, (), True),
    "more channels than a block": (1, 3, 0, 2, 5, 0.5, ("delta_bias",), True),
    "strong decay": (1, 1, 1, 2, 8, 10.0, (), True),
}
CHILD = """
import sys, torch
from common.selective_scan import triton_backend
assert triton_backend.unavailable() is None, triton_backend.unavailable()
triton_backend.TOKENS, triton_backend.CHANNELS = 4, 2
cases, found = torch.load(sys.argv[1] + "/cases.pt", weights_only=True), {}
for name, (inputs, softplus, weight) in cases.items():
    inputs = [None if x is None else x.float().requires_grad_() for x in inputs]
    # tokens that are not neighbours in memory
    views = [x if x is None or x.dim() < 3 else x.mT.contiguous().mT for x in inputs]
    y = triton_backend.scan(*views, softplus)
    given = [x for x in inputs if x is not None]
    found[name] = y.detach(), torch.autograd.grad((y * weight).sum(), given)
torch.save(found, sys.argv[1] + "/found.pt")
inputs = [x.bfloat16() for x in cases["every input"][0]]
assert triton_backend.scan(*inputs, True).dtype == torch.bfloat16
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from common.selective_scan import triton_backend, triton_kernels
tile = {"TOKENS": triton_backend.TOKENS, "STATES": 16, "CHANNELS": triton_backend.CHANNELS}  # of a launch
plain, flipped = ({"SOFTPLUS": flag, "REVERSE": flag, **tile} for flag in (False, True))
# as a launch specialises: a size of 1 and an input that is not given are constants of the compiled code
ones = dict.fromkeys(["channels", "groups", "states", "length", "chunks"], 1)
missing = dict.fromkeys(["skip", "bias", "skip_parts", "bias_parts"])
for constants in (plain, {**flipped, **ones, **missing}):
    for name in triton_kernels.__all__:
        kernel = getattr(triton_kernels, name)
        types = {a: "constexpr" if a in constants else "i32" if a in ones else "*fp32" for a in kernel.arg_names}
        values = {a: constants[a] for a in kernel.arg_names if a in constants}
        source = ASTSource(fn=kernel, signature=types, constexprs=values)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        print(name, len(built.asm["cubin"]))
"""


def draw(case, generator):
    batch, channels, groups, states, length, spread, missing, _ = case

    def noise(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inner = (batch, groups, states, length) if groups else (batch, states, length)
    inputs = [noise(batch, channels, length), noise(batch, channels, length) * spread, -noise(channels, states).exp()]
    inputs += [noise(*inner), noise(*inner), noise(channels), noise(channels)]
    inputs = [None if name in missing else x for name, x in zip(NAMES, inputs, strict=True)]
    if not case[-1]:
        inputs[1] = inputs[1].abs()
    return inputs, noise(batch, channels, length)


def reference(inputs, softplus):
    """The recurrence one number at a time, in float64."""
    u, delta, A, B, C, D, bias = inputs
    (batch, channels, length), states = u.shape, A.shape[1]
    groups = B.shape[1] if B.dim() == 4 else 1
    B, C = (x.reshape(batch, groups, states, length) for x in (B, C))
    out = []
    for b in range(batch):
        for d in range(channels):
            g = d // (channels // groups)
            state = [torch.zeros((), dtype=torch.float64) for _ in range(states)]
            for t in range(length):
                step = delta[b, d, t] if bias is None else delta[b, d, t] + bias[d]
                step = torch.log1p(step.exp()) if softplus else step
                state = [(step * A[d, n]).exp() * state[n] + step * B[b, g, n, t] * u[b, d, t] for n in range(states)]
                y = sum(C[b, g, n, t] * state[n] for n in range(states))
                out.append(y if D is None else y + D[d] * u[b, d, t])
    return torch.stack(out).reshape(u.shape)


def child(code, *arguments, **environment):
    # triton reads whether to interpret when it is imported, hence a process of its own
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Each case's inputs, weight, and what Triton's interpreter finds for them."""
    folder, generator = tmp_path_factory.mktemp("interpreted"), torch.Generator().manual_seed(0)
    cases = {}
    for name, case in CASES.items():
        inputs, weight = draw(case, generator)
        cases[name] = (inputs, case[-1], weight)
    torch.save(cases, folder / "cases.pt")
    child(CHILD, str(folder), TRITON_INTERPRET="1")
    return cases, torch.load(folder / "found.pt", weights_only=True)


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_the_recurrence_with_all_gradients(name, interpreted):
    cases, found = interpreted
    inputs, softplus, weight = cases[name]
    inputs = [None if x is None else x.clone().requires_grad_() for x in inputs]
    exact = reference(inputs, softplus)
    grads = torch.autograd.grad((exact * weight).sum(), [x for x in inputs if x is not None])
    y, ours = found[name]
    assert (y - exact).abs().max() <= 1e-6 * exact.abs().max()
    for one, other in zip(ours, grads, strict=True):
        assert one.shape == other.shape and (one - other).abs().max() <= 5e-6 * other.abs().max()


@needs_triton
def test_kernels_compile_ahead_of_time_for_hopper(tmp_path):
    printed = child(COMPILE, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)).split()
    names = ["adjoint_starts", "carry", "chunk_ends", "gradients", "outputs"]
    assert printed[::2] == 2 * names and min(map(int, printed[1::2])) > 1000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("length", [1, 64, 65, 300])
def test_equals_the_recurrence_on_cuda(length):
    assert triton_backend.unavailable() is None
    inputs, weight = draw((2, 6, 2, 5, length, 0.5, (), True), torch.Generator().manual_seed(1))
    exact, ours = [x.requires_grad_() for x in inputs], [x.detach().float().cuda().requires_grad_() for x in inputs]
    for y, given in ((reference(exact, True), exact), (triton_backend.scan(*ours, True), ours)):
        (y * weight.to(y)).sum().backward()
        given.append(y.detach())
    torch.testing.assert_close(ours.pop().double().cpu(), exact.pop(), atol=1e-5, rtol=1e-5)
    for a, b in zip(ours, exact, strict=True):
        assert (a.grad.double().cpu() - b.grad).abs().max() <= 1e-4 * b.grad.abs().max() + 1e-7


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65, 1000])
@pytest.mark.parametrize("states", [1, 3, 16, 100, 256, 3000])
def test_chunks_cover_all_tokens_in_tiles_of_powers_of_two(length, states):
    tokens, block, chunks = triton_backend._plan(length, states)
    assert (chunks - 1) * tokens < length <= chunks * tokens
    assert block >= states and all(n & (n - 1) == 0 for n in (tokens, block))
    assert tokens * block <= max(triton_backend.TILE, block)


def test_says_why_it_cannot_be_used(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_backend.unavailable() == "torch sees no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert "(7, 0)" in triton_backend.unavailable()


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'triton'"), OSError("libcuda.so.1")])
def test_a_broken_installation_is_a_reason_not_an_error(error, monkeypatch):
    def broken():
        raise error

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_backend, "_kernels", broken)
    triton_backend._probe.cache_clear()
    assert triton_backend.unavailable() == f"{type(error).__name__}: {error}"
    triton_backend._probe.cache_clear()


def test_refuses_what_the_kernels_cannot_take(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    inputs, _ = draw(CASES["every input"], torch.Generator().manual_seed(0))
    with pytest.raises(TypeError, match="float32; use backend='torch'"):
        triton_backend.scan(*inputs, True)
    with pytest.raises(ValueError, match="needs CUDA tensors, got tensors on cpu"):
        triton_backend.scan(*(x.float() for x in inputs), True)
