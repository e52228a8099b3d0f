"""The bundle as its users start it: tiny runs of its configs on the sample data."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, run

from common.data import read_dataset
from common.engine import load_checkpoint, root_cause

pytestmark = pytest.mark.usefixtures("restored")
BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "apscl_fewshot"
CONFIGS = BUNDLE / "configs"
NETWORK = {"image_size": [32, 32], "feat_dim": 8, "encoder_width": 8}
REPORT = {"protocols": ["parts3"], "pictures": 1, "distances": False}
TINY = {**NETWORK, **REPORT, "episodes_per_epoch": 4, "max_epochs": 4, "val_interval": 2, "min_fg": 4}


def places(folder, sample_data):
    """Where a run reads and writes."""
    return {"dataset_dir": str(sample_data), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}


def train(folder, sample_data, **overrides):
    run(config_file=str(CONFIGS / "train.json"), **{**TINY, **places(folder, sample_data), **overrides})
    state, model = (load_checkpoint(folder / "models" / name) for name in ("checkpoint.pt", "model.pt"))
    return [{key: value for key, value in state.items() if key != "settings"}, model]  # tensors and numbers to compare


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sample_data):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, sample_data)


@pytest.mark.parametrize("workers", [0, 2])
def test_four_epochs_equal_two_and_two_bit_for_bit(trained, tmp_path, sample_data, workers):
    """Against one run without workers, so that their number does not matter either."""
    first = train(tmp_path, sample_data, max_epochs=2, num_workers=workers)
    halves = train(tmp_path, sample_data, resume=True, num_workers=workers)
    assert first[0]["epoch"] == 2 and halves[0]["epoch"] == 4 and halves[0]["iteration"] == 8
    assert set(halves[0]["objects"]) == {"network", "objective", "optimizer", "lr_scheduler"}
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    weights = [state["objects"]["network"]["encoder.projection.weight"] for state in (first[0], halves[0])]
    assert not torch.equal(*weights)


def test_a_run_is_not_resumed_with_another_split(trained, tmp_path, sample_data):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, sample_data, resume=True, novel_labels=[1], setting=2)
    text = "novel_labels was [4] and is now [1]; setting was 1 and is now 2. Give"
    assert text in str(root_cause(error.value))


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


def test_a_killed_run_goes_on_from_a_whole_checkpoint(tmp_path, sample_data, start_bundle):
    """Started in a third folder and resumed in the bundle's: neither gets a file."""
    (tmp_path / "elsewhere").mkdir()
    before = entries(BUNDLE)
    options = {**TINY, **places(tmp_path, sample_data), "superpixel_share": 0.0, "val_interval": 1000}
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
def test_the_summary_says_what_chose_the_checkpoint(tmp_path, sample_data, selection):
    """The queries are both validated on and scored."""
    train(tmp_path, sample_data, selection=selection, max_epochs=1, val_interval=1)
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert f"(selection: {selection})." in summary and ("optimistic" in summary) == (selection == "validation")


def test_two_processes_keep_the_same_network_and_one_scores_it(tmp_path, sample_data, two_processes):
    """Validation and the report at the end need the network without its wrapper."""
    options = {**TINY, **places(tmp_path, sample_data), "max_epochs": 1, "val_interval": 1}
    ranks = two_processes(CONFIGS, tmp_path, ("@network.module", "@loss"), **options)
    torch.testing.assert_close(*ranks, rtol=0, atol=0)
    assert set(load_checkpoint(tmp_path / "models" / "model.pt")) == set(ranks[0][0])
    assert (tmp_path / "eval" / "cases.csv").is_file()


def test_a_misspelt_override_ends_the_run_before_it_starts(tmp_path, sample_data, start_bundle):
    """From the root of the repository."""
    root, options = BUNDLE.parents[1], {**places(tmp_path, sample_data), "max_epoch": 1}
    before = entries(root)
    with start_bundle("--config_file", "bundles/apscl_fewshot/configs/train.json", cwd=root, **options) as process:
        output = process.stdout.read()
    assert process.returncode != 0 and "unknown override --max_epoch: did you mean --max_epochs?" in output, output
    assert not (tmp_path / "models").exists() and entries(root) == before


@pytest.mark.parametrize("place", ["root", "bundle", "third"])
def test_nothing_is_written_into_the_working_folder(tmp_path, sample_data, monkeypatch, place):
    (tmp_path / "third").mkdir()
    folder = {"root": BUNDLE.parents[1], "bundle": BUNDLE, "third": tmp_path / "third"}[place]
    monkeypatch.chdir(folder)
    before = entries(folder)
    train(tmp_path, sample_data, max_epochs=1, episodes_per_epoch=2)
    assert entries(folder) == before and (tmp_path / "models" / "model.pt").is_file()


