"""The bundle as its users start it: tiny trainings, reports and segmentations from its configs."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from monai.handlers import MeanDice
from monai.networks.nets import BasicUNet
from monai.transforms import KeepLargestConnectedComponent
from torch.nn import functional as F

from common.data import read_dataset
from common.engine import load_checkpoint
from common.engine.root_cause import root_cause

pytestmark = pytest.mark.usefixtures("restored")
BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "transmedseg_ssl"
CONFIGS = BUNDLE / "configs"
NETWORK = {"patch_size": [32, 32], "width": 4}
TINY = {**NETWORK, "batch_size": 4, "iterations_per_epoch": 3, "max_epochs": 4, "learning_rate": 0.01,
        "warmup_steps": 1, "val_interval": 2, "pictures": 0, "distances": False}  # fmt: skip
# the second stage starts in the third of four epochs; a schedule has at least eight
STAGES = {"pretrain": 0.35}


def config(*names):
    return [str(CONFIGS / f"{name}.json") for name in names]


def places(folder, data):
    """Where a run reads and writes."""
    return {"dataset_dir": str(data), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}


def train(folder, data, overlay=None, **overrides):
    run(config_file=config("train", *filter(None, [overlay])), **{**TINY, **places(folder, data), **overrides})
    return [load_checkpoint(folder / "models" / name) for name in ("checkpoint.pt", "model.pt")]


def rows_of(folder):
    with open(folder / "eval" / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def summary_of(folder):
    return (folder / "eval" / "summary.md").read_text()


def steps_of(checkpoint):
    """Steps of the objective; updates of the teacher; features in the teacher's memory, of all classes."""
    state = checkpoint["objects"]["objective"]
    return [int(state[name].sum()) for name in ("step", "teacher.average.n_averaged", "augmentation.teacher.count")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, scans):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, scans, pictures=1, **STAGES)


def test_resume_from_the_command_line_equals_one_run_bit_for_bit(trained, tmp_path, scans, start_bundle):
    """As a user types it; the first two epochs lie in the first stage of BCP, the other two cross into the second."""
    first = train(tmp_path, scans, max_epochs=2, **STAGES)
    assert first[0]["epoch"] == 2 and steps_of(first[0]) == [6, 0, 0]
    options = {**TINY, **STAGES, **places(tmp_path, scans), "resume": True, "max_epochs": 4, "num_workers": 2}
    threads = torch.get_num_threads()
    with start_bundle("--config_file", *config("train"), cwd=tmp_path, threads=threads, **options) as process:
        output = process.stdout.read()
    assert process.returncode == 0 and "resumed after epoch 2 of 4" in output, output
    halves = [load_checkpoint(tmp_path / "models" / name) for name in ("checkpoint.pt", "model.pt")]
    assert halves[0]["epoch"] == 4 and halves[0]["iteration"] == 12
    steps, updates, features = steps_of(halves[0])
    assert steps == 12 and updates == 12 - 8 + 1 and features > 0  # round(0.35 * 24) = 8
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    one, other = (state["objects"]["network"]["final_conv.weight"] for state in (first[0], halves[0]))
    assert not torch.equal(one, other)


def test_uncertainty_and_dropout_resume_bit_for_bit(tmp_path, scans):
    """UA-MT draws noise and dropout for student and teacher; the second half has the first half's memories too."""
    options = {"base": "uamt", "dropout": 0.3, "uncertainty_passes": 2, "iterations_per_epoch": 2}
    whole = train(tmp_path / "whole", scans, **options)
    first = train(tmp_path / "halves", scans, max_epochs=2, **options)
    halves = train(tmp_path / "halves", scans, resume=True, **options)
    steps, updates, features = steps_of(first[0])
    assert steps == updates == 4 and features > 256 and steps_of(halves[0])[2] > features
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)
    other = train(tmp_path / "other", scans, **{**options, "dropout": 0.0})
    assert not torch.equal(other[1]["final_conv.weight"], whole[1]["final_conv.weight"])


def test_a_run_leaves_a_model_a_report_and_a_log(trained, scans):
    folder, (checkpoint, model) = trained
    files = {file.name for file in (folder / "eval").iterdir()}
    assert {"cases.csv", "summary.md", "overlay_validation_1.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("overlay_") for name in files) == 1
    assert {file.name for file in (folder / "models").iterdir()} == {"checkpoint.pt", "model.pt"}
    assert set(checkpoint["objects"]) == {"network", "objective", "optimizer", "lr_scheduler"}
    torch.testing.assert_close(dict(model), dict(checkpoint["objects"]["network"]), rtol=0, atol=0)  # the student's
    rows = rows_of(folder)
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, name) for case in ("validation_1", "validation_2") for name in ("wall", "cavity")]  # fmt: skip
    assert min(float(row["dice"]) for row in rows) > 0.7  # twelve steps learn discs in noise
    assert "Scored: `validation`, 2 cases" in summary_of(folder) and 0 <= checkpoint["best_metric"] <= 1


