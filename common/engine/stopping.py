"""Ctrl-C and SIGTERM end a command with one line that says where its state is, and with exit code 130 or 143."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from threading import Timer
from types import FrameType

AGAIN = "Start again with the same command."  # what the line says where a run has nothing to add
GRACE = 20.0  # seconds in which a stopped command may end by itself
_advice: list[Callable[[], str]] = []
_main_process: int | None = None
_signal: int | None = None


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


def end_if_stopped() -> None:
    """End the process if it was told to; Python swallows an exit that comes while an object is being deleted."""
    if _signal is not None and os.getpid() == _main_process:
        raise SystemExit(128 + _signal)


def _stop(number: int, frame: FrameType | None) -> None:
    global _signal
    if os.getpid() != _main_process:
        return
    for later in (signal.SIGTERM, signal.SIGINT):
        signal.signal(later, signal.SIG_DFL)
    if hasattr(signal, "SIGCHLD"):  # where a whole job is ended its workers are told too; torch calls that an error
        signal.signal(signal.SIGCHLD, lambda *_: None)
    _signal = number
    atexit.register(_say, number)  # as the last line, behind what others have to say of the exit
    last_resort = Timer(GRACE, _end_at_once)
    last_resort.daemon = True
    last_resort.start()
    raise SystemExit(128 + number)


def _say(number: int) -> None:
    if os.getpid() == _main_process and os.environ.get("RANK", "0") == "0":
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        sys.stderr.write(f"\nStopped by {name}. {_advice[0]() if _advice else AGAIN}\n")
        sys.stderr.flush()


def _end_at_once() -> None:
    _say(_signal)
    sys.stdout.flush()
    os._exit(128 + _signal)
