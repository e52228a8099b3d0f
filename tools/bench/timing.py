"""CPU seconds of two forms of the same thing, and the gradients they gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


def gradient(form: Callable, point: torch.Tensor, repeats: int) -> tuple[float, torch.Tensor]:
    """Least CPU seconds of forward and backward at ``point``, after one run to warm up; and the gradient there."""
    times, slope = [], point
    for _ in range(repeats + 1):
        x = point.clone().requires_grad_()
        start = time.process_time()
        form(x).backward()
        times.append(time.process_time() - start)
        slope = x.grad
    return min(times[1:]), slope


def share_of_step(part: str, network: torch.nn.Module, objectives: Mapping[str, Callable], batch: dict, repeats: int
                  ) -> dict:  # fmt: skip
    """A row about a training step by the objectives ``with`` and ``without`` a term, run in turn."""
    best = dict.fromkeys(objectives, float("inf"))
    for _ in range(repeats + 1):
        for name, objective in objectives.items():
            start = time.process_time()
            objective(network, batch, 0)[1]["loss"].backward()
            best[name] = min(best[name], time.process_time() - start)
    return {
        "part": part,
        "CPU s with": best["with"],
        "CPU s without": best["without"],
        "share of the term": 1 - best["without"] / best["with"],
    }
