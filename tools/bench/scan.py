"""The selective scan of each backend on the CPU against the loop over the tokens, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from common.selective_scan import available_backends, selective_scan

from .peak import peak

LENGTHS = (1960, 15680)  # 14 x 14 x 10 and 28 x 28 x 20 voxels
BATCH, CHANNELS, STATE = 2, 64, 16
BACKENDS = ("torch", "native")


def scan(repeats: int) -> list[dict]:
    """Forward, and forward + backward, of B = 2, D = 64, N = 16 with all options, float32; errors against float64.

    An error is the largest difference, divided by the largest value of what is compared.
    """
    threads, there = torch.get_num_threads(), available_backends()
    torch.set_num_threads(1)
    try:
        names = [name for name in BACKENDS if there[name] == "ok"]
        rows = [row for length in LENGTHS for row in _compare(length, names, repeats)]
    finally:
        torch.set_num_threads(threads)
    return rows + [{"backend": name, "left out": there[name]} for name in BACKENDS if there[name] != "ok"]


def _compare(length: int, names: list[str], repeats: int) -> list[dict]:
    inputs, slope = _inputs(length), torch.randn(BATCH, CHANNELS, length)
    runs: dict[str, tuple[Callable, Callable]] = {
        name: (lambda name=name: _forward(inputs, name), lambda name=name: _both(inputs, slope, name))
        for name in ("reference", *names)
    }
    best = {name: [float("inf"), float("inf")] for name in runs}
    for repeat in range(repeats + 1):  # the first warms up
        for name, parts in runs.items():
            for i, part in enumerate(parts):
                start = time.process_time()
                part()
                if repeat > 0:
                    best[name][i] = min(best[name][i], time.process_time() - start)
    exact = _both([x.double() for x in inputs], slope.double(), "reference")
    rows = []
    for name in names:
        off = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(runs[name][1](), exact, strict=True)]
        rows.append(
            {
                "L": length,
                "backend": name,
                "threads": 1,
                "forward CPU s": best[name][0],
                "loop over it": best["reference"][0] / best[name][0],
                "forward + backward CPU s": best[name][1],
                "loop over that": best["reference"][1] / best[name][1],
                "error of the output": off[0],
                "largest error of a gradient": max(off[1:]),
                "extra peak MiB forward": peak(runs[name][0]) / 2**20,
                "extra peak MiB forward + backward": peak(runs[name][1]) / 2**20,
            }
        )
    return rows


def _inputs(length: int) -> list[torch.Tensor]:
    """As a fresh Mamba block has them: u, delta, A, B, C, D, z, delta_bias."""
    signal = (BATCH, CHANNELS, length)
    u, delta, z = torch.randn(signal), 0.5 * torch.randn(signal), torch.randn(signal)
    B, C = torch.randn(BATCH, STATE, length), torch.randn(BATCH, STATE, length)
    A = -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1)
    size = torch.exp(torch.empty(CHANNELS).uniform_(-6.9, -2.3))  # steps from 0.001 to 0.1
    return [u, delta, A, B, C, torch.ones(CHANNELS), z, torch.log(torch.expm1(size))]


def _forward(inputs: list[torch.Tensor], name: str) -> torch.Tensor:
    with torch.no_grad():
        return selective_scan(*inputs, delta_softplus=True, backend=name)


def _both(inputs: list[torch.Tensor], slope: torch.Tensor, name: str) -> list[torch.Tensor]:
    """The output and the gradients of all inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = selective_scan(*inputs, delta_softplus=True, backend=name)
    return [y.detach(), *torch.autograd.grad(y, inputs, slope)]
