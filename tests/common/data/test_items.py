import pytest

from common.data.items import read_item, repeated_in_a_split

GOOD = {"image": "a.nii", "label": "b.nii"}


def problems_of(folder, item, split="training"):
    problems = []
    assert (read_item(item, split, 3, folder, problems) is None) == bool(problems)
    return problems


@pytest.mark.parametrize(("item", "expected"), [
    (["a.nii", "b.nii"], 'expected {"image": "...", "label": "..."}, found ["a.nii", "b.nii"]; correct it'),
    ("a.nii", 'expected {"image": "...", "label": "..."}, found "a.nii"; correct it'),
    (None, "found null; correct it"),
    ({"label": "b.nii"}, 'found {"label": "b.nii"}; correct image'),
    (GOOD | {"image": 7}, "correct image"),
    (GOOD | {"image": {"path": "a.nii"}}, "correct image"),
    (GOOD | {"image": " "}, "correct image"),
    ({"image": "a.nii"}, "correct label, or move it to `unlabeled` if it has no label"),
    (GOOD | {"label": None}, "correct label, or move it to `unlabeled` if it has no label"),
    (GOOD | {"image": ["t1.nii", "t2.nii"]}, "expected one file for image, with its channels on the fourth axis, found "
     'a list of 2: ["t1.nii", "t2.nii"]; merge them, as nibabel.concat_images('),
    (GOOD | {"label": ["b.nii", "c.nii"]}, "expected one file for label, with one id a voxel, found a list of 2"),
    (GOOD | {"label": "a.nii"}, "expected another file for label than the image, found a.nii for both"),
    (GOOD | {"image": "images\\a.nii"}, "expected a path with /"),
    (GOOD | {"image": "a\0.nii"}, "found one with a zero byte"),
    (GOOD | {"case": 7, "domain": ""}, 'expected a text for case and domain, found "case": 7, "domain": ""'),
    (GOOD | {"Domain": "east"}, "expected the key `domain`, found this spelling, `Domain`; rename it"),
    (GOOD | {"folds": 1}, "expected the key `fold`, found this spelling, `folds`; rename it"),
])  # fmt: skip
def test_one_problem(tmp_path, item, expected):
    problems = problems_of(tmp_path, item)
    assert len(problems) == 1 and problems[0].startswith("training[3]: ") and expected in problems[0]
    assert "unlabeled" not in problems[0] or isinstance(item, dict) and not item.get("label")


def test_an_image_that_is_named_by_another_key(tmp_path):
    problems = problems_of(tmp_path, {"Image": "a.nii", "label": "b.nii"})
    assert "correct image" in problems[0] and "expected the key `image`, found this spelling, `Image`" in problems[1]


def test_a_list_of_modalities_without_a_label(tmp_path):
    assert "fourth axis" in problems_of(tmp_path, {"image": ["a", "b"]}, "unlabeled")[0]


def test_keys_of_other_tools_are_no_problem(tmp_path):
    assert problems_of(tmp_path, GOOD | {"fold": 1, "spacing": [1, 1, 1], "weight": 2}) == []


def test_one_case_in_two_items_of_which_one_says_so():
    entry = [{"image": "p.nii"}, {"image": "q.nii", "case": "p"}, {"image": "r.nii", "case": "r"}]
    items = [{"image": raw["image"], "case": raw.get("case", "p")} for raw in entry]
    assert repeated_in_a_split("test", entry, items) == [
        "p, q.nii: expected one image of this name in test, found p.nii too (test[0] and test[1]); "
        'give each of them its own "case"']
