"""The command: run one benchmark, print its rows and, if asked, write them."""

from __future__ import annotations

import importlib
import json
import platform
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from common.report.markdown import markdown

NAMES = ("volume", "contrast", "augmentation", "scan")  # modules with a function of that name, some with THREADS


def bench(name: str = "volume", repeats: int = 3, output: str | None = None) -> None:
    """Time a part of the collection against its plain form, in one run and in turn.

    Args:
        name: one of ``NAMES``.
        repeats: timed runs of each side, after one to warm up; the minima are compared.
        output: a JSON file for the figures.
    """
    if name not in NAMES:
        raise SystemExit(f"no benchmark {name!r}; there are: {', '.join(NAMES)}")
    torch.manual_seed(0)
    module = importlib.import_module(f"tools.bench.{name}")
    threads = torch.get_num_threads()
    torch.set_num_threads(getattr(module, "THREADS", threads))
    try:
        rows = getattr(module, name)(repeats)
        machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": platform.machine()}
    finally:
        torch.set_num_threads(threads)
    for _, alike in groupby(rows, key=tuple):  # of the same keys
        columns = list(alike)
        print(markdown([[key, *(_text(row[key]) for row in columns)] for key in columns[0]]), end="\n\n")
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if output is not None:
        Path(output).write_text(json.dumps({"metadata": machine, "results": rows}, indent=1) + "\n")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else " ".join(str(value).split())