@pytest.mark.parametrize("base", ["supervised", "mean_teacher", "uamt", "bcp"])
def test_every_base_trains_in_both_directions(tmp_path, scans, base):
    """The direction changes what is learnt wherever there is a teacher; without unlabelled images there is neither."""
    options = {"base": base, "pretrain": 0.0, "max_epochs": 1, "tsa_strength": 1.0, "tsa_weight": 1.0}
    models = []
    for direction in ("source_to_target", "teacher_to_student"):
        checkpoint, model = train(tmp_path / direction, scans, tsa_direction=direction, **options)
        steps, updates, features = steps_of(checkpoint)
        assert (steps, updates, features > 0) == ((3, 0, False) if base == "supervised" else (3, 3, True))
        assert min(float(row["dice"]) for row in rows_of(tmp_path / direction)) > 0.1
        models.append(model["final_conv.weight"])
    assert torch.equal(*models) == (base == "supervised")


def test_supervised_training_needs_no_unlabelled_case(tmp_path, write_scans, scans):
    """And those that are there do not change it."""
    options = {"base": "supervised", "max_epochs": 1, "loss::augmentation": None}
    data = write_scans(tmp_path / "set", unlabeled=0)
    without, beside = (train(tmp_path / name, path, **options) for name, path in (("without", data), ("beside", scans)))
    torch.testing.assert_close(without, beside, rtol=0, atol=0)
    for base in ("mean_teacher", "uamt", "bcp"):
        with pytest.raises(RuntimeError) as error:
            train(tmp_path / base, data, base=base)
        text = str(root_cause(error.value))
        assert "expected unlabelled cases, found none" in text and "`base: supervised`" in text
        assert not (tmp_path / base).exists()


def test_labels_of_unlabelled_cases_are_never_opened(tmp_path, write_scans):
    """Neither of those in `unlabeled` nor of those that `labelled` makes unlabelled."""
    found = []
    for name, text in (("intact", None), ("damaged", b"no label map")):
        data = write_scans(tmp_path / name / "set", training=3)
        file = data / "dataset.json"
        content = json.loads(file.read_text())
        for item in content["unlabeled"]:
            item["label"] = f"labels/{Path(item['image']).name}"
        file.write_text(json.dumps(content))
        for item in content["training"][1:] + content["unlabeled"]:
            (data / item["label"]).write_bytes(text or (data / content["training"][0]["label"]).read_bytes())
        found.append(train(tmp_path / name, data, labelled=1, pretrain=0.0, max_epochs=1, val_interval=1))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(("selection", "test"), [("last", 0), ("validation", 0), ("validation", 1)])
def test_the_model_is_the_last_or_the_best(tmp_path, write_scans, monkeypatch, selection, test):
    """Validation is made to like the second of three epochs."""
    values = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(MeanDice, "compute", lambda self: next(values))
    data = write_scans(tmp_path / "set", test=test)
    options = {"base": "supervised", "val_interval": 1, "iterations_per_epoch": 1}
    checkpoint, model = train(tmp_path / "whole", data, selection=selection, max_epochs=3, **options)
    assert checkpoint["best_metric"] == 0.9 and checkpoint["best_metric_epoch"] == 2
    values = iter([0.3, 0.9])
    earlier = train(tmp_path / "two", data, max_epochs=2, **options)[0]["objects"]["network"]
    right, wrong = (earlier, checkpoint["objects"]["network"])[:: 1 if selection == "validation" else -1]
    torch.testing.assert_close(dict(model), dict(right), rtol=0, atol=0)
    assert not torch.equal(model["final_conv.weight"], wrong["final_conv.weight"])
    text = summary_of(tmp_path / "whole")
    assert f"(selection: {selection})" in text and f"Scored: `{'test' if test else 'validation'}`" in text
    assert ("optimistic" in text) == (selection == "validation" and not test)


def test_the_teacher_can_be_saved_and_scored(tmp_path, scans):
    options = {"base": "mean_teacher", "max_epochs": 1, "ema_decay": 0.5}
    checkpoint, model = train(tmp_path, scans, inference_network="teacher", **options)
    before = "teacher.average.module."
    state = checkpoint["objects"]["objective"]
    teacher = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
    torch.testing.assert_close(dict(model), teacher, rtol=0, atol=0)
    assert not torch.equal(model["final_conv.weight"], checkpoint["objects"]["network"]["final_conv.weight"])
    assert len(rows_of(tmp_path)) == 4


