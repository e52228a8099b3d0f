"""The selective scan in C++ with a backward that recomputes: CPU, float32.

Where it cannot be compiled, ``unavailable`` says why and the backend `torch` serves.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .native_build import load
from .probe import fault_of

SMALL = 1 << 18  # steps of a state, below which threads cost more than they save


@cache
def unavailable() -> str | None:
    """Why there is no library, or None when there is one; compiles, loads and runs it the first time."""
    library = load()
    if isinstance(library, str):
        return library
    return fault_of(_Scan.apply, "cpu")


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The formula of ``selective_scan``; it can be differentiated once.

    Args: as in ``selective_scan``.

    Raises:
        ValueError: the tensors are not on the CPU or not float32.
        RuntimeError: there is no library; says why.
    """
    if (reason := unavailable()) is not None:
        raise RuntimeError(f"the native backend cannot be used: {reason}.")
    if u.device.type != "cpu" or u.dtype != torch.float32:
        raise ValueError(f"the native backend takes float32 on the CPU, got {u.dtype} on {u.device}.")
    inputs = (u, delta, A, B, C, D, delta_bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _Scan.apply(*inputs, delta_softplus)
    return _forward([x if x is None else x.detach().contiguous() for x in inputs], delta_softplus, None)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, delta_softplus):
        inputs = [x if x is None else x.contiguous() for x in (u, delta, A, B, C, D, delta_bias)]
        library, (rows, channels) = load(), _rows(u, B)
        blocks, chunks = -(-channels // library.scan_lanes()), -(-u.shape[2] // library.scan_chunk())
        kept = u.new_empty(rows, blocks, chunks, A.shape[1], library.scan_lanes())
        y = _forward(inputs, delta_softplus, kept)
        ctx.save_for_backward(*inputs, kept)
        ctx.delta_softplus = delta_softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, y_grad):
        # what a hook gives back for them may lie in memory in another order
        *inputs, kept = (x if x is None else x.contiguous() for x in ctx.saved_tensors)
        return *_backward(inputs, ctx.delta_softplus, kept, y_grad.contiguous()), None


def _forward(inputs: list[Tensor | None], softplus: bool, kept: Tensor | None) -> Tensor:
    u, A, B = inputs[0], inputs[2], inputs[3]
    library, (rows, channels) = load(), _rows(u, B)
    y = torch.empty_like(u)
    arguments = _Arguments.of(inputs, softplus, y=y, kept=kept)
    _split(library.scan_forward, arguments, rows * -(-channels // library.scan_lanes()), _threads(u, A))
    return y


def _backward(inputs, softplus: bool, kept: Tensor, y_grad: Tensor) -> list[Tensor | None]:
    u, delta, A, B, C, D, delta_bias = inputs
    library, (rows, channels) = load(), _rows(u, B)
    # few rows: the channels of each are dealt out, which needs a copy of the gradients of B and C for every part
    parts = max(1, min(_threads(u, A) // rows, -(-channels // library.scan_lanes())))
    grads = {"u_grad": torch.empty_like(u), "delta_grad": torch.empty_like(u)}
    grads["B_grad"], grads["C_grad"] = u.new_zeros(parts, *B.shape), u.new_zeros(parts, *B.shape)
    grads["A_grad"] = u.new_empty(u.shape[0], *A.shape)
    grads["D_grad"], grads["bias_grad"] = u.new_empty(u.shape[:2]), u.new_empty(u.shape[:2])
    arguments = _Arguments.of(inputs, softplus, kept=kept, y_grad=y_grad, **grads)
    _split(library.scan_backward, arguments, rows * parts, _threads(u, A), parts)
    of = {name: x if name in ("u_grad", "delta_grad") else x.sum(0) for name, x in grads.items()}
    return [
        of["u_grad"], of["delta_grad"], of["A_grad"], of["B_grad"], of["C_grad"],
        None if D is None else of["D_grad"], None if delta_bias is None else of["bias_grad"],
    ]  # fmt: skip


def _rows(u: Tensor, B: Tensor) -> tuple[int, int]:
    """Batch times groups, and the channels of each."""
    groups = B.shape[1] if B.dim() == 4 else 1
    return u.shape[0] * groups, u.shape[1] // groups


class _Arguments(ctypes.Structure):
    """``struct Scan`` of the source."""

    NUMBERS = ("rows", "groups", "channels", "state", "length", "softplus")
    INPUTS = ("u", "delta", "A", "B", "C", "D", "bias")
    OTHERS = ("y", "kept", "y_grad", "u_grad", "delta_grad", "B_grad", "C_grad", "A_grad", "D_grad", "bias_grad")
    _fields_ = [(name, ctypes.c_int64) for name in NUMBERS] + [(name, ctypes.c_void_p) for name in INPUTS + OTHERS]

    @classmethod
    def of(cls, inputs: list[Tensor | None], softplus: bool, **others: Tensor | None) -> _Arguments:
        """Contiguous float32 tensors, which the caller keeps alive."""
        u, A, B = inputs[0], inputs[2], inputs[3]
        rows, channels = _rows(u, B)
        numbers = (rows, rows // u.shape[0], channels, A.shape[1], u.shape[2], softplus)
        tensors = {**dict(zip(cls.INPUTS, inputs, strict=True)), **others}
        pointers = {name: x.data_ptr() for name, x in tensors.items() if x is not None}
        return cls(**dict(zip(cls.NUMBERS, numbers, strict=True)), **pointers)


def _threads(u: Tensor, A: Tensor) -> int:
    return 1 if u.numel() * A.shape[1] < SMALL else torch.get_num_threads()


def _split(function, arguments: _Arguments, items: int, threads: int, *more: int) -> None:
    """Deal the items out to threads of our own, as OpenMP's would spin beside torch's; ctypes lets go of the GIL."""
    threads = min(threads, items)
    bounds = [items * i // threads for i in range(threads + 1)]
    call = [(ctypes.byref(arguments), first, last, *more) for first, last in zip(bounds, bounds[1:], strict=False)]
    if threads == 1:
        function(*call[0])
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(function, *one) for one in call[1:]]
        function(*call[0])
        for other in others:
            other.result()
