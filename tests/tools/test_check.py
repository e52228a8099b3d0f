import json
import sys

import nibabel as nib
import numpy as np
import pytest

from common.data.write import Case, write_dataset
from tools import bundles
from tools.check import check


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    preprocessing = {"_target_": "common.data.Preprocessing", "kinds": ["photographs", "scans"], "orientation": None}
    datalist = {"_target_": "common.semi_supervised.read_semi_supervised", "dataset_dir": "@dataset_dir",
                "preprocessing": "@preprocessing_def", "labelled": "@labelled", "spatial_dims": 2,
                "patch_size": "@patch_size", "need_unlabeled": "@need_unlabeled"}  # fmt: skip
    train = {"dataset_dir": "/nowhere", "labelled": None, "patch_size": [8, 8], "need_unlabeled": False,
             "preprocessing_def": preprocessing, "datalist": datalist}  # fmt: skip
    (tmp_path / "bundles" / "toy" / "configs").mkdir(parents=True)
    (tmp_path / "bundles" / "toy" / "configs" / "train.json").write_text(json.dumps(train))
    monkeypatch.setattr(bundles, "BUNDLES", tmp_path / "bundles")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return "toy"


@pytest.fixture
def folder(tmp_path):
    folder, items = tmp_path / "data", []
    folder.mkdir()
    for i in range(3):
        image, label = np.random.default_rng(i).normal(size=(6, 5, 4 + i)), np.zeros((6, 5, 4 + i), np.uint8)
        label[0], label[1] = 1, 2 * (i == 0)
        for name, voxels in ((f"{i}.nii.gz", image), (f"{i}_label.nii.gz", label)):
            nib.save(nib.Nifti1Image(voxels, np.diag([0.5, 0.5, 1 + i, 1])), folder / name)
        items.append({"image": f"{i}.nii.gz", "label": f"{i}_label.nii.gz"})
    content = {"name": "three", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "spleen"},
               "training": items[:2], "validation": items[2:]}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_summary(bundle, folder, capsys):
    check(bundle, str(folder))
    assert capsys.readouterr().out.splitlines() == [
        f"three: no problem found in {folder}",
        "  training    2 images of 2 cases", "  validation  1 images of 1 cases",
        "  label 1     liver: in 3 images", "  label 2     spleen: in 1 images", "  shape       6 x 5 x 4-6",
        "  spacing     0.5 x 0.5 x 1-3"]


@pytest.mark.parametrize("name", [
    "$__import__('os').mkdir('ran')", "@labelled", "%labelled", "a#b", "a@::b", "two words", "2024_03_01", "1001",
    "1e3", "None", "[1]", "$", "~"])  # fmt: skip
def test_the_name_of_a_folder_is_text(bundle, folder, tmp_path, monkeypatch, capsys, name):
    """Nothing in it is run, followed or read as a number."""
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / name)
    check(bundle, name)
    assert capsys.readouterr().out.startswith(f"three: no problem found in {tmp_path / name}\n")
    assert not (tmp_path / "ran").exists()


def test_a_path_with_backslashes_is_told(bundle):
    assert "dataset_dir: expected a path with /, found C:\\data" in exit_of(bundle, "C:\\data")


def test_folds_and_test_lists_are_told(bundle, folder, capsys, caplog):
    file = folder / "dataset.json"
    content = json.loads(file.read_text())
    content["training"][0]["fold"], content["training"][1]["fold"] = 1, 0
    content["testing"] = [content.pop("validation")[0]]
    file.write_text(json.dumps(content))
    check(bundle, str(folder))
    out = capsys.readouterr().out
    assert "\n  folds       2, of 1, 1 cases\n  of test     1 of 1 images have a label\n" in out
    assert f"{file}: `testing` is used as `test`." in caplog.text
    assert f"{file}: its 2 folds (`folds`, or `fold` of the items) are not read here" in caplog.text


def test_domains_are_counted(bundle, folder, capsys):
    file = folder / "dataset.json"
    content = json.loads(file.read_text())
    for item, domain in zip(content["training"] + content["validation"], ("east", "west", "east"), strict=True):
        item["domain"] = domain
    file.write_text(json.dumps(content))
    check(bundle, str(folder))
    assert "\n  domain      east: 1 training, 1 validation\n  domain      west: 1 training\n" in capsys.readouterr().out
    del content["training"][1]["domain"]
    file.write_text(json.dumps(content))
    check(bundle, str(folder))
    assert "\n  domain      (no domain): 1 training\n" in capsys.readouterr().out


