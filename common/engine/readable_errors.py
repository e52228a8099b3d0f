"""End a failed command with the reason, not with the traceback of fifty lines that MONAI wraps around it."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from common.data import DataError

from .stopping import end_if_stopped

# how the texts begin that MONAI wraps around an error; they name no cause
WRAPPERS = ("Failed to instantiate", "Failed to evaluate", "applying transform")
_main_process: int | None = None


def on_command_line() -> bool:
    """Whether the process is a ``python -m monai.bundle``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("monai.bundle")


def root_cause(error: BaseException) -> BaseException:
    """The error inside those that MONAI wraps around it; its own cause, such as a reader's, says less and is not it."""
    while error.__cause__ is not None and isinstance(error, RuntimeError) and str(error).startswith(WRAPPERS):
        error = error.__cause__
    return error


def make_errors_readable() -> None:
    """On the command line, print the reason of an uncaught error last; of bad data, print nothing else.

    The exit code stays 1. In a program that calls MONAI nothing changes.
    """
    if on_command_line():
        global _main_process
        _main_process = os.getpid()
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    end_if_stopped()  # what a run that was told to end has left half done may fail in any way
    if _main_process not in (None, os.getpid()) and isinstance(error, (ConnectionError, EOFError)):
        return  # a worker whose process has ended has nothing to tell
    cause = root_cause(error)
    if not isinstance(cause, DataError):
        sys.__excepthook__(kind, error, trace)
    sys.stderr.write(f"\n{type(cause).__name__}: {cause}\n")
