r"""The one function that networks call, and the choice between the backends."""

from __future__ import annotations

import logging
import os
from functools import cache

import torch
from torch import Tensor

from . import chunked_forward, mamba_ssm_backend, native_backend, reference_backend, torch_backend, triton_backend

ENVIRONMENT = "SELECTIVE_SCAN_BACKEND"
BACKENDS = {
    "mamba_ssm": mamba_ssm_backend,
    "triton": triton_backend,
    "native": native_backend,
    "torch": torch_backend,
    "reference": reference_backend,
}
logger = logging.getLogger(__name__)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""The recurrence of Mamba: a linear one whose decay and gain depend on the input, for each channel and state.

    .. math:: h_t = \exp(\Delta_t A) \odot h_{t-1} + \Delta_t u_t B_t, \quad
              y_t = C_t^T h_t + D u_t, \quad
              \Delta_t = \mathrm{softplus}(\delta_t + \mathrm{bias}), \quad h_0 = 0

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, Algorithm 2; the
    arguments are those of mamba-ssm's ``selective_scan_fn``. Departures: real ``A`` only, and no gate.

    It is computed in float32, autocast or not, in float64 where ``u`` is, and returned in the dtype of ``u``. It can be
    differentiated once (by ``reference`` any number of times). TorchScript, tracing and export take the plain
    operations of ``torch``, whatever the backend: scripted, the length is free; traced, it is that of the example.

    Args:
        u: what is scanned.
        delta: size of each step, before bias and softplus.
        A: decay rates; negative, or the state grows without bound.
        B: gain of each step; channels in groups of their own where it has a fourth axis.
        C: how each step is read out; of the shape of ``B``.
        D: skip from ``u`` to the output.
        delta_bias: added to ``delta``.
        delta_softplus: make ``delta`` positive.
        backend: ``mamba_ssm``, ``triton``, ``native``, ``torch`` or ``reference``; ``auto`` is what the environment
            variable SELECTIVE_SCAN_BACKEND says, else the first of these that is there and takes the tensors.

    Shape:
        ``u``, ``delta`` and the output ``(B, D, L)``; ``A`` ``(D, N)``; ``B`` and ``C`` ``(B, N, L)`` or
        ``(B, G, N, L)`` with D divisible by G; ``D`` and ``delta_bias`` ``(D,)``.

    Raises:
        ValueError: a tensor of another shape, device or kind of number, each one named; or an unknown backend.
        RuntimeError: the chosen backend is not there; says why.
    """
    if torch.jit.is_scripting():
        return _plain(u, delta, A, B, C, D, delta_bias, delta_softplus)
    else:
        return _dispatched(u, delta, A, B, C, D, delta_bias, delta_softplus, backend)


def available_backends() -> dict[str, str]:
    """Each backend with "ok" or the reason why it is not to be had; tries out those that were never used."""
    return {name: module.unavailable() or "ok" for name, module in BACKENDS.items()}


def _plain(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """What can be scripted and exported."""
    _check(u, delta, A, B, C, D, delta_bias)
    if u.numel() == 0:
        return u * delta.to(u.dtype)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    rows = chunked_forward.rows_of(u, B)
    sizes = chunked_forward.plan(rows, u.shape[0] * u.shape[1] // rows, A.shape[1], u.shape[2], u.is_cuda)
    y = chunked_forward.forward(
        u.to(dtype),
        delta.to(dtype),
        A.to(dtype),
        B.to(dtype),
        C.to(dtype),
        None if D is None else D.to(dtype),
        None if delta_bias is None else delta_bias.to(dtype),
        delta_softplus,
        sizes,
        False,
    )[0]
    return y.to(u.dtype)


@torch.jit.unused
def _dispatched(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: str,
) -> Tensor:
    tensors = (u, delta, A, B, C, D, delta_bias)
    name = _name(backend)
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # compiled code would be a constant to them
        return _plain(*tensors, delta_softplus)
    _check(*tensors)
    if u.numel() == 0:
        return u * delta.to(u.dtype)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    module = BACKENDS[_automatic(u.device.type, dtype, A.shape[1]) if name == "auto" else name]
    if name != "auto" and (reason := module.unavailable()) is not None:
        raise RuntimeError(f"the selective scan's backend {name!r} cannot be used: {reason}")
    with torch.autocast(u.device.type, enabled=False):
        y = module.scan(*(x if x is None else x.to(dtype) for x in tensors), delta_softplus)
    return y.to(u.dtype)


def _name(backend: str) -> str:
    """The explicit backend, else the environment's, else "auto"."""
    for name, source in ((backend, "backend="), (os.environ.get(ENVIRONMENT) or "auto", f"{ENVIRONMENT}=")):
        if name != "auto" and name not in BACKENDS:
            raise ValueError(f"{source}{name!r} is no backend of the scan; there are: auto, {', '.join(BACKENDS)}.")
        if name != "auto":
            return name
    return "auto"


def _automatic(device: str, dtype: torch.dtype, states: int) -> str:
    """The first that takes the tensors, compiled ones first: float64 only the plain do, many states not mamba-ssm's."""
    candidates = {"cuda": ("mamba_ssm", "triton"), "cpu": ("native",)}.get(device, ())
    if dtype == torch.float32:
        for name in candidates:
            if name == "mamba_ssm" and states > mamba_ssm_backend.MAX_STATES:
                continue
            if BACKENDS[name].unavailable() is None:
                return name
        if device == "cuda":
            _warn_of_fallback(states)
    return "torch"


@cache
def _warn_of_fallback(states: int) -> None:
    many = f"takes at most {mamba_ssm_backend.MAX_STATES} states, not {states}"
    reasons = "; ".join(f"{name}: {BACKENDS[name].unavailable() or many}" for name in ("mamba_ssm", "triton"))
    logger.warning("the selective scan runs on CUDA by plain PyTorch operations, which is slow: %s", reasons)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    """Raise ValueError that names every tensor which does not fit the others."""
    if u.dim() != 3 or A.dim() != 2 or B.dim() not in (3, 4):
        raise ValueError(
            "expected u (B, D, L), A (D, N) and B (B, N, L) or (B, G, N, L), "
            f"found u {list(u.shape)}, A {list(A.shape)}, B {list(B.shape)}."
        )
    batch, channels, length, state = u.shape[0], u.shape[1], u.shape[2], A.shape[1]
    problems: list[str] = []
    gain = [batch, state, length] if B.dim() == 3 else [batch, B.shape[1], state, length]
    if state == 0 or (B.dim() == 4 and (B.shape[1] == 0 or channels % max(1, B.shape[1]) != 0)):
        problems.append(f"{channels} channels with {state} states in {B.shape[1]} groups")
    _expect(problems, "u", u, [batch, channels, length], u)
    _expect(problems, "delta", delta, [batch, channels, length], u)
    _expect(problems, "A", A, [channels, state], u)
    _expect(problems, "B", B, gain, u)
    _expect(problems, "C", C, gain, u)
    _expect(problems, "D", D, [channels], u)
    _expect(problems, "delta_bias", delta_bias, [channels], u)
    if len(problems) > 0:
        raise ValueError("the tensors of the selective scan do not fit: " + "; ".join(problems))


def _expect(problems: list[str], name: str, x: Tensor | None, shape: list[int], u: Tensor) -> None:
    if x is None:
        return
    if list(x.shape) != shape:
        problems.append(f"{name} should have shape {shape}, has {list(x.shape)}")
    if x.device != u.device:
        problems.append(f"{name} should be on {u.device} as u, is on {x.device}")
    if not x.is_floating_point():
        problems.append(f"{name} should be of real floating-point numbers, is {x.dtype}")
