import json

import pytest

from common.data.dataset import DataError, read_dataset

GOOD = {
    "name": "toy", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "3": "spleen"},
    "description": "extra keys of Decathlon are fine", "tensorImageSize": "3D", "numTraining": 2, "numTest": 0,
    "training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"},
                 {"image": "images/b.nii", "label": "labels/b.nii", "case": "patient_b", "domain": "x"}],
    "validation": [{"image": "images/c.nii.gz", "label": "labels/c.nii.gz"}],
    "unlabeled": ["images/d.nii.gz", {"image": "images/e.nii.gz", "label": "labels/e.nii.gz"}],
    "folds": [["a"], ["patient_b"]],
}


def write(folder, **changes):
    content = {k: v for k, v in {**GOOD, **changes}.items() if v is not ...}  # ... leaves a key out
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def error_of(folder, **changes):
    with pytest.raises(DataError) as caught:
        read_dataset(write(folder, **changes))
    return str(caught.value)


def pair(name, **more):
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz", **more}


def test_good_set(tmp_path):
    dataset = read_dataset(str(write(tmp_path)))
    assert (dataset.directory, dataset.name, dataset.modality) == (tmp_path, "toy", {"0": "MRI"})
    assert dataset.labels == {1: "liver", 3: "spleen"} and dataset.channels is None
    assert dataset.training[0] == {"case": "a", "image": str(tmp_path / "images/a.nii.gz"),
                                   "label": str(tmp_path / "labels/a.nii.gz")}
    assert dataset.training[1] == {"case": "patient_b", "domain": "x", "image": str(tmp_path / "images/b.nii"),
                                   "label": str(tmp_path / "labels/b.nii")}
    assert [item["case"] for item in dataset.validation] == ["c"]
    assert dataset.test == []
    assert dataset.folds == [["a"], ["patient_b"]]


def test_several_entries_of_modality_are_channels(tmp_path):
    assert read_dataset(write(tmp_path, modality={"0": "T1", "1": "T2"})).channels == 2


def test_unlabelled_items_never_hold_a_label(tmp_path):
    assert read_dataset(write(tmp_path)).unlabeled == [
        {"case": "d", "image": str(tmp_path / "images/d.nii.gz")},
        {"case": "e", "image": str(tmp_path / "images/e.nii.gz")}]


def test_test_items_may_lack_a_label(tmp_path):
    items = read_dataset(write(tmp_path, test=["./imagesTs/t.nii.gz", pair("u")])).test
    assert items[0] == {"case": "t", "image": str(tmp_path / "imagesTs/t.nii.gz")}
    assert items[1]["label"] == str(tmp_path / "labels/u.nii.gz")


def test_absolute_paths_stay(tmp_path):
    item = {"image": "/far/away/x.nii.gz", "label": "/far/away/y.nii.gz"}
    assert read_dataset(write(tmp_path, training=[item], folds=[])).training == [{"case": "x", **item}]


def test_images_of_one_patient_share_its_case(tmp_path):
    items = [pair("p1_frame1", case="p1"), pair("p1_frame2", case="p1")]
    assert [x["case"] for x in read_dataset(write(tmp_path, training=items, folds=[["p1"]])).training] == ["p1", "p1"]


