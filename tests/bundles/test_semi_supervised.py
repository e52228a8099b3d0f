"""What the semi-supervised bundles have in common as their users start them: tiny trainings, reports, segmentations."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.handlers import MeanDice
from monai.networks.nets import BasicUNet
from monai.transforms import KeepLargestConnectedComponent
from torch.nn import functional as F

from common.data import read_dataset
from common.engine.root_cause import root_cause
from diffcl_ssl.network import ConvolutionalNetwork

pytestmark = pytest.mark.usefixtures("restored")
OBJECTS = {"network", "objective", "optimizer", "lr_scheduler"}
# of each bundle: settings with which everything that it remembers takes part within twelve steps; the updates of the
# teacher in the first half of these and in all; where its memory stands; what is in checkpoint.pt; the least Dice then
RUNS = {
    "transmedseg_ssl": {
        # two epochs lie in the first stage of BCP, the other two cross into the second: round(0.35 * 24) = 8
        "options": {"pretrain": 0.35}, "updates": (0, 12 - 8 + 1), "memory": "augmentation.teacher.count",
        "objects": OBJECTS, "dice": 0.7,
    },
    "diffcl_ssl": {
        "options": {
            "eta_start": 0.2, "eta": 1.0, "propagation::confidence": 0.4,
            "propagation::loss": {"_target_": "diffcl_ssl.propagation.LabelPropagationLoss", "min_bank": 1},
        },
        "updates": (6, 12), "memory": "base.propagation.bank.filled",
        "objects": OBJECTS | {"peer_optimizer", "peer_lr_scheduler"}, "dice": 0.25,  # the wall alone everywhere: 0.19
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, bundle.train(folder, pictures=1, **RUNS[bundle.name]["options"])


def steps_of(bundle, checkpoint):
    """Steps of the objective, updates of the teacher, features in the memory of all classes."""
    state = checkpoint["objects"]["objective"]
    return [int(state[name].sum()) for name in ("step", "teacher.average.n_averaged", RUNS[bundle.name]["memory"])]


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_resume_from_the_command_line_equals_one_run_bit_for_bit(bundle, trained, tmp_path, start_bundle):
    """As a user types it."""
    runs = RUNS[bundle.name]
    first = bundle.train(tmp_path, max_epochs=2, **runs["options"])
    steps, updates, features = steps_of(bundle, first[0])
    assert first[0]["epoch"] == 2 and (steps, updates) == (6, runs["updates"][0])
    options = bundle.options(tmp_path, resume=True, num_workers=2, **runs["options"])
    threads = torch.get_num_threads()
    with start_bundle("--config_file", *bundle.config("train"), cwd=tmp_path, threads=threads, **options) as process:
        output = process.stdout.read()
    assert process.returncode == 0 and "resumed after epoch 2 of 4" in output, output
    halves = bundle.load(tmp_path)
    assert halves[0]["epoch"] == 4 and halves[0]["iteration"] == 12
    assert steps_of(bundle, halves[0])[:2] == [12, runs["updates"][1]] and steps_of(bundle, halves[0])[2] > features
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    assert not equal(first[1], halves[1])


def test_a_run_is_not_resumed_with_other_data_or_another_objective(bundle, trained, tmp_path):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, resume=True, **RUNS[bundle.name]["options"], zoom=0.5, labelled=1, base="uamt")
    base = bundle.read("train")["base"]
    text = f'zoom was 1.0 and is now 0.5; labelled was null and is now 1; base was "{base}" and is now "uamt". Give'
    assert text in str(root_cause(error.value))


def test_a_run_leaves_a_model_a_report_and_a_log(bundle, trained):
    folder, (checkpoint, model) = trained
    files = {file.name for file in (folder / "eval").iterdir()}
    assert {"cases.csv", "summary.md", "overlay_validation_1.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("overlay_") for name in files) == 1
    assert {file.name for file in (folder / "models").iterdir()} == {"checkpoint.pt", "model.pt", "model.json"}
    assert set(checkpoint["objects"]) == RUNS[bundle.name]["objects"]
    torch.testing.assert_close(dict(model), dict(checkpoint["objects"]["network"]), rtol=0, atol=0)  # the student's
    rows = bundle.rows(folder)
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, name) for case in ("validation_1", "validation_2") for name in ("wall", "cavity")]  # fmt: skip
    assert np.mean([float(row["dice"]) for row in rows]) > RUNS[bundle.name]["dice"]
    assert "Scored: `validation`, 2 cases" in bundle.summary(folder) and 0 <= checkpoint["best_metric"] <= 1


def test_supervised_training_needs_no_unlabelled_case(bundle, tmp_path):
    """And those that are there do not change it."""
    options = {"base": "supervised", "max_epochs": 1}
    data = bundle.write(tmp_path / "set", unlabeled=0)
    without, beside = bundle.train(tmp_path / "without", data, **options), bundle.train(tmp_path / "beside", **options)
    torch.testing.assert_close(without, beside, rtol=0, atol=0)
    for base in bundle.read("train")["bases"].keys() - {"supervised"}:
        with pytest.raises(RuntimeError) as error:
            bundle.train(tmp_path / base, data, base=base)
        text = str(root_cause(error.value))
        assert "expected unlabelled cases, found none" in text and "`base: supervised`" in text
        assert not (tmp_path / base).exists()


def test_labels_of_unlabelled_cases_are_never_opened(bundle, tmp_path):
    """Neither of those in `unlabeled` nor of those that `labelled` makes unlabelled."""
    found = []
    for name, text in (("intact", None), ("damaged", b"no label map")):
        data = bundle.write(tmp_path / name / "set", training=3)
        file = data / "dataset.json"
        content = json.loads(file.read_text())
        for item in content["unlabeled"]:
            item["label"] = f"labels/{Path(item['image']).name}"
        file.write_text(json.dumps(content))
        for item in content["training"][1:] + content["unlabeled"]:
            (data / item["label"]).write_bytes(text or (data / content["training"][0]["label"]).read_bytes())
        found.append(bundle.train(tmp_path / name, data, labelled=1, pretrain=0.0, max_epochs=1, val_interval=1))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(("selection", "test"), [("last", 0), ("validation", 0), ("validation", 1)])
def test_the_model_is_the_last_or_the_best(bundle, tmp_path, monkeypatch, selection, test):
    """Validation is made to like the second of three epochs."""
    values = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(MeanDice, "compute", lambda self: next(values))
    data = bundle.write(tmp_path / "set", test=test)
    options = {"base": "supervised", "val_interval": 1, "iterations_per_epoch": 1}
    checkpoint, model = bundle.train(tmp_path / "whole", data, selection=selection, max_epochs=3, **options)
    assert checkpoint["best_metric"] == 0.9 and checkpoint["best_metric_epoch"] == 2
    values = iter([0.3, 0.9])
    earlier = bundle.train(tmp_path / "two", data, max_epochs=2, **options)[0]["objects"]["network"]
    right, wrong = (earlier, checkpoint["objects"]["network"])[:: 1 if selection == "validation" else -1]
    torch.testing.assert_close(dict(model), dict(right), rtol=0, atol=0)
    assert not equal(model, wrong)
    text = bundle.summary(tmp_path / "whole")
    assert f"(selection: {selection})" in text and f"Scored: `{'test' if test else 'validation'}`" in text
    assert ("optimistic" in text) == (selection == "validation" and not test)
    bundle.evaluate(tmp_path / "whole", data, base="supervised")  # the model's own rule, not that of the config
    assert bundle.summary(tmp_path / "whole") == text


def test_the_teacher_can_be_saved_and_scored(bundle, tmp_path):
    options = {"base": "mean_teacher", "max_epochs": 1, "ema_decay": 0.5}
    checkpoint, model = bundle.train(tmp_path, inference_network="teacher", **options)
    before = "teacher.average.module."
    state = checkpoint["objects"]["objective"]
    teacher = {key.removeprefix(before): value for key, value in state.items() if key.startswith(before)}
    torch.testing.assert_close(dict(model), teacher, rtol=0, atol=0)
    assert not equal(model, checkpoint["objects"]["network"]) and len(bundle.rows(tmp_path)) == 4
    assert "(selection: last), the teacher." in bundle.summary(tmp_path)


def test_evaluation_scores_the_saved_model_again(bundle, tmp_path, trained):
    """On data without unlabelled images, too."""
    for data in (None, bundle.write(tmp_path / "set", unlabeled=0)):
        bundle.evaluate(tmp_path, data, ckpt_dir=str(trained[0] / "models"))
        assert (tmp_path / "eval" / "cases.csv").read_text() == (trained[0] / "eval" / "cases.csv").read_text()
    assert not (tmp_path / "models").exists()


def test_inference_before_any_training_says_so(bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        bundle.infer(tmp_path)
    assert "model.pt: no such checkpoint. Expected a file written by an earlier run" in str(root_cause(error.value))


def test_a_misspelt_override_ends_the_run_before_it_starts(bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, ema_decays=0.9)
    assert "unknown override --ema_decays: did you mean --ema_decay?" in str(root_cause(error.value))
    assert not any(tmp_path.iterdir())


def segment(name, weights, image):
    """Logits of a volume ``(1, 1, H, W, D)`` from LPS by hand, in one pass: of its slices, or whole and from RAS."""
    if name == "transmedseg_ssl":
        network = BasicUNet(2, 1, 3, (4, 8, 16, 32, 64, 4), norm=("instance", {"affine": True}))
        image = image[0].permute(3, 0, 1, 2)
    else:
        network, image = ConvolutionalNetwork(3, 1, 3, width=4, norm="instance", d_state=2), image.flip(2, 3)
    network.load_state_dict(weights)
    with torch.no_grad():
        logits = network.eval()(image)
    return logits.permute(1, 2, 3, 0)[None] if name == "transmedseg_ssl" else logits.flip(2, 3)


# the image's size is that of one window, once it is zoomed; any number of slices where these go through one by one
SIZES = {
    "transmedseg_ssl": [(1.0, (32, 32, 5)), (0.5, (64, 64, 8)), ([0.5, 0.5, 1.0], (64, 64, 5))],
    "diffcl_ssl": [(1.0, (16, 16, 16)), (0.5, (32, 32, 32)), ([0.5, 0.5, 1.0], (32, 32, 16))],
}


@pytest.mark.parametrize("number", range(3))
def test_inference_by_hand(bundle, tmp_path, trained, number):
    """One window covers what the network sees at once; the label map lies on the grid of the file.

    And it is what the report scores.
    """
    zoom, size = SIZES[bundle.name][number]
    data = bundle.write(tmp_path / "set", size=size)
    options = {"ckpt_dir": str(trained[0] / "models"), "zoom": zoom}
    bundle.infer(tmp_path, data, **options)
    cases = ["validation_1", "validation_2"]
    files = {f"{case}_seg.nii.gz" for case in cases} | {f"overlay_{case}.png" for case in cases}
    assert {file.name for file in (tmp_path / "eval").iterdir()} == files
    voxels = []
    for item in read_dataset(data).validation:
        shown, found = nib.load(item["image"]), nib.load(tmp_path / "eval" / f"{item['case']}_seg.nii.gz")
        assert found.shape == size and found.get_data_dtype() == np.uint8
        np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)
        image = torch.from_numpy(shown.get_fdata(dtype=np.float32))[None, None]
        zoomed = tuple(round(length * factor) for length, factor in zip(size, np.broadcast_to(zoom, 3), strict=True))
        image = F.interpolate(image, zoomed, mode="area")
        image = (image - image.mean()) / image.std(correction=0)
        logits = segment(bundle.name, trained[1][1], image)
        expected = F.interpolate(logits, size, mode="trilinear")[0].argmax(0)
        expected = KeepLargestConnectedComponent(is_onehot=False)(expected[None])[0]
        assert (np.asarray(found.dataobj) != expected.numpy()).mean() < 1e-3 < (expected > 0).float().mean()
        voxels += [int((np.asarray(found.dataobj) == label).sum()) for label in (1, 2)]
    bundle.evaluate(tmp_path, data, **options)
    assert [int(row["prediction_voxels"]) for row in bundle.rows(tmp_path)] == voxels


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_model_of_a_gpu_is_used_without_one(bundle, tmp_path, trained, monkeypatch):
    (tmp_path / "models").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(trained[1][1], tmp_path / "models" / "model.pt")
    shutil.copy(trained[0] / "models" / "model.json", tmp_path / "models")
    assert b"cuda:0" in (tmp_path / "models" / "model.pt").read_bytes()
    bundle.infer(tmp_path)
    assert (tmp_path / "eval" / "validation_1_seg.nii.gz").is_file()
