"""The selective scan of each backend against the loop over the tokens: on the CPU with one thread, and on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from common.selective_scan import available_backends, selective_scan

from .peak import peak

LENGTHS = (1960, 15680)  # 14 x 14 x 10 and 28 x 28 x 20 voxels
BATCH, CHANNELS, STATE = 2, 64, 16
BACKENDS = {"cpu": ("torch", "native"), "cuda": ("torch", "triton", "mamba_ssm")}
COPIED = 1 << 26  # numbers, more than caches hold
THREADS = 1  # in which the command runs this


def scan(repeats: int) -> list[dict]:
    """Forward, and forward + backward, of B = 2, D = 64, N = 16 with all options, float32; errors against float64.

    An error is the largest difference, divided by the largest value of what is compared. The floor of a time is that
    of a copy of as many bytes as must be read and written: the inputs and the output; with the backward the inputs and
    the output's gradient once more, and the inputs' gradients.
    """
    there = available_backends()
    rows = []
    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        names = [name for name in BACKENDS[device] if there[name] == "ok"]
        rate = _copy_rate(device, repeats)
        rows += [row for length in LENGTHS for row in _compare(length, names, device, rate, repeats)]
        rows += [{"device": device, "backend": name, "left out": there[name]}
                 for name in BACKENDS[device] if there[name] != "ok"]  # fmt: skip
    return rows


def _compare(length: int, names: list[str], device: str, rate: float, repeats: int) -> list[dict]:
    inputs = _inputs(length)
    slope = torch.randn(BATCH, CHANNELS, length)
    exact = _both([x.double() for x in inputs], slope.double(), "reference")
    inputs, slope = [x.to(device) for x in inputs], slope.to(device)
    runs: dict[str, tuple[Callable, Callable]] = {
        name: (lambda name=name: _forward(inputs, name), lambda name=name: _both(inputs, slope, name))
        for name in ("reference", *names)
    }
    best = {name: [float("inf"), float("inf")] for name in runs}
    for repeat in range(repeats + 1):  # the first warms up
        for name, parts in runs.items():
            for i, part in enumerate(parts):
                seconds = _seconds(part, device)
                if repeat > 0:
                    best[name][i] = min(best[name][i], seconds)
    given, got = sum(map(_bytes, inputs)), _bytes(slope)
    floors = [(given + got) / rate, (3 * given + 2 * got) / rate]
    rows = []
    for name in names:
        found = [x.cpu() for x in runs[name][1]()]
        off = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True)]
        rows.append(
            {
                "L": length,
                "device": device,
                "backend": name,
                "forward s": best[name][0],
                "loop over it": best["reference"][0] / best[name][0],
                "floor over it": floors[0] / best[name][0],
                "forward + backward s": best[name][1],
                "loop over that": best["reference"][1] / best[name][1],
                "floor over that": floors[1] / best[name][1],
                "error of the output": off[0],
                "largest error of a gradient": max(off[1:]),
                "extra peak MiB forward": peak(runs[name][0], device) / 2**20,
                "extra peak MiB forward + backward": peak(runs[name][1], device) / 2**20,
            }
        )
    return rows


def _seconds(run: Callable[[], object], device: str) -> float:
    """Of the processor, or of the GPU between two events."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _copy_rate(device: str, repeats: int) -> float:
    """Bytes read and written a second."""
    source = torch.ones(COPIED, device=device)
    target = torch.empty_like(source)
    best = min([_seconds(lambda: target.copy_(source), device) for _ in range(repeats + 1)][1:])
    return 2 * _bytes(source) / best


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _inputs(length: int) -> list[torch.Tensor]:
    """As a fresh Mamba block has them: u, delta, A, B, C, D, delta_bias."""
    signal = (BATCH, CHANNELS, length)
    u, delta = torch.randn(signal), 0.5 * torch.randn(signal)
    B, C = torch.randn(BATCH, STATE, length), torch.randn(BATCH, STATE, length)
    A = -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1)
    size = torch.exp(torch.empty(CHANNELS).uniform_(-6.9, -2.3))  # steps from 0.001 to 0.1
    return [u, delta, A, B, C, torch.ones(CHANNELS), torch.log(torch.expm1(size))]


def _forward(inputs: list[torch.Tensor], name: str) -> torch.Tensor:
    with torch.no_grad():
        return selective_scan(*inputs, delta_softplus=True, backend=name)


def _both(inputs: list[torch.Tensor], slope: torch.Tensor, name: str) -> list[torch.Tensor]:
    """The output and the gradients of all inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = selective_scan(*inputs, delta_softplus=True, backend=name)
    return [y.detach(), *torch.autograd.grad(y, inputs, slope)]