def test_evaluation_scores_the_saved_model_again(tmp_path, scans, trained):
    options = {**TINY, **places(tmp_path, scans), "ckpt_dir": str(trained[0] / "models")}
    run(config_file=config("train", "evaluate"), **options)
    assert (tmp_path / "eval" / "cases.csv").read_text() == (trained[0] / "eval" / "cases.csv").read_text()
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("zoom", "size"), [(1.0, (32, 32, 5)), (0.5, (64, 64, 8)), ([0.5, 0.5, 1.0], (64, 64, 5))])
def test_inference_by_hand(tmp_path, write_scans, trained, zoom, size):
    """One window covers a slice, so the network sees whole slices; the label map lies on the grid of the file.

    And it is what the report scores.
    """
    data = write_scans(tmp_path / "set", size=size)
    options = {**NETWORK, **places(tmp_path, data), "ckpt_dir": str(trained[0] / "models"), "zoom": zoom}
    run(config_file=config("inference"), labels={"1": "wall", "2": "cavity"}, **options)
    cases = ["validation_1", "validation_2"]
    files = {f"{case}_seg.nii.gz" for case in cases} | {f"overlay_{case}.png" for case in cases}
    assert {file.name for file in (tmp_path / "eval").iterdir()} == files
    network = BasicUNet(2, 1, 3, (4, 8, 16, 32, 64, 4), norm=("instance", {"affine": True}))
    network.load_state_dict(trained[1][1])
    voxels = []
    for item in read_dataset(data).validation:
        shown, found = nib.load(item["image"]), nib.load(tmp_path / "eval" / f"{item['case']}_seg.nii.gz")
        assert found.shape == size and found.get_data_dtype() == np.uint8
        np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)
        image = torch.from_numpy(shown.get_fdata(dtype=np.float32))[None, None]
        image = F.interpolate(image, (32, 32, round(size[2] * np.broadcast_to(zoom, 3)[2])), mode="area")[0, 0]
        image = (image - image.mean()) / image.std(correction=0)
        with torch.no_grad():
            logits = network.eval()(image.permute(2, 0, 1)[:, None]).permute(1, 2, 3, 0)[None]
        expected = F.interpolate(logits, size, mode="trilinear")[0].argmax(0)
        expected = KeepLargestConnectedComponent(is_onehot=False)(expected[None])[0]
        assert (np.asarray(found.dataobj) != expected.numpy()).mean() < 1e-3 < (expected > 0).float().mean()
        voxels += [int((np.asarray(found.dataobj) == label).sum()) for label in (1, 2)]
    run(config_file=config("train", "evaluate"), **{**TINY, **options})
    assert [int(row["prediction_voxels"]) for row in rows_of(tmp_path)] == voxels


def test_volumes(tmp_path, scans):
    """Three axes, a depth below the patch's, and half the voxels along two axes."""
    sizes = {"patch_size": [32, 32, 16], "width": 4, "zoom": [0.5, 0.5, 1.0]}
    options = {"batch_size": 2, "iterations_per_epoch": 2, "max_epochs": 1, "pretrain": 0.0, "distances": True}
    checkpoint, model = train(tmp_path, scans, "volume", val_interval=1, **sizes, **options)
    assert model["head.weight"].shape == (3, 4, 1, 1, 1) and steps_of(checkpoint)[:2] == [2, 2]
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * 2 and all(float(row["truth_ml"]) > 0 for row in rows)
    image = read_dataset(scans).training[0]["image"]
    run(config_file=config("inference", "volume_inference"), images=image, labels={"1": "wall", "2": "cavity"},
        **sizes, **places(tmp_path, scans))  # fmt: skip
    found, shown = nib.load(tmp_path / "eval" / "training_1_seg.nii.gz"), nib.load(image)
    assert found.shape == shown.shape and set(np.unique(found.dataobj)) <= {0, 1, 2}
    np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)
    assert (tmp_path / "eval" / "overlay_training_1.png").is_file()


def test_as_published_and_a_patch_that_is_no_square(tmp_path, scans):
    sizes = {"patch_size": [32, 48], "width": 4, "batch_size": 4}
    options = {"iterations_per_epoch": 2, "max_epochs": 1, "pretrain": 0.0, "distances": False, "pictures": 0}
    run(config_file=config("train", "paper"), **places(tmp_path, scans), **sizes, **options)
    objects = load_checkpoint(tmp_path / "models" / "checkpoint.pt")["objects"]
    group = objects["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.9, 0.0001, 0.01)
    running = [value for key, value in objects["network"].items() if key.endswith("running_mean")]
    assert running and all(value.any() for value in running)
    assert len(rows_of(tmp_path)) == 4


def test_a_misspelt_override_ends_the_run_before_it_starts(tmp_path, scans):
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, scans, ema_decays=0.9)
    assert "unknown override --ema_decays: did you mean --ema_decay?" in str(root_cause(error.value))
    assert not any(tmp_path.iterdir())