@pytest.mark.parametrize("changes, expected", [
    ({"name": ...}, "`name`: expected a text, found no such key"),
    ({"modality": ...}, "`modality`: expected an object"),
    ({"modality": {}}, "`modality`: expected one entry a channel, found none"),
    ({"labels": ["liver"]}, "`labels`: expected an object {...}, found a list"),
    ({"labels": {"0": "background"}}, "`labels`: expected a label besides the background"),
    ({"labels": {"liver": 1}}, '`labels`: expected entries such as "1": "liver", found "liver": 1'),
    ({"labels": {"0": "background", "1": "liver", "-1": "x"}}, 'found "-1": "x"'),
    ({"labels": {"1": "liver", "1001": "cortex"}}, 'expected ids up to 255, found "1001": "cortex"; renumber it'),
    ({"labels": {"1": "liver", "01": "spleen"}}, 'expected each id once, found 1 again as "01"'),
    ({"training": ..., "train": []}, "`train`: expected the key `training`, found this spelling"),
    ({"unlabeled": ..., "unlabelled": []}, "`unlabelled`: expected the key `unlabeled`, found this spelling"),
    ({"training": [pair("a"), {"case": "patient_b"}]}, 'training[1]: expected {"image": "...", "label": "..."}'),
    ({"validation": {}}, "`validation`: expected a list [...], found an object"),
    ({"validation": ["images/c.nii.gz"]}, 'validation[0]: expected {"image": "...", "label": "..."}, found "images/c'),
    ({"validation": [{"image": "images/c.nii.gz"}]}, "or move it to `unlabeled` if it has no label"),
    ({"test": [{"image": "t.nii", "label": None}]}, "test[0]: expected"),
    ({"unlabeled": [3]}, 'unlabeled[0]: expected {"image": "..."} or the path of an image, found 3'),
    ({"unlabeled": [""]}, 'unlabeled[0]: expected {"image": "..."} or the path of an image, found ""'),
    ({"validation": [pair("c", case=7)]}, 'validation[0]: expected a text for case, found "case": 7; put it in quotes'),
    ({"folds": [["a", "zz"]]}, "folds[0]: expected cases of `training`, found zz"),
    ({"folds": [["c"]]}, "folds[0]: expected cases of `training`, found c"),
    ({"folds": [["a"], ["a"]]}, "folds[1]: expected each case in one fold, found a in folds[0] too"),
    ({"folds": ["a"]}, 'folds[0]: expected a list of case ids, found "a"'),
    ({"validation": [pair("a")]}, "a: expected in one split, found in training and validation"),
    ({"unlabeled": ["elsewhere/c.nii"]}, "c: expected in one split, found in validation and unlabeled"),
    ({"validation": [pair("c"), pair("c", case="other")]}, "expected once, found twice in validation"),
    ({"validation": [pair("x/c"), pair("y/c")]}, 'give each of them its own "case"'),
])
def test_one_problem(tmp_path, changes, expected):
    text = error_of(tmp_path, **changes)
    assert expected in text
    assert text.startswith(f"1 problem in {tmp_path / 'dataset.json'}:\n")


def test_all_problems_in_one_error(tmp_path):
    lines = error_of(tmp_path, name=..., validation=[pair("a"), 5], folds=[["zz"]]).splitlines()
    assert lines[0].startswith("4 problems in ")
    assert len(lines) == 5


def test_broken_json_names_the_line(tmp_path):
    (tmp_path / "dataset.json").write_text('{\n "name": "x",,\n}')
    with pytest.raises(DataError, match="expected JSON, found an error: .*line 2"):
        read_dataset(tmp_path)


def test_json_of_another_kind(tmp_path):
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(DataError, match="expected an object"):
        read_dataset(tmp_path)


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match="found no such folder; correct dataset_dir"):
        read_dataset(tmp_path / "nowhere")


def suggested(folder):
    with pytest.raises(DataError, match="expected a file, found none") as caught:
        read_dataset(folder)
    text = str(caught.value)
    return text[text.index("{"):]


def test_missing_file_suggests_the_pairs_found(tmp_path):
    for name in ("images/a.nii.gz", "labels/a.nii.gz", "images/x/b.jpg", "labels/x/b.png", "images/c.nii",
                 "images/.no"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dataset.json").write_text(suggested(tmp_path))
    dataset = read_dataset(tmp_path)
    assert [(x["image"], x["label"]) for x in dataset.training] == [
        (str(tmp_path / "images/a.nii.gz"), str(tmp_path / "labels/a.nii.gz")),
        (str(tmp_path / "images/x/b.jpg"), str(tmp_path / "labels/x/b.png"))]
    assert [x["image"] for x in dataset.unlabeled] == [str(tmp_path / "images/c.nii")]


def test_missing_file_without_images_shows_the_form(tmp_path):
    (tmp_path / "dataset.json").write_text(suggested(tmp_path))
    assert len(read_dataset(tmp_path).training) == 1


def test_missing_file_with_photographs_of_several_centres(tmp_path):
    for name in ("images/east/01.jpg", "labels/east/01.png", "images/west/01.JPG", "labels/west/01.png",
                 "images/west/02.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "dataset.json").write_text(suggested(tmp_path))
    dataset = read_dataset(tmp_path)
    assert dataset.modality == {"0": "photograph"}
    assert [(x["case"], x["image"][-11:], x["label"][-11:]) for x in dataset.training] == [
        ("east_01", "east/01.jpg", "east/01.png"), ("west_01", "west/01.JPG", "west/01.png")]
    assert [x["case"] for x in dataset.unlabeled] == ["02"]


@pytest.mark.parametrize("name", ["a.1.nii.gz", "a.1.nii", "x/a.1.png", "a.1.JPG", "a.1.jpeg"])
def test_case_of_a_file(tmp_path, name):
    item = {"image": name, "label": "l.png"}
    assert read_dataset(write(tmp_path, training=[item], folds=[])).training[0]["case"] == "a.1"
