import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.__main__ import _stop, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def called(monkeypatch):
    """The command line, which returns what reached the command's function."""

    def call(command, *arguments):
        seen = []
        module = importlib.import_module(f"tools.{command}")
        monkeypatch.setattr(module, command, lambda *args: seen.append(args))
        monkeypatch.setattr(sys, "argv", ["tools", command, *arguments])
        main()
        return seen[0]

    return call


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(arguments):
    done = subprocess.run([sys.executable, "-m", "tools", *arguments], cwd=ROOT, capture_output=True, text=True)
    commands = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert done.returncode == 0 and {"sample", "check", "preview", "prepare", "compare"} <= set(commands)


def test_help_of_a_command_and_of_an_unknown_one():
    def tools(*arguments):
        return subprocess.run([sys.executable, "-m", "tools", *arguments], cwd=ROOT, capture_output=True, text=True)

    known, unknown = tools("compare", "--help"), tools("chek")
    assert known.returncode == 0 and "--processes" in known.stdout + known.stderr
    assert unknown.returncode != 0 and "compare" in unknown.stderr


def test_help_does_not_wait_for_torch():
    code = "import sys, tools.__main__ as t; sys.argv[1:] = ['--help']; t.main(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_options_reach_the_commands(called):
    assert called("sample", "toy", "--seed", "3") == ("toy", None, 3)
    assert called("check", "toy", "--dataset_dir", "d", "--in_channels", "3") == ("toy", "d", None, {"in_channels": 3})
    files = called("check", "toy", "--dataset_dir", "d", "--config_file", "['a.json','b.json']", "--x::y", "1")
    assert files == ("toy", "d", ["a.json", "b.json"], {"x::y": 1})
    assert called("preview", "toy", "--cases=2") == ("toy", None, None, 2)
    assert called("prepare", "chaos", "--source", "s", "--output", "o") == ("chaos", "s", "o")


def test_prepare_takes_options_of_its_data_set(monkeypatch):
    seen = []
    monkeypatch.setattr("tools.prepare.prepare", lambda *args, **options: seen.append((args, options)))
    line = "prepare la --source s --output o --labelled 4 --crop none --train t.list"
    monkeypatch.setattr(sys, "argv", ["tools", *line.split()])
    main()
    assert seen == [(("la", "s", "o"), {"labelled": 4, "crop": "none", "train": "t.list"})]


def test_compare_takes_axes_and_overrides(called):
    line = "toy --dataset_dir d --seeds 0,1 --labels 2 --domains rim --variants A,B+C --group ablation --processes 2"
    bundle, dataset_dir, output, group, variants, axes, processes, config, overrides = called(
        "compare", *line.split(), "--max_epochs", "1", "--train::flip", "False")
    assert (bundle, dataset_dir, output, group, processes, config) == ("toy", "d", None, "ablation", 2, None)
    assert axes == {"seeds": (0, 1), "folds": None, "labels": 2, "domains": "rim"}
    assert variants in ("A,B+C", ("A", "B+C"))
    assert overrides == {"max_epochs": 1, "train::flip": False}


PREVIEW, SAMPLE = ["preview", "transmedseg_ssl", "--output"], ["sample", "transmedseg_ssl", "--output"]


@pytest.mark.parametrize("command", [PREVIEW, SAMPLE])
@pytest.mark.parametrize("below", ["", "below", "further/below"])
def test_an_output_that_cannot_be_written_is_known_before_work_starts(monkeypatch, tmp_path, command, below):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["tools", *command, str(tmp_path / "file" / below)])
    with pytest.raises(SystemExit, match="file") as error:
        main()
    assert str(tmp_path / "file") in str(error.value) and "another folder" in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_command_ends_with_one_line(number, code, monkeypatch, capfd):
    def be_stopped(*_):
        os.kill(os.getpid(), number)
        return input()

    before = signal.signal(number, _stop)
    try:
        monkeypatch.setattr("tools.sample.sample", be_stopped)
        monkeypatch.setattr(sys, "argv", ["tools", "sample", "sgcg_dg"])
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        signal.signal(number, before)
    name = {143: "SIGTERM", 130: "Ctrl-C"}[code]
    assert end.value.code == code
    assert capfd.readouterr().err == f"\nStopped by {name}. Start again with the same command.\n"
