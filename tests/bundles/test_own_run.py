"""Runs that share a folder, and runs that are stopped, as a user has them: processes of their own."""

import os
import signal
import time

import pytest

from common.engine import load_checkpoint

ENDLESS = {"max_epochs": 10000, "iterations_per_epoch": 1, "val_interval": 10000}


@pytest.fixture
def launch(tiny_bundle, start_bundle, tmp_path):
    """Starts a training of a tiny network, in the same folders each time; ends what is left of it."""
    bundle, started = tiny_bundle("transmedseg_ssl"), []

    def launch(**overrides):
        files = str(bundle.config("train", "supervised"))
        options = bundle.options(tmp_path, **ENDLESS | overrides)
        started.append(start_bundle("--config_file", files, cwd=tmp_path, **options))
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
