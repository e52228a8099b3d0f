"""The first entry of a config's `run`: what it does before anything else is built."""

import json
import os
import signal
import sys
from importlib.machinery import ModuleSpec

import pytest
from monai.bundle import run

from common.engine import start, stopping
from common.engine.readable_errors import _report, make_errors_readable


@pytest.fixture(autouse=True)
def _signals():
    """A command line's start takes over the signals of the process, which here is that of all tests."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def launch(tmp_path):
    """Runs a config whose later entries leave a file; returns whether they did."""

    def launch(**overrides):
        (tmp_path / "late").unlink(missing_ok=True)
        late = f"__import__('pathlib').Path({str(tmp_path / 'late')!r}).touch()"
        config = {
            "ckpt_dir": str(tmp_path / "models"),
            "output_dir": str(tmp_path / "out" / "eval"),
            "late": f"${late}",
            "run": [{"_target_": "common.engine.start", "folders": ["@ckpt_dir", "@output_dir"]}, "$@late"],
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        run(config_file=str(tmp_path / "config.json"), **overrides)
        return (tmp_path / "late").exists()

    return launch


def test_the_folders_are_made_and_the_run_goes_on(launch, tmp_path):
    assert launch() and launch()  # also where they are there
    assert launch(output_dir=str(tmp_path / "other"))
    assert [(tmp_path / name).is_dir() for name in ("models", "out/eval", "other")] == [True] * 3
    assert not list((tmp_path / "models").iterdir())


def test_a_misspelt_override_ends_it_before_anything_is_made(launch, tmp_path):
    with pytest.raises(RuntimeError) as error:
        launch(ckpt_dri="elsewhere")
    assert str(error.value.__cause__).startswith("unknown override --ckpt_dri: did you mean --ckpt_dir?")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_written_into_ends_it(launch, tmp_path):
    (tmp_path / "out").write_text("a file in the way")
    with pytest.raises(RuntimeError) as error:
        launch()
    assert str(error.value.__cause__).startswith(f"{tmp_path / 'out' / 'eval'}: expected a folder to write into, found")
    assert not (tmp_path / "late").exists()


def test_on_the_command_line_errors_end_readably_from_then_on(monkeypatch, launch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    start([])
    assert sys.excepthook is sys.__excepthook__
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("monai.bundle.__main__", None))
    start([])
    assert sys.excepthook is _report
    with pytest.raises(SystemExit, match="unknown override --late_: did you mean --late"):
        launch(late_=1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker_says_nothing_of_a_connection_that_the_end_of_the_run_cuts(monkeypatch, capfd):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("monai.bundle.__main__", None))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    make_errors_readable()

    def told(error):
        worker = os.fork()
        if worker == 0:
            sys.excepthook(type(error), error, None)
            os._exit(0)
        os.waitpid(worker, 0)
        return capfd.readouterr().err

    assert told(ConnectionResetError("cut")) == "" and told(EOFError("cut")) == ""
    assert "ValueError: bad" in told(ValueError("bad"))
    sys.excepthook(ConnectionResetError, ConnectionResetError("cut"), None)
    assert "ConnectionResetError: cut" in capfd.readouterr().err


def test_what_a_stopped_inference_has_written_is_counted(tmp_path, monkeypatch):
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in ("a_seg.nii.gz", "b_seg.nii.gz"):
        (maps / name).touch()
    monkeypatch.setattr(stopping, "_advice", [])
    locks = start([str(maps)])
    assert locks and not stopping._advice  # a training or an evaluation writes none
    locks = start([str(maps)], label_maps=True)
    advice = stopping._advice[0]
    assert locks and advice() == "Start again with the same command, which does everything anew."
    (maps / "new").touch()
    os.replace(maps / "new", maps / "b_seg.nii.gz")  # as a map is written
    assert advice().startswith(f"1 label map is written, whole, in {maps}. Start again")
    (maps / "c_seg.nii.gz").touch()
    assert advice().startswith(f"2 label maps are written, whole, in {maps}. Start again")
