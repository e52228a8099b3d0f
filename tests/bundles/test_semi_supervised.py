"""What the semi-supervised bundles have in common as their users start them: tiny trainings, reports, segmentations."""

import json
import re
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
from common.engine import root_cause
from diffcl_ssl.network import ConvolutionalNetwork

pytestmark = pytest.mark.usefixtures("restored")
OBJECTS = {"network", "objective", "optimizer", "lr_scheduler"}
# of each bundle: settings with which everything that it remembers takes part within twelve steps; what the objective's
# state holds, with the value of each after the first half of these and after all, where it is known; the least Dice
RUNS = {
    "transmedseg_ssl": {
        # two epochs lie in the first stage of BCP, the other two cross into the second: round(0.35 * 24) = 8
        "options": {"base::pretrain": 0.35},
        "state": {"teacher.average.n_averaged": (0, 12 - 8 + 1), "augmentation.teacher.count": None}, "dice": 0.7,
    },
    "diffcl_ssl": {
        "options": {"eta": 1.0, "propagation::confidence": 0.4, "propagation::loss::min_bank": 1},
        "state": {"base.propagation.bank.filled": None}, "dice": 0.25,  # the wall alone everywhere: 0.19
    },
}  # fmt: skip
# of each bundle: what to change of a run that is resumed, and how that is told
CHANGES = {
    "transmedseg_ssl": [
        ({"network_def::width": 6}, ["model.network.width was 4 and is now 6"]),
        ({"zoom": 0.5, "labelled": 1}, ["model.preprocessing.zoom was 1.0 and is now 0.5",
                                        "training_2.nii.gz\"] and is now [\"training_1.nii.gz\"]"]),
        ({"tsa_strength": 0.5}, ["objective.augmentation.strength was 0.25 and is now 0.5"]),
        ({"feature_augmentation::loss::reduction": "class"},
         ['objective.augmentation.loss.reduction was "mean" and is now "class"']),
        ({"overlay": ["uamt"]}, ['objective.base.class was "common.semi_supervised.copy_paste.CopyPaste" and is now '
                                 '"common.semi_supervised.mean_teacher.MeanTeacherConsistency"',
                                 "objective.base.passes was null and is now 4"]),
    ],
    "diffcl_ssl": [
        ({"network_def::width": 6}, ["model.network.width was 4 and is now 6"]),
        ({"zoom": [0.5, 0.5, 1.0]}, ["model.preprocessing.zoom was 1.0 and is now [0.5, 0.5, 1.0]"]),
        ({"propagation::loss::temperature": 0.2},
         ["objective.base.propagation.loss.temperature was 0.1 and is now 0.2"]),
        ({"overlay": ["bcp"]}, ['objective.base.class was "diffcl_ssl.objective.CrossSupervision" and is now '
                                '"common.semi_supervised.copy_paste.CopyPaste"',
                                "model.network.mamba_stages was [4, 5] and is now []"]),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(bundle, tmp_path_factory):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, bundle.train(folder, pictures=1, **RUNS[bundle.name]["options"])


def state_of(bundle, checkpoint):
    """What RUNS names."""
    state = checkpoint["objects"]["objective"]
    return {name: int(state[name].sum()) for name in RUNS[bundle.name]["state"]}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def told(capsys, text):
    """The lines that begin so, of those printed since the last call."""
    return re.findall(rf"^\S+ (?:INFO|WARNING) ({text}.*)$", capsys.readouterr().err, re.MULTILINE)


# --- training ---


def test_resume_from_the_command_line_equals_one_run_bit_for_bit(bundle, trained, tmp_path, start_bundle):
    """As a user types it."""
    runs = RUNS[bundle.name]
    first = bundle.train(tmp_path, max_epochs=2, **runs["options"])
    assert (first[0]["epoch"], first[0]["iteration"]) == (2, 6)
    options = bundle.options(tmp_path, resume=True, num_workers=2, **runs["options"])
    threads = torch.get_num_threads()
    with start_bundle("--config_file", *bundle.config("train"), cwd=tmp_path, threads=threads, **options) as process:
        output = process.stdout.read()
    assert process.returncode == 0 and "resumed after epoch 2 of 4" in output, output
    halves = bundle.load(tmp_path)
    assert (halves[0]["epoch"], halves[0]["iteration"]) == (4, 12)
    counts = [state_of(bundle, each[0]) for each in (first, halves)]
    for name, known in runs["state"].items():
        found = tuple(count[name] for count in counts)
        assert found == known if known else found[0] < found[1]
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    assert not equal(first[1], halves[1])


def test_a_run_is_not_resumed_with_other_settings(bundle, trained, tmp_path):
    """Of the model, of the objective or of the data; what both values are is told."""
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    for changes, texts in CHANGES[bundle.name]:
        options = RUNS[bundle.name]["options"] if "overlay" not in changes else {}
        with pytest.raises(RuntimeError) as error:
            bundle.train(tmp_path, resume=True, max_epochs=5, **options | changes)
        found = str(root_cause(error.value))
        assert "expected the settings of the run that is resumed, found others: " in found
        assert not [text for text in texts if text not in found], found
    assert bundle.load(tmp_path)[0]["epoch"] == 4


def test_a_run_leaves_a_model_a_report_and_a_log(bundle, trained):
    folder, (checkpoint, model) = trained
    files = {file.name for file in (folder / "eval").iterdir()}
    assert {"cases.csv", "summary.md", "overlay_validation_1.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("overlay_") for name in files) == 1
    assert {file.name for file in (folder / "models").iterdir()} == {"checkpoint.pt", "model.pt", "model.json"}
    assert set(checkpoint["objects"]) == OBJECTS
    torch.testing.assert_close(dict(model), dict(checkpoint["objects"]["network"]), rtol=0, atol=0)  # the student's
    rows = bundle.cases(folder)
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, name) for case in ("validation_1", "validation_2") for name in ("wall", "cavity")]  # fmt: skip
    assert np.mean([float(row["dice"]) for row in rows]) > RUNS[bundle.name]["dice"]
    assert "Scored: `validation`, 2 cases" in bundle.summary(folder) and 0 <= checkpoint["best_metric"] <= 1


def test_supervised_training_needs_no_unlabelled_case(bundle, tmp_path):
    """And those that are there do not change it."""
    options = {"overlay": ["supervised"], "max_epochs": 1}
    data = bundle.write(tmp_path / "set", unlabeled=0)
    without, beside = bundle.train(tmp_path / "without", data, **options), bundle.train(tmp_path / "beside", **options)
    torch.testing.assert_close(without, beside, rtol=0, atol=0)
    for overlay in ([], ["mean_teacher"], ["uamt"]):
        with pytest.raises(RuntimeError) as error:
            bundle.train(tmp_path / "other", data, overlay)
        text = str(root_cause(error.value))
        assert "expected unlabelled cases, found none" in text and "(supervised.json)" in text
        assert not [file for file in (tmp_path / "other").rglob("*") if file.is_file()]


def test_labels_of_unlabelled_cases_are_never_opened(bundle, tmp_path):
    """Neither of those in `unlabeled` nor of those that `labelled` makes unlabelled."""
    found, options = [], {"labelled": 1, "max_epochs": 1, "val_interval": 1}
    if bundle.name == "transmedseg_ssl":
        options["base::pretrain"] = 0.0
    for name, text in (("intact", None), ("damaged", b"no label map")):
        data = bundle.write(tmp_path / name / "set", training=3)
        file = data / "dataset.json"
        content = json.loads(file.read_text())
        for item in content["unlabeled"]:
            item["label"] = f"labels/{Path(item['image']).name}"
        file.write_text(json.dumps(content))
        for item in content["training"][1:] + content["unlabeled"]:
            (data / item["label"]).write_bytes(text or (data / content["training"][0]["label"]).read_bytes())
        found.append(bundle.train(tmp_path / name, data, **options))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize(("selection", "test"), [("last", 0), ("validation", 0), ("validation", 1)])
def test_the_model_is_the_last_or_the_best(bundle, tmp_path, monkeypatch, selection, test):
    """Validation is made to like the second of three epochs."""
    values = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(MeanDice, "compute", lambda self: next(values))
    data = bundle.write(tmp_path / "set", test=test)
    options = {"overlay": ["supervised"], "val_interval": 1, "iterations_per_epoch": 1}
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
    other = {"last": "validation", "validation": "last"}[selection]
    bundle.evaluate(tmp_path / "whole", data, selection=other)  # the model's own rule, not that of the config
    assert bundle.summary(tmp_path / "whole") == text


def test_a_misspelt_override_ends_the_run_before_it_starts(bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, warmup_step=9)
    assert "unknown override --warmup_step: did you mean --warmup_steps?" in str(root_cause(error.value))
    assert not any(tmp_path.iterdir())


# --- a trained model ---


def test_evaluation_scores_the_saved_model_again(bundle, tmp_path, trained):
    """On data without unlabelled images, too."""
    for data in (None, bundle.write(tmp_path / "set", unlabeled=0)):
        bundle.evaluate(tmp_path, data, ckpt_dir=str(trained[0] / "models"))
        assert (tmp_path / "eval" / "cases.csv").read_text() == (trained[0] / "eval" / "cases.csv").read_text()
    assert not (tmp_path / "models").exists()


# bundle, overlays, other settings: all that makes another model, each in a size of seconds
MODELS = [
    ("transmedseg_ssl", [], {"network_def::width": 6, "patch_size": [32, 48], "zoom": [0.8, 0.8, 1.0], "cleanup": [],
                             "preprocessing_def::intensity": ["percentiles"]}),
    ("transmedseg_ssl", ["paper"], {"network_def::width": 5, "patch_size": [32, 32]}),
    ("transmedseg_ssl", ["volume"], {"network_def::width": 4, "patch_size": [32, 16, 16], "zoom": [0.5, 0.5, 1.0]}),
    ("transmedseg_ssl", ["volume", "volume_paper"], {"network_def::width": 4, "patch_size": [16, 16, 16]}),
    ("diffcl_ssl", [], {"network_def::width": 6, "patch_size": [16, 32, 16], "zoom": 0.8,
                        "cleanup": ["largest_together", "fill_holes"]}),
    ("diffcl_ssl", ["paper"], {"network_def::width": 4, "patch_size": [16, 16, 16], "network_def::d_state": 3}),
    ("diffcl_ssl", ["supervised"], {"network_def::width": 4, "patch_size": [16, 16, 16]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overlays", "options"), MODELS, ids=lambda value: "+".join(value) or "plain"
                         if isinstance(value, list) else str(value) if isinstance(value, str) else "")  # fmt: skip
def test_evaluation_and_inference_of_any_model_need_no_overrides(
    tiny_bundle, tmp_path, capsys, name, overlays, options
):
    """They score and segment with the network, the sizes and the cleaning of the training, and have nothing to tell."""
    bundle = tiny_bundle(name)
    short = {"max_epochs": 1, "iterations_per_epoch": 2, "val_interval": 1, "batch_size": 2}
    bundle.run(["train", *overlays], tmp_path, **{"pictures": 0, "distances": False} | short | options)
    report = (tmp_path / "eval" / "cases.csv").read_text()
    (tmp_path / "eval" / "cases.csv").unlink()
    capsys.readouterr()
    bundle.evaluate(tmp_path)
    assert (tmp_path / "eval" / "cases.csv").read_text() == report
    bundle.infer(tmp_path)
    assert told(capsys, "(?:weights|not) ") == [f"weights from {tmp_path / 'models' / 'model.pt'}"] * 2
    for row in bundle.cases(tmp_path):
        found = np.asarray(nib.load(tmp_path / "eval" / f"{row['case']}_seg.nii.gz").dataobj)
        label = {"wall": 1, "cavity": 2}[row["structure"]]
        assert (found == label).sum() == int(row["prediction_voxels"])


def test_what_inference_does_otherwise_than_the_training_is_said_in_one_line(bundle, tmp_path, trained, capsys):
    places = {"ckpt_dir": str(trained[0] / "models")}
    bundle.infer(tmp_path, **places)
    assert not told(capsys, "not as in")
    bundle.infer(tmp_path, cleanup=[], **{"preprocessing_def::zoom": 0.5}, **places)
    text = f"not as in {trained[0] / 'models' / 'model.json'}: preprocessing.zoom 0.5 (there 1.0); cleanup [] (there"
    assert told(capsys, "not as in") == [f'{text} ["largest"])']


def test_a_model_without_its_record_is_refused(bundle, tmp_path, trained):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    (tmp_path / "models" / "model.json").unlink()
    for use in (bundle.infer, bundle.evaluate):
        with pytest.raises(RuntimeError) as error:
            use(tmp_path)
        text = str(root_cause(error.value))
        assert text.startswith(f"{tmp_path / 'models' / 'model.json'}: expected what the training wrote of its model")
        assert "model.pt alone does not say what it is, and is not run on defaults" in text
    assert not list(tmp_path.rglob("*.nii.gz")) and not list(tmp_path.rglob("cases.csv"))


def test_inference_before_any_training_says_so(bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        bundle.infer(tmp_path)
    text = "model.pt: expected a trained model, found no such file; train first, or give the folder of a training"
    assert text in str(root_cause(error.value))


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
    bundle.save(tmp_path, data, weights=trained[1][1], zoom=zoom, **bundle.sizes)
    bundle.infer(tmp_path, data)
    cases = ["validation_1", "validation_2"]
    files = {f"{case}_seg.nii.gz" for case in cases} | {f"found_{case}.png" for case in cases}
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
    bundle.evaluate(tmp_path, data)
    assert [int(row["prediction_voxels"]) for row in bundle.cases(tmp_path)] == voxels


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
