"""Two structures of one name stay two: a data set or a region that has them is refused, with both."""

import json

import pytest

from common.data.dataset import DataError, read_dataset
from common.data.label_names import name_problems


@pytest.mark.parametrize(
    "names",
    [
        {"1": "liver", "2": "spleen", "3": "liver"},
        {"1": "Left Kidney", "3": "left  kidney"},
        {"1": "cup", "3": " cup"},
        {"1": "leftkidney", "3": "left kidney"},
        {"1": "caf\u00e9", "3": "cafe\u0301"},
    ],
    ids=str,
)
def test_names_alike_are_refused_with_both(names):
    (line,) = name_problems(list(names.items()), "labels")
    one, other = json.dumps(names["1"], ensure_ascii=False), json.dumps(names["3"], ensure_ascii=False)
    assert f"found {other} for 3, and {one} for 1" in line and "rename one" in line


@pytest.mark.parametrize("name", ["", " ", "\t", "all", "Mean", " ALL"])
def test_names_that_the_tables_have_already_are_refused(name):
    (line,) = name_problems([("1", "liver"), ("2", name)], "labels")
    assert f"{json.dumps(name)} for 2; rename it" in line


def test_other_names_are_taken():
    names = ("background", "LV", "RV", "LV myocardium", "all 4")
    assert name_problems([(str(label), name) for label, name in enumerate(names)], "labels") == []


def test_a_data_set_says_so_before_anything_is_opened(tmp_path):
    labels = {"0": "background", "1": "Liver", "2": "liver", "5": "mean"}
    items = [{"image": "a.nii.gz", "label": "b.nii.gz"}]
    entry = {"name": "x", "modality": {"0": "CT"}, "labels": labels, "training": items}
    (tmp_path / "dataset.json").write_text(json.dumps(entry))
    with pytest.raises(DataError) as error:
        read_dataset(tmp_path)
    assert str(error.value).startswith("2 problems in ")
    assert '"liver" for 2, and "Liver" for 1' in str(error.value) and '"mean" for 5' in str(error.value)