def test_nan_stops_the_run_and_names_the_cases(tmp_path, sample_data):
    with pytest.raises(RuntimeError, match="Failed to evaluate") as error:
        train(tmp_path, sample_data, learning_rate=1e30)
    assert isinstance(error.value.__cause__, FloatingPointError)
    text = r"the loss is nan in epoch 1, iteration \d, cases: phantom_\d\d\[\d+\] phantom_\d\d\[\d+\], phantom_"
    assert re.match(text, str(error.value.__cause__))
    assert not list(tmp_path.glob("models/*"))


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(tmp_path, sample_data, name):
    if not (CONFIGS / f"{name}.json").is_file():
        pytest.skip(f"{name}.json is not there yet")
    options = {**NETWORK, **places(tmp_path, sample_data)}
    options |= {} if name == "train" else {"support_dir": str(sample_data / "support")}
    kind = "train" if name == "train" else "infer"
    meta = str(CONFIGS / "metadata.json") if (CONFIGS / "metadata.json").is_file() else None
    workflow = ConfigWorkflow(str(CONFIGS / f"{name}.json"), meta, workflow_type=kind, **options)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_inference_writes_labels_on_the_grid_of_the_image(tmp_path, sample_data, trained):
    """An image of another orientation and size than the support's, with the weights of the run."""
    source = nib.load(read_dataset(sample_data).validation[0]["image"])
    turned = nib.as_closest_canonical(source).slicer[10:118, 5:125, 3:20]
    nib.save(turned, tmp_path / "query.nii.gz")
    options = {**places(tmp_path, sample_data), "ckpt_dir": str(trained[0] / "models"),
               "support_dir": str(sample_data / "support"), "images": str(tmp_path / "query.nii.gz")}  # fmt: skip
    run(config_file=str(CONFIGS / "inference.json"), **options)
    found = nib.load(tmp_path / "eval" / "query_seg.nii.gz")
    assert found.shape == turned.shape == (108, 120, 17)
    np.testing.assert_allclose(found.affine, turned.affine, atol=1e-4)
    assert set(np.unique(found.dataobj)) <= {0, 1, 2, 3, 4} and np.asarray(found.dataobj).any()


def test_inference_before_any_training_says_so(tmp_path, sample_data):
    """And takes no photographs."""
    options = {**NETWORK, **places(tmp_path, sample_data), "support_dir": str(sample_data / "support")}
    with pytest.raises(RuntimeError) as error:
        run(config_file=str(CONFIGS / "inference.json"), **options)
    assert "model.pt: no such checkpoint. Expected a file written by an earlier run" in str(root_cause(error.value))
    with pytest.raises(RuntimeError) as error:
        run(config_file=str(CONFIGS / "inference.json"), **options, images=str(tmp_path / "a.png"))
    assert "1 images, such as " in (text := str(root_cause(error.value))) and "expected scans (NIfTI); photo" in text


def test_evaluation_scores_the_saved_model_again(tmp_path, sample_data, trained):
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    options = {**REPORT, **places(tmp_path, sample_data), "ckpt_dir": str(trained[0] / "models")}
    run(config_file=configs, **options)
    assert (tmp_path / "eval" / "cases.csv").read_text() == (trained[0] / "eval" / "cases.csv").read_text()
    shutil.copy(trained[0] / "models" / "model.pt", tmp_path)
    with pytest.raises(RuntimeError) as error:
        run(config_file=configs, **options | {"ckpt_dir": str(tmp_path)})
    assert "model.json: expected the settings of the training, found no such file" in str(error.value.__cause__)


def test_the_printed_method_trains_and_is_scored(tmp_path, sample_data):
    """paper.json as it is, but for its sizes."""
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "paper")]
    options = {**TINY, **places(tmp_path, sample_data), "encoder_name": "resnet18", "max_epochs": 1}
    run(config_file=configs, **options)
    model = load_checkpoint(tmp_path / "models" / "model.pt")
    assert {"decoder.query_projection.weight", "decoder.support_projection.weight"} <= set(model)
    assert model["prior.prior.layers.0.weight"].shape == (32, 8 * 4 * 4)  # no pooling: all of a map of 4 x 4
    assert (tmp_path / "eval" / "cases.csv").is_file()


def test_configs_are_json_of_one_form():
    """All overlays name only keys of the config that they lie over."""
    keys = {name: list(json.loads((CONFIGS / f"{name}.json").read_text())) for name in ("train", "paper", "evaluate")}
    for overlay in ("paper", "evaluate"):
        assert {key.split("::")[0] for key in keys[overlay]} <= {*keys["train"], "trained", "comment"}
