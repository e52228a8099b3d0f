import json

import pytest

from common.data import DataError, read_dataset

BASE = {"name": "toy", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver"}}


def item(name, **more):
    return {"image": f"{name}.nii.gz", "label": f"{name}_label.nii.gz", **more}


def read(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(BASE | content))
    return read_dataset(folder)


def error_of(folder, **content):
    with pytest.raises(DataError) as caught:
        read(folder, **content)
    return str(caught.value)


def test_folds_of_the_items(tmp_path):
    training = [item("a", fold=1), item("b", fold=0), item("c", fold=1), item("d")]
    dataset = read(tmp_path, training=training)
    assert dataset.folds == [["b"], ["a", "c"]] and dataset.notes == ()
    assert [one["case"] for one in dataset.training] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("training", "expected"), [
    ([item("a", fold=1), item("b", fold=2)], "expected numbers from 0 on without gaps, found [1, 2]"),
    ([item("a", fold="0")], 'training[0]: expected a whole number from 0 on for fold, found "0"'),
    ([item("a", fold=True)], "expected a whole number from 0 on for fold, found true"),
    ([item("a", case="p", fold=0), item("b", case="p", fold=1)], "found p in folds[0] too"),
])  # fmt: skip
def test_folds_that_are_none(tmp_path, training, expected):
    assert expected in error_of(tmp_path, training=training)


def test_folds_said_twice(tmp_path):
    dataset = read(tmp_path, training=[item("a", fold=0), item("b", fold=1)], folds=[["b"], ["a"]])
    assert dataset.folds == [["b"], ["a"]]
    assert dataset.notes == ("`fold` of the items is not read, as there are `folds`",)


def test_testing_is_test(tmp_path):
    dataset = read(tmp_path, training=[item("a")], testing=["t.nii.gz", item("u")])
    assert [one["case"] for one in dataset.test] == ["t", "u"] and "label" in dataset.test[1]
    assert dataset.notes == ("`testing` is used as `test`",)
    assert "found both; keep one" in error_of(tmp_path, training=[item("a")], testing=[], test=[])
    assert "a: expected in one split" in error_of(tmp_path, training=[item("a")], testing=["x/a.nii.gz"])


def test_what_is_not_read_is_said(tmp_path):
    dataset = read(tmp_path, training=[item("a", weight=2)], validation=[item("b", fold=0)], description="text",
                   paths=["x"], spacing={"a": 1})  # fmt: skip
    assert dataset.notes == (
        "`paths` is not read", "`spacing` is not read", "`weight` of the items of `training`: not read",
        "`fold` of the items of `validation`: not read")


def test_counts_that_do_not_agree(tmp_path):
    assert read(tmp_path, training=[item("a")], numTraining=1, numTest=0).notes == ()
    assert read(tmp_path, training=[item("a")], numTraining=2, numTest=1).notes == (
        "`numTraining` is 2, found 1 items of `training`: is the list whole?",
        "`numTest` is 1, found 0 items of `test`: is the list whole?")
