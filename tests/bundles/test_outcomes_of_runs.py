"""What comes of models, options and folders that no run can use: one row for each kind, in all bundles.

Each is refused before a label map is written, and the text says what was expected, found, and to be done.
"""

import json
import re

import pytest
import torch
from monai.bundle import ckpt_export

from common.engine import load_checkpoint, root_cause, save_atomic
from common.engine.report_owner import claim_report


def no_weights(models):
    (models / "model.pt").unlink()


def no_facts(models):
    (models / "model.json").unlink()


def no_model(models):
    no_weights(models)
    no_facts(models)


def text_as_weights(models):
    (models / "model.pt").write_bytes(b"garbage")


def half_weights(models):
    (models / "model.pt").write_bytes((models / "model.pt").read_bytes()[:999])


def text_as_facts(models):
    (models / "model.json").write_text("{garbage")


def fact_missing(models):
    facts = json.loads((models / "model.json").read_text())
    del facts["labels"]
    (models / "model.json").write_text(json.dumps(facts))


def changed_weights(change):
    def spoil(models):
        state = load_checkpoint(models / "model.pt")
        save_atomic({key: change(value) for key, value in state.items()}, models / "model.pt")

    return spoil


NAN = changed_weights(lambda x: torch.full_like(x, torch.nan) if x.is_floating_point() else x)
OTHER = changed_weights(lambda x: torch.cat([x, x]) if x.ndim else x)

# name: what is done to the folder of a model, what an inference says
MODELS = {
    "no model": (no_model, "model.pt: expected a trained model, found no such file; train first"),
    "no model.pt": (no_weights, "model.pt: no such checkpoint. Expected a file written by an earlier run; pass"),
    "no model.json": (no_facts, "model.json: expected what the training wrote of its model.*no such file.*Copy"),
    "a text as model.pt": (text_as_weights, r"model.pt \(.*not a readable checkpoint.*It is damaged.*Copy it again"),
    "half a model.pt": (half_weights, r"model.pt \(.*not a readable checkpoint.*It is damaged.*Copy it again"),
    "a text as model.json": (text_as_facts, "model.json: expected the record of a training.*found .*copy it"),
    "model.json without labels": (fact_missing, "model.json: expected the record of a training.*found no labels; copy"),
    "NaN weights": (NAN, "(model.pt|images).*expected finite .*found.*"),
    "weights of another network": (OTHER, "model.pt: expected the weights of the configured.*found those of another"),
}  # fmt: skip

# name: what a training and an inference are given, what both say
RUNS = {
    "a file as output": ({"output_dir": "FILE"}, OSError, "expected a folder to write into, found a file there"),
    "below a file": ({"output_dir": "FILE/eval"}, OSError, "expected a folder to write into, found a file there"),
    "output that takes nothing": ({"output_dir": "/proc/eval"}, OSError, "/proc/eval: expected a folder to write into, "
                                                                         "found .*; choose another folder"),
    "# in the output": ({"output_dir": "FOLDER/a#b"}, ValueError, "expected a folder to write into without #.*choose"),
    "a number as output": ({"output_dir": 20240301}, ValueError, "expected a path, found 20240301.*write it with"),
    "misspelt override": ({"output_dirr": "x"}, ValueError, "override --output_dirr: did you mean --output_dir"),
    "misspelt part": ({"preprocessing_def::chanels": 2}, ValueError, "chanels(: did|`.*: did) you mean .*channels"),
    "unknown _target_": ({"network_def::_target_": "common.networks.VNett"}, Exception, "common.networks.VNett"),
}  # fmt: skip


@pytest.mark.parametrize("row", MODELS)
def test_models(row, doors, six_scans, tmp_path):
    spoil, text = MODELS[row]
    models = doors.save_model(tmp_path / "models", six_scans)
    spoil(models)
    with pytest.raises(Exception) as caught:  # noqa: B017  whatever a user would see
        doors.infer([str(six_scans / "images" / "b2.nii.gz")], tmp_path / "out", models)
    cause = root_cause(caught.value)
    assert isinstance(cause, (ValueError, FileNotFoundError)), repr(cause)
    assert re.search(text, str(cause), re.DOTALL), str(cause)
    assert not list(tmp_path.glob("out/*"))


def test_weights_that_are_not_finite_are_not_exported(doors, six_scans, tmp_path, restored):
    """MONAI loads them itself, and asks nothing."""
    models = doors.save_model(tmp_path / "models", six_scans)
    NAN(models)
    support = {"support_dir": str(six_scans), "adaptation::steps": 1} if doors.name == "apscl_fewshot" else {}
    with pytest.raises(ValueError, match=r"expected finite weights, found NaN or Inf in .* tensors, such as .*; use"):
        ckpt_export("network_def", str(tmp_path / "model.ts"), str(models / "model.pt"), doors.config("metadata")[0],
                    doors.config("inference"), ckpt_dir=str(models), **support)  # fmt: skip
    assert not (tmp_path / "model.ts").exists()


@pytest.mark.parametrize("config", ["train", "inference"])
@pytest.mark.parametrize("row", RUNS)
def test_runs(row, config, doors, six_scans, tmp_path, restored):
    given, kind, text = RUNS[row]
    (tmp_path / "file").touch()
    places = {"FILE": str(tmp_path / "file"), "FOLDER": str(tmp_path)}
    for name, place in places.items():
        given = {key: value.replace(name, place) if isinstance(value, str) else value for key, value in given.items()}
    with pytest.raises(Exception) as caught:  # noqa: B017  whatever a user would see
        images = {"images": [str(six_scans / "images" / "b2.nii.gz")]} if config == "inference" else {}
        doors.run(config, data=six_scans, output=tmp_path / "out", **images | given)
    cause = root_cause(caught.value)
    assert isinstance(cause, kind), repr(cause)
    assert re.search(text, str(cause), re.DOTALL), str(cause)


@pytest.mark.parametrize("config", ["train", "evaluate"])
def test_the_report_of_another_model_is_not_replaced(config, doors, six_scans, tmp_path, restored):
    """Refused before anything is trained or scored; the folder is as it was."""
    out = tmp_path / "out"
    out.mkdir()
    claim_report(out, tmp_path / "other" / "model.pt")
    (out / "cases.csv").write_text("of another model")
    options = doors.SIZES[doors.name] | {"ckpt_dir": str(tmp_path / "models")} if config == "train" else {}
    with pytest.raises(Exception) as caught:  # noqa: B017  whatever a user would see
        doors.run(config, data=six_scans, output=out, **doors.TINY | options)
    cause = root_cause(caught.value)
    text = f"{out / 'cases.csv'}: expected no report there, or one of .*model.pt, found that of another model, "
    assert isinstance(cause, ValueError) and re.match(f"{text}{tmp_path / 'other' / 'model.pt'}. Give", str(cause))
    assert (out / "cases.csv").read_text() == "of another model"
    assert not list(tmp_path.glob("models/*"))
    assert {file.name for file in out.iterdir()} == {"cases.csv", ".report.json"}