def test_photographs(bundle, tmp_path, capsys):
    write_photographs(tmp_path / "eyes")
    text = exit_of(bundle, str(tmp_path / "eyes"))
    assert "expected a grey image (1 channel), found a colour image (3 channels)" in text
    check(bundle, str(tmp_path / "eyes"), overrides={"preprocessing_def::channels": 3})
    assert capsys.readouterr().out.splitlines() == [
        f"eyes: no problem found in {tmp_path / 'eyes'}", "  training    2 images of 2 cases",
        "  domain      east: 1 training", "  domain      west: 1 training", "  label 1     disc: in 2 images",
        "  shape       8 x 6-7 x 1", "  spacing     none (photographs: distances are in pixels)"]


def write_photographs(folder):
    cases = []
    for i, domain in enumerate(("east", "west")):
        image = np.random.default_rng(i).integers(0, 256, (8, 6 + i, 3), dtype=np.uint8)
        cases.append(Case(f"c{i}", image, (image[..., 0] > 99).astype(np.uint8), domain=domain))
    write_dataset(folder, "eyes", {"0": "photograph"}, {1: "disc"}, training=cases)


def exit_of(bundle, folder, overrides=None, **options):
    with pytest.raises(SystemExit) as caught:
        check(bundle, folder, overrides=overrides, **options)
    return caught.value.code  # a text: printed to stderr by Python, exit status 1


def test_bad_data_ends_with_the_error_text_alone(bundle, folder, capsys):
    (folder / "1.nii.gz").write_bytes(b"")
    text = exit_of(bundle, str(folder))
    assert text.startswith("1 problem in ") and "1, " in text and "expected a readable image" in text
    assert capsys.readouterr().out == ""


def test_bad_dataset_json(bundle, tmp_path):
    assert "expected a file, found none" in exit_of(bundle, str(tmp_path))


def test_the_options_of_the_training(bundle, folder, capsys):
    """The check is that of the training, so what a bundle asks of its data beyond readable files is in it."""
    assert "expected 4 axes, the last of 2 channels" in exit_of(bundle, str(folder), {"preprocessing_def::channels": 2})
    assert "expected unlabelled cases, found none" in exit_of(bundle, str(folder), {"need_unlabeled": True})
    assert "patch_size: expected 2 lengths" in exit_of(bundle, str(folder), {"patch_size": [8, 8, 8]})
    file = bundles.BUNDLES / bundle / "configs" / "train.json"
    unknown = exit_of(bundle, str(folder), {"labeled": 1, "x::y": 2, "datalist::labelled": 1})
    assert unknown == f"expected keys of {file}, found labeled, x::y"
    assert capsys.readouterr().out == ""
    check(bundle, str(folder), overrides={"labelled": 1, "need_unlabeled": True})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "  training    1 images of 1 cases" and lines[3] == "  unlabeled   1 images of 1 cases"


def test_the_config_files_of_the_training(bundle, folder, tmp_path, capsys):
    """A second file changes what the first says, and an option both."""
    train, more = bundles.BUNDLES / bundle / "configs" / "train.json", tmp_path / "more.json"
    more.write_text(json.dumps({"patch_size": [8, 8, 8], "datalist::spatial_dims": 3}))
    check(bundle, str(folder), [str(train), str(more)])
    assert "three: no problem found" in capsys.readouterr().out
    assert "patch_size: expected 3 lengths" in exit_of(bundle, str(folder), {"patch_size": [8, 8]},
                                                       config_file=[str(train), str(more)])  # fmt: skip
    text = exit_of(bundle, str(folder), config_file="nowhere.json")
    assert text == "config_file: expected files, found none at nowhere.json"
    more.write_text('{"labelled": 1, "labelled": 2}')
    text = exit_of(bundle, str(folder), config_file=[str(train), str(more)])
    assert text == f"{more}: expected each key once in an object, found `labelled` twice; remove one"


def test_an_error_of_the_configuration_itself_keeps_its_traceback(bundle, folder):
    file = bundles.BUNDLES / bundle / "configs" / "train.json"
    file.write_text(file.read_text().replace("common.semi_supervised", "common.nothing"))
    with pytest.raises(Exception, match="common.nothing"):
        check(bundle, str(folder))


def test_unknown_bundle_is_told_first(bundle, tmp_path):
    assert exit_of("toyy", str(tmp_path)) == "bundle: expected one of toy, found toyy"
