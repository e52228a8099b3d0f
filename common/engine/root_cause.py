"""End a failed command with the reason, not with the traceback of fifty lines that MONAI wraps around it."""

from __future__ import annotations

import sys
from types import TracebackType

from common.data import DataError

from .overrides import on_command_line


def causes(error: BaseException) -> list[BaseException]:
    """An error and those it was raised from, the innermost last."""
    return [error] if error.__cause__ is None else [error, *causes(error.__cause__)]


def root_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from."""
    return causes(error)[-1]


def report_root_cause() -> None:
    """On the command line, print the root cause of an uncaught error last; of bad data, print nothing else.

    Called by each bundle's ``bundle_root()``. The exit code stays 1. In a program that calls MONAI nothing changes.
    """
    if on_command_line():
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = root_cause(error)
    if not isinstance(cause, DataError):
        sys.__excepthook__(kind, error, trace)
    sys.stderr.write(f"\n{type(cause).__name__}: {cause}\n")
