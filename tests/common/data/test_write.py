import json

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from common.data.write import Case, atomic_folder, write_dataset

LABELS = {2: "right kidney", 1: "liver"}
MODALITY = {"0": "MRI"}
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 3.0, 0, -20], [0, 0, 7.5, 5], [0, 0, 0, 1]])


def case(name, seed=0, label=True, **fields):
    rng = np.random.default_rng([seed, *name.encode()])
    mask = rng.integers(0, 3, (6, 5, 4)) if label else None
    return Case(name, rng.uniform(0, 255, (6, 5, 4)), mask, AFFINE, **fields)


def everything(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_what_is_written_is_what_the_reader_and_the_check_expect(tmp_path):
    cases = [case("a"), case("b", domain="scanner 1")]
    folder = write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=cases, validation=[case("c")],
                           test=[case("d", label=False)], unlabeled=[case("e")], folds=[["a"], ["b"]],
                           extra={"licence": "CC0"})
    found = read_dataset(folder)
    check_dataset(found)
    assert [i["case"] for i in found.training + found.validation + found.test + found.unlabeled] == list("abcde")
    assert found.labels == {1: "liver", 2: "right kidney"} and found.folds == [["a"], ["b"]]
    assert found.training[1]["domain"] == "scanner 1" and "domain" not in found.training[0]
    image, label = nib.load(found.training[0]["image"]), nib.load(found.training[0]["label"])
    assert image.get_data_dtype() == label.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.dataobj, np.floor(cases[0].image + 0.5))
    np.testing.assert_array_equal(label.dataobj, cases[0].label)
    for grid in (image.affine, label.affine, image.header.get_qform()):
        np.testing.assert_allclose(grid, AFFINE, atol=1e-5)
    index = json.loads((folder / "dataset.json").read_text())
    assert index["licence"] == "CC0" and index["numTraining"] == 2 and index["numTest"] == 1
    assert index["labels"] == {"0": "background", "1": "liver", "2": "right kidney"}


def test_labels_of_unlabelled_cases_are_not_written(tmp_path):
    folder = write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[case("a")], unlabeled=[case("e")])
    assert [p.name for p in (folder / "labels").iterdir()] == ["a.nii.gz"]


def test_other_types_are_kept(tmp_path):
    one = Case("ct", np.array([[[-1000.4, 1500.0]]]), np.array([[[0, 1]]]))
    folder = write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[one], dtype=np.int16)
    image = nib.load(folder / "images" / "ct.nii.gz")
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.dataobj, [[[-1000, 1500]]])


def test_same_input_same_bytes(tmp_path, monkeypatch):
    first = write_dataset(tmp_path / "one", "set", MODALITY, LABELS, training=[case("a")])
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = write_dataset(tmp_path / "two", "set", MODALITY, LABELS, training=[case("a")])
    assert everything(first) == everything(second) and len(everything(first)) == 3
    other = write_dataset(tmp_path / "three", "set", MODALITY, LABELS, training=[case("a", seed=1)])
    assert everything(first)["images/a.nii.gz"] != everything(other)["images/a.nii.gz"]


def test_a_generation_that_breaks_leaves_nothing(tmp_path):
    def killed():
        yield case("a")
        assert not (tmp_path / "set").exists(), "the folder appeared before it was whole"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=killed())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="set exists already"):
        write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[case("a")])
    assert [p.name for p in tmp_path.rglob("*")] == ["set", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert (write_dataset(tmp_path / "empty", "set", MODALITY, LABELS, training=[case("a")]) / "dataset.json").is_file()


def test_a_folder_that_another_run_made_meanwhile_is_kept(tmp_path):
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "set") as root:
        root.mkdir()
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "theirs.txt").write_text("theirs")
    assert [p.name for p in tmp_path.rglob("*")] == ["set", "theirs.txt"]


def test_every_problem_is_listed_and_nothing_written(tmp_path):
    blank = np.zeros((2, 2, 2))
    bad = [Case("nan", np.full((2, 2, 2), np.nan), blank), Case("bright", blank + 300, blank),
           Case("shape", blank, blank[:1]), Case("value", blank, blank + 7), Case("../up", blank, blank),
           Case("twice", blank, blank), Case("twice", blank, blank), Case("bare", blank)]
    with pytest.raises(ValueError) as caught:
        write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=bad, folds=[["a", "twice"], ["twice"]],
                      extra={"labels": {}})
    text = str(caught.value)
    for part in ("nan (training): 8 voxels are NaN", "bright (training): intensities 300..300 do not fit uint8",
                 "shape (training): its label has the shape (1, 2, 2)", "value (training): label values [7.0]",
                 "../up (training): its name", "twice (training): there are two", "bare (training): it has no label",
                 "folds: a is no case", "folds: twice is listed twice", "extra: 'labels'"):
        assert part in text, part
    assert text.count("\n") == 10 and list(tmp_path.iterdir()) == []
