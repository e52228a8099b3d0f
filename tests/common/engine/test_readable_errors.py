"""What a user sees last when a command fails."""

import sys
from importlib.machinery import ModuleSpec

import pytest
from monai.bundle import ConfigParser
from monai.transforms import Compose

from common.data import DataError
from common.engine import root_cause
from common.engine.readable_errors import _report, make_errors_readable


def chained(inner):
    try:
        try:
            raise inner
        except type(inner) as error:
            raise RuntimeError("Failed to evaluate") from error
    except RuntimeError as error:
        return error


def raised(call, *arguments):
    with pytest.raises(RuntimeError) as error:
        call(*arguments)
    return error.value


def refuse(data=None):
    raise DataError("a: expected 1, found 2") from KeyError("of the reader")


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


@pytest.mark.parametrize("part", ["$refuse()", {"_target_": refuse}])
def test_the_wrappers_of_configs_are_looked_through(part):
    parser = ConfigParser({"whole": {"_target_": "builtins.dict", "part": "$@part"}, "part": part},
                          globals={"refuse": refuse})  # fmt: skip
    assert isinstance(root_cause(raised(parser.get_parsed_content, "whole")), DataError)


def test_those_of_transforms_too():
    assert isinstance(root_cause(raised(Compose([Compose([refuse])]), {})), DataError)


def test_a_cause_behind_another_text_is_not_the_one_to_show():
    outer = RuntimeError("out of memory in epoch 3")
    outer.__cause__ = ValueError("of the allocator")
    assert root_cause(outer) is outer and root_cause(chained(outer)) is outer
    other = ValueError("Failed to evaluate the loss")
    other.__cause__ = KeyError("x")
    assert root_cause(other) is other


@pytest.mark.parametrize(("main", "replaced"), [("monai.bundle.__main__", True), ("pytest.__main__", False)])
def test_only_the_command_line_of_bundles_is_changed(main, replaced, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(main, None))
    make_errors_readable()
    assert (sys.excepthook is _report) == replaced
