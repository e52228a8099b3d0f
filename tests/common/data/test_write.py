import json

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset, read_volume
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


def test_scans_that_share_a_case(tmp_path):
    two = [case("p1_a", case="p1"), case("p1_b", case="p1", domain="east")]
    folder = write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[*two, case("c")], folds=[["p1"], ["c"]])
    found = read_dataset(folder)
    assert [(i["case"], i.get("domain")) for i in found.training] == [("p1", None), ("p1", "east"), ("c", None)]
    assert found.training[1]["image"].endswith("p1_b.nii.gz") and found.folds == [["p1"], ["c"]]


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


# --- photographs ---------------------------------------------------------------------------------------------------


def photograph(name, colour=True, label=True, **fields):
    rng = np.random.default_rng(list(name.encode()))
    image = rng.integers(0, 256, (7, 5, 3) if colour else (7, 5), dtype=np.uint8)
    return Case(name, image, rng.integers(0, 3, (7, 5)) if label else None, **fields)


def test_photographs_are_png_that_the_check_accepts(tmp_path):
    cases = [photograph("a.1", domain="east"), photograph("b", domain="west")]
    unlabelled = [photograph("e"), photograph("f", label=False)]
    folder = write_dataset(tmp_path / "set", "set", {"0": "photograph"}, LABELS, training=cases, unlabeled=unlabelled,
                           test=[photograph("d", label=False)], folds=[["a.1"], ["b"]])
    assert sorted(everything(folder)) == ["dataset.json", *(f"images/{n}.png" for n in ("a.1", "b", "d", "e", "f")),
                                          "labels/a.1.png", "labels/b.png"]
    found = read_dataset(folder)
    check_dataset(found, channels=3)
    assert [item["case"] for item in found.training] == ["a.1", "b"] and found.folds == [["a.1"], ["b"]]
    assert [item["domain"] for item in found.training] == ["east", "west"]
    for item, case in zip(found.training, cases, strict=True):
        np.testing.assert_array_equal(read_volume(item["image"])[0][:, :, 0], case.image)
        np.testing.assert_array_equal(read_volume(item["label"])[0][:, :, 0], case.label)
    assert json.loads((folder / "dataset.json").read_text())["tensorImageSize"] == "2D"


def test_grey_photographs_are_rounded_and_the_same_bytes_each_time(tmp_path):
    case = Case("a", np.array([[0.4, 254.6], [1.5, 3.0]]), np.array([[0, 1], [2, 0]]))
    first, second = (write_dataset(tmp_path / name, "set", MODALITY, LABELS, training=[case]) for name in "xy")
    assert everything(first) == everything(second)
    check_dataset(read_dataset(first))
    np.testing.assert_array_equal(read_volume(str(first / "images/a.png"))[0][..., 0], [[0, 255], [2, 3]])


def test_volumes_stay_volumes(tmp_path):
    three = Case("three_slices", np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8))
    unlabelled = Case("unlabelled", np.zeros((4, 4, 3)))
    folder = write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[three], unlabeled=[unlabelled])
    assert (folder / "images" / "three_slices.nii.gz").is_file()
    assert json.loads((folder / "dataset.json").read_text())["tensorImageSize"] == "3D"


def test_every_problem_of_photographs_is_listed(tmp_path):
    blank = np.zeros((4, 4), np.uint8)
    bad = [photograph("good"), Case("four", np.zeros((4, 4, 4)), blank), Case("size", np.zeros((4, 5, 3)), blank),
           Case("place", blank, blank, AFFINE), case("volume"), Case("value", blank, blank + 3)]
    with pytest.raises(ValueError) as caught:
        write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=bad, folds=[["good"], ["zz"]])
    text = str(caught.value)
    for part in ("four (training): its image has the shape (4, 4, 4); a photograph has (H, W) or (H, W, 3)",
                 "size (training): its label has the shape (4, 4), its image (4, 5, 3)",
                 "place (training): it is a photograph, and PNG keeps no affine",
                 "volume (training): it is a volume and the first case a photograph",
                 "value (training): label values [3]", "folds: zz is no case"):
        assert part in text, part
    assert "good (" not in text and text.count("\n") == 6 and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="PNG keeps as uint8, not int16"):
        write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[photograph("a")], dtype=np.int16)
    with pytest.raises(ValueError, match="it is a photograph and the first case a volume"):
        write_dataset(tmp_path / "set", "set", MODALITY, LABELS, training=[case("a"), photograph("b")])
