"""Runs that share a folder, and runs that are stopped, as a user has them: processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.engine import load_checkpoint

ENDLESS = {"max_epochs": 10000, "iterations_per_epoch": 1, "val_interval": 10000}
# a handler that sends its own process a signal, beside the configs
STOP = """
import os
from ignite.engine import Events

class Stop:
    def __init__(self, number, moment, evaluator=None):
        self.number, self.moment, self.evaluator = number, moment, evaluator

    def attach(self, engine):
        if self.moment == "report":
            self.evaluator.score = self.stop
        elif self.moment == "validation":
            self.evaluator.add_event_handler(Events.ITERATION_STARTED, self.stop)
        else:
            event = Events.STARTED if self.moment == "start" else Events.ITERATION_COMPLETED
            engine.add_event_handler(event, self.stop)

    def stop(self, *_):
        os.kill(os.getpid(), self.number)

class KillAtWrite:
    def __init__(self, ending):
        replace = os.replace

        def killed(source, target):
            if str(target).endswith(ending):
                os.kill(os.getpid(), 9)
            replace(source, target)

        os.replace = killed

    def attach(self, engine):
        pass
"""


@pytest.fixture
def launch(tiny_bundle, start_bundle, tmp_path):
    """Starts a run of a tiny network, in the same folders each time; ends what is left of it."""
    started = []

    def launch(name="transmedseg_ssl", configs=("train", "supervised"), overlay=None, **overrides):
        bundle = tiny_bundle(name)
        files = bundle.config(*configs)
        if overlay is not None:
            (tmp_path / "stop_here.py").write_text(STOP)
            (tmp_path / "overlay.json").write_text(json.dumps(overlay))
            files.append(str(tmp_path / "overlay.json"))
        options = bundle.options(tmp_path, **ENDLESS) if configs[0] == "train" else bundle.places(tmp_path)
        started.append(start_bundle("--config_file", str(files), cwd=tmp_path, **options | overrides))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def end(process):
    """The exit code, and the last line that is not empty."""
    output = process.communicate()[0]
    return process.returncode, [line for line in output.splitlines() if line.strip()][-1]


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)])
def test_a_stopped_training_says_where_it_can_go_on(launch, tmp_path, number, code, workers):
    checkpoint = tmp_path / "models" / "checkpoint.pt"
    process = launch(num_workers=workers)
    wait_for(checkpoint.is_file, process)
    time.sleep(0.3)  # anywhere in an epoch
    process.send_signal(number)
    found, line = end(process)
    assert found == code, line
    name = {143: "SIGTERM", 130: "Ctrl-C"}[code]
    epoch = load_checkpoint(checkpoint)["epoch"]
    assert line == (f"Stopped by {name}. The state after epoch {epoch} of 10000 is in {checkpoint}: the same command "
                    "with `--resume True` goes on from there.")  # fmt: skip
    assert [file.name for file in checkpoint.parent.iterdir()] == ["checkpoint.pt"]


def test_a_folder_has_one_run_at_a_time_and_one_training(launch, tmp_path):
    checkpoint = tmp_path / "models" / "checkpoint.pt"
    first = launch()
    wait_for(checkpoint.is_file, first)
    code, line = end(launch(seed=1))
    assert code == 1 and line.startswith(f"OSError: {tmp_path / 'models'}: expected a folder that no other run writes")
    first.send_signal(signal.SIGKILL)
    first.communicate()
    (tmp_path / "models" / f".{first.pid}-ab.part").touch()  # as if it had been writing
    before = os.stat(checkpoint).st_mtime_ns
    code, line = end(launch(seed=1))
    assert code == 1
    assert f"{checkpoint}: expected no training there, or one with the same settings, found one with others: " in line
    assert "seed was 0 and is now 1. Give this training folders of its own (--ckpt_dir, --output_dir)" in line
    assert os.stat(checkpoint).st_mtime_ns == before
    assert [file.name for file in checkpoint.parent.iterdir()] == ["checkpoint.pt"]
    assert end(launch(max_epochs=2, learning_rate=0.001))[0] == 0  # the same training anew


# bundle, signal, the moment; epochs whose state is kept
MOMENTS = [("diffcl_ssl", signal.SIGINT, "start", 0), ("transmedseg_ssl", signal.SIGTERM, "validation", 0),
           ("diffcl_ssl", signal.SIGTERM, "report", 2)]  # fmt: skip


@pytest.mark.parametrize(("name", "number", "moment", "kept"), MOMENTS, ids=[one[2] for one in MOMENTS])
def test_a_training_is_stopped_at_any_moment(launch, tmp_path, name, number, moment, kept):
    stop = {"_target_": "stop_here.Stop", "number": int(number), "moment": moment, "evaluator": "@validate::evaluator"}
    options = {"name": name, "max_epochs": 2, "val_interval": 1}
    found, line = end(launch(overlay={"+train::handlers": [stop]}, **options))
    assert found == 128 + number, line
    assert line.startswith(f"Stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}. ")
    checkpoint = tmp_path / "models" / "checkpoint.pt"
    kept_files = ["checkpoint.pt", "model.json", "model.pt"] if kept else []
    assert sorted(file.name for file in checkpoint.parent.iterdir()) == kept_files
    if not kept:
        assert line.endswith("No state of this run is saved yet: start again with the same command.")
        return
    assert line.endswith(f"The state after epoch {kept} of 2 is in {checkpoint}: the same command with `--resume True` "
                         "goes on from there.")  # fmt: skip
    assert end(launch(resume=True, **options))[0] == 0
    assert {"cases.csv", "summary.md"} <= {file.name for file in (tmp_path / "eval").iterdir()}


@pytest.mark.parametrize("name", ["transmedseg_ssl", "diffcl_ssl"])
def test_an_inference_that_is_stopped_says_what_is_written(launch, tiny_bundle, tmp_path, name):
    bundle = tiny_bundle(name)
    bundle.save(tmp_path, **bundle.sizes)
    stop = {"_target_": "stop_here.Stop", "number": int(signal.SIGTERM), "moment": "an image is done"}
    found, line = end(launch(name, ["inference"], overlay={"+handlers": [stop]}))
    assert (found, line) == (143, f"Stopped by SIGTERM. 1 label map is written, whole, in {tmp_path / 'eval'}. Start "
                                  "again with the same command, which does everything anew.")  # fmt: skip
    assert [file.name for file in (tmp_path / "eval").glob("*_seg*")] == ["validation_1_seg.nii.gz"]
    assert not list((tmp_path / "eval").glob(".*.part*"))


def killed_at(ending):
    return [{"_target_": "stop_here.KillAtWrite", "ending": ending}]


def names_in(folder):
    return {file.name for file in folder.iterdir() if not file.name.startswith("events.")}


def test_a_training_that_is_killed_while_it_writes_is_done_again_cleanly(launch, tmp_path):
    models, report = tmp_path / "models", tmp_path / "eval"
    options = {"max_epochs": 2, "resume": False}
    for ending, left in (("checkpoint.pt", set()), ("model.pt", {"checkpoint.pt"}),
                         ("cases.csv", {"checkpoint.pt", "model.pt", "model.json"})):  # fmt: skip
        process = launch(overlay={"+train::handlers": killed_at(ending)}, **options)
        process.communicate()
        assert process.returncode == -9
        written = [*models.glob(".*.part*"), *report.glob(".*.part*")]
        assert len(written) == 1 and names_in(models) - {written[0].name} == left
        options["resume"] = bool(left)
    assert end(launch(**options))[0] == 0
    assert names_in(models) == {"checkpoint.pt", "model.pt", "model.json"}
    assert names_in(report) == {"cases.csv", "summary.md", ".report.json"}


def test_an_inference_that_is_killed_while_it_writes_is_done_again_cleanly(launch, tiny_bundle, tmp_path):
    name = "diffcl_ssl"
    bundle = tiny_bundle(name)
    bundle.save(tmp_path, **bundle.sizes)
    process = launch(name, ["inference"], overlay={"+handlers": killed_at("validation_2_seg.nii.gz")})
    process.communicate()
    assert process.returncode == -9 and len(list((tmp_path / "eval").glob(".*.part*"))) == 1
    assert end(launch(name, ["inference"]))[0] == 0
    expected = {name for i in (1, 2) for name in (f"validation_{i}_seg.nii.gz", f"found_validation_{i}.png")}
    assert names_in(tmp_path / "eval") == expected


def test_a_comparison_that_is_stopped_says_so_last(tiny_bundle, tmp_path):
    bundle = tiny_bundle("transmedseg_ssl")
    line = ["-m", "tools", "compare", bundle.name, "--dataset_dir", str(bundle.data), "--output", str(tmp_path)]
    options = bundle.tiny | ENDLESS | {"variants": "supervised", "seeds": 0}
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    process = subprocess.Popen([sys.executable, *line, *flags], cwd=Path(__file__).parents[2], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        wait_for(lambda: list(tmp_path.glob("runs/*/*/models/checkpoint.pt")), process)
        process.send_signal(signal.SIGTERM)
        assert end(process) == (143, "Stopped by SIGTERM. 0 of 1 runs are done; the same command goes on.")
    finally:
        process.kill()
        process.wait()
