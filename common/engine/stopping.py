"""Ctrl-C and SIGTERM end a command with one line that says where its state is, and with exit code 130 or 143."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

_DEFAULT = "What is written stays. Start again with the same command."
_advice: list[Callable[[], str]] = []
_main_process: int | None = None


def on_stop(advice: Callable[[], str]) -> None:
    """Set what the line says of the run that begins: how to go on from where it is then."""
    _advice[:] = [advice]


def stop_readably() -> None:
    """From now on a signal ends the process as said above; a second one ends it at once.

    Workers that load data leave the end to the process that started them.
    """
    global _main_process
    _main_process = os.getpid()
    _advice.clear()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _main_process:
        return
    for later in (signal.SIGTERM, signal.SIGINT):
        signal.signal(later, signal.SIG_DFL)
    if os.environ.get("RANK", "0") == "0":
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        sys.stderr.write(f"\nStopped by {name}. {_advice[0]() if _advice else _DEFAULT}\n")
        sys.stderr.flush()
    raise SystemExit(128 + number)
