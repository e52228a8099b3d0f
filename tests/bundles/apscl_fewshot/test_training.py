"""The training as its users start it: tiny runs of train.json on the sample data."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from common.engine import load_checkpoint, root_cause

pytestmark = pytest.mark.usefixtures("restored")
BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "apscl_fewshot"
CONFIGS = BUNDLE / "configs"


@pytest.mark.parametrize("workers", [0, 2])
def test_four_epochs_equal_two_and_two_bit_for_bit(trained, train, tmp_path, sample_data, workers):
    """Against one run without workers, so that their number does not matter either."""
    first = train(tmp_path, sample_data, max_epochs=2, num_workers=workers)
    halves = train(tmp_path, sample_data, resume=True, num_workers=workers)
    assert first[0]["epoch"] == 2 and halves[0]["epoch"] == 4 and halves[0]["iteration"] == 8
    assert set(halves[0]["objects"]) == {"network", "objective", "optimizer", "lr_scheduler"}
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    weights = [state["objects"]["network"]["encoder.projection.weight"] for state in (first[0], halves[0])]
    assert not torch.equal(*weights)


def test_a_run_is_not_resumed_with_another_split_network_or_loss(trained, train, tmp_path, sample_data):
    """Every setting that changed is told, with both values."""
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    changed = {"fold": 1, "novel_labels": [1], "network_def::encoder::width": 16, "loss::kl_weight": 0.2}
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, sample_data, resume=True, **changed)
    text = str(root_cause(error.value)).partition("found others: ")[2].partition(". Give")[0]
    assert text.split("; ") == [
        "model.network.encoder.width was 8 and is now 16", "model.fold was 0 and is now 1",
        "model.novel_labels was [4] and is now [1]", "objective.kl_weight was 0.1 and is now 0.2",
    ]  # fmt: skip


def test_a_run_leaves_a_model_a_report_and_a_log(trained):
    folder, (checkpoint, model) = trained
    files = {file.name for file in (folder / "eval").iterdir()}
    assert {"cases.csv", "summary.md", "superpixels"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("overlay_") for name in files) == 1
    assert {file.name for file in (folder / "models").iterdir()} == {"checkpoint.pt", "model.pt", "model.json"}
    assert 0 <= checkpoint["best_metric"] <= 1 and set(model) == set(checkpoint["objects"]["network"])
    lines = (folder / "eval" / "cases.csv").read_text().splitlines()
    assert len(lines) == 1 + 3  # three query scans, one support, one organ, one protocol


def entries(folder):
    """What lies in a folder, but for what other runs may be writing at the same time."""
    passing = {"__pycache__", ".pytest_cache", ".ruff_cache", ".git", "models", "eval", "sample_data"}
    return {path.name for path in Path(folder).iterdir()} - passing


def test_a_killed_run_goes_on_from_a_whole_checkpoint(tiny, places, tmp_path, sample_data, start_bundle):
    """Started in a third folder and resumed in the bundle's: neither gets a file."""
    (tmp_path / "elsewhere").mkdir()
    before = entries(BUNDLE)
    options = {**tiny, **places(tmp_path, sample_data), "superpixel_share": 0.0, "val_interval": 1000}
    options["max_epochs"], lines = 200, []
    with start_bundle("--config_file", str(CONFIGS / "train.json"), cwd=tmp_path / "elsewhere", **options) as process:
        for line in process.stdout:  # ten progress lines a run: the first one comes in epoch 20
            lines.append(line)
            if " %: epoch " in line:
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    done = load_checkpoint(tmp_path / "models" / "checkpoint.pt")["epoch"]
    assert 19 <= done < 200
    options |= {"resume": True, "max_epochs": done + 2}
    with start_bundle("--config_file", "configs/train.json", cwd=BUNDLE, **options) as process:
        output = process.stdout.read()
    assert process.returncode == 0 and f"resumed after epoch {done} of {done + 2}" in output, output
    assert load_checkpoint(tmp_path / "models" / "checkpoint.pt")["epoch"] == done + 2
    assert (tmp_path / "models" / "model.pt").is_file() and (tmp_path / "eval" / "cases.csv").is_file()
    assert not list((tmp_path / "elsewhere").iterdir()) and entries(BUNDLE) == before


@pytest.mark.parametrize("selection", ["last", "validation"])
def test_the_summary_says_what_chose_the_checkpoint(train, tmp_path, sample_data, selection):
    """The queries are both validated on and scored."""
    train(tmp_path, sample_data, selection=selection, max_epochs=1, val_interval=1)
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert f"(selection: {selection})." in summary and ("optimistic" in summary) == (selection == "validation")


def test_two_processes_keep_the_same_network_and_one_scores_it(tiny, places, tmp_path, sample_data, two_processes):
    """Validation and the report at the end need the network without its wrapper."""
    options = {**tiny, **places(tmp_path, sample_data), "max_epochs": 1, "val_interval": 1}
    ranks = two_processes(CONFIGS, tmp_path, ("@network.module", "@loss"), **options)
    torch.testing.assert_close(*ranks, rtol=0, atol=0)
    assert set(load_checkpoint(tmp_path / "models" / "model.pt")) == set(ranks[0][0])
    assert (tmp_path / "eval" / "cases.csv").is_file()


def test_a_misspelt_override_ends_the_run_before_it_starts(places, tmp_path, sample_data, start_bundle):
    """From the root of the repository."""
    root, options = BUNDLE.parents[1], {**places(tmp_path, sample_data), "max_epoch": 1}
    before = entries(root)
    with start_bundle("--config_file", "bundles/apscl_fewshot/configs/train.json", cwd=root, **options) as process:
        output = process.stdout.read()
    assert process.returncode != 0 and "unknown override --max_epoch: did you mean --max_epochs?" in output, output
    assert not (tmp_path / "models").exists() and entries(root) == before


@pytest.mark.parametrize("place", ["root", "bundle", "third"])
def test_nothing_is_written_into_the_working_folder(train, tmp_path, sample_data, monkeypatch, place):
    (tmp_path / "third").mkdir()
    folder = {"root": BUNDLE.parents[1], "bundle": BUNDLE, "third": tmp_path / "third"}[place]
    monkeypatch.chdir(folder)
    before = entries(folder)
    train(tmp_path, sample_data, max_epochs=1, iterations_per_epoch=1)
    assert entries(folder) == before and (tmp_path / "models" / "model.pt").is_file()


def test_nan_stops_the_run_and_names_the_cases(train, tmp_path, sample_data):
    with pytest.raises(RuntimeError, match="Failed to evaluate") as error:
        train(tmp_path, sample_data, learning_rate=1e30)
    assert isinstance(error.value.__cause__, FloatingPointError)
    text = r"the loss is nan in epoch 1, iteration \d, cases: phantom_\d\d\[\d+\] phantom_\d\d\[\d+\], phantom_"
    assert re.match(text, str(error.value.__cause__))
    assert not list(tmp_path.glob("models/*"))
