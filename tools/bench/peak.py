"""Most memory that a part holds at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch


def peak(run: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes held at a time above what was held before, counted by the allocator (on the CPU from its events)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    held = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
