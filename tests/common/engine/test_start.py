"""The first entry of a config's `run`: what it does before anything else is built."""

import json
import sys
from importlib.machinery import ModuleSpec

import pytest
from monai.bundle import run

from common.engine import start
from common.engine.readable_errors import _report


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
