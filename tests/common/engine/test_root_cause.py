"""What a user sees last when a command fails."""

import subprocess
import sys

import pytest

from common.data import DataError
from common.engine import root_cause
from common.engine.root_cause import _report


def chained(inner):
    try:
        try:
            raise inner
        except type(inner) as error:
            raise RuntimeError("Failed to evaluate") from error
    except RuntimeError as error:
        return error


def test_bad_data_is_all_that_is_printed(capsys):
    error = chained(DataError("a: expected 1, found 2"))
    assert root_cause(error) is error.__cause__
    _report(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "\nDataError: a: expected 1, found 2\n"


def test_other_errors_keep_their_traceback_and_end_with_the_cause(capsys):
    error = chained(ValueError("the checkpoint is damaged"))
    _report(type(error), error, error.__traceback__)
    text = capsys.readouterr().err
    assert "Traceback" in text and text.endswith("\nValueError: the checkpoint is damaged\n")


@pytest.mark.parametrize("main, replaced", [("monai.bundle.__main__", True), ("pytest.__main__", False)])
def test_only_the_command_line_of_bundles_is_changed(main, replaced):
    code = (
        "import sys, types; from importlib.machinery import ModuleSpec\n"
        f"sys.modules['__main__'].__spec__ = ModuleSpec({main!r}, None)\n"
        "from common.engine import report_root_cause; report_root_cause()\n"
        "print(sys.excepthook is not sys.__excepthook__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(replaced)
