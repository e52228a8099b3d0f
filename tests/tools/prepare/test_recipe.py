"""What all recipes share."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data.dataset import DataError, read_dataset
from tools.prepare import RECIPES, prepare
from tools.prepare.recipe import Bad, Recipe, Scan, five_blocks, load_nifti, nifti, run


def toy(scans, counts, read=None, doubts=None):
    """A recipe whose scans are these; an image holds the number at the end of the scan's name."""
    def pixels(scan):
        return np.full((4, 4, 3), int(scan.name[-1]), np.uint8), np.eye(4, dtype=np.uint8), np.eye(4)

    about = {"description": "d", "reference": "r", "licence": "l"}
    return Recipe("toy", {"0": "x"}, {1: "disc"}, counts, about, "nothing", lambda source: (scans, []), read or pixels,
                  doubts=doubts)


def scan(name, split="training", domain=None):
    return Scan(name, Path(f"{name}.png"), Path(f"{name}_mask.png"), split, domain)


def test_folds_are_contiguous_blocks_of_the_published_sizes():
    for count, size in ((20, 4), (35, 7), (30, 6)):
        names = [f"{n:02d}" for n in range(count)]
        folds = five_blocks(names)
        assert [len(fold) for fold in folds] == [size] * 5 and sum(folds, []) == names
    assert five_blocks(list("abcdefg")) == [["a"], ["b", "c"], ["d"], ["e", "f"], ["g"]]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_an_empty_or_missing_source_says_what_was_expected(tmp_path, name):
    if name == "chaos":
        pytest.importorskip("pydicom", reason="CHAOS is DICOM")
    with pytest.raises(SystemExit, match="no scan was found; expected .*(<number>|<name>)"):
        prepare(name, str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(SystemExit, match="found no such folder"):
        prepare(name, str(tmp_path / "nowhere"), str(tmp_path / "out"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_states_source_licence_splits_and_checks(name):
    text = __import__(f"tools.prepare.{name}", fromlist=["_"]).__doc__
    assert all(f"\n{part}" in text for part in ("Source:", "Licence:", "Splits:", "Checks:", "Preprocessing"))
    assert {"description", "reference", "licence"} <= set(RECIPES[name].about)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(SystemExit, match="expected one of acdc, brats, chaos, .*, pancreas, .*, found acdd"):
        prepare("acdd", "a", "b")


def test_an_option_that_a_data_set_does_not_have():
    with pytest.raises(SystemExit, match="chaos: expected no further option, found --labelled"):
        prepare("chaos", "a", "b", labelled=3)
    with pytest.raises(SystemExit, match="acdc: expected --labelled, --validation, --test, found --crop, --train"):
        prepare("acdc", "a", "b", crop="none", train="t", labelled=3)
    for name in ("la", "pancreas"):
        for crop in (None, "box"):
            with pytest.raises(SystemExit, match=f"crop: expected label or none, found {crop}; correct --crop"):
                prepare(name, "a", "b", crop=crop)


def test_an_existing_output_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        run(toy([scan("a1")], {(None, "training"): 1}), tmp_path, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_domains_and_splits(tmp_path):
    scans = [scan("a1", domain="east"), scan("b2", "validation", "west"), scan("c3", domain="west")]
    counts = {("east", "training"): 1, ("west", "training"): 1, ("west", "validation"): 1}
    found = read_dataset(run(toy(scans, counts), tmp_path, tmp_path / "out"))
    assert [(item["case"], item["domain"]) for item in found.training] == [("a1", "east"), ("c3", "west")]
    assert [(item["case"], item["domain"]) for item in found.validation] == [("b2", "west")]
    assert found.folds == []
    with pytest.warns(UserWarning, match="in: expected 2 scans, found 1; is the download whole?"):
        (tmp_path / "in").mkdir()
        found = read_dataset(run(toy([scan("a1")], {(None, "training"): 2}), tmp_path / "in", tmp_path / "out2"))
    assert found.folds == [["a1"]] and "domain" not in found.training[0]


def test_all_splits_with_scans_of_one_patient_and_unlabelled_ones_without_folds(tmp_path):
    seen = []

    def read(scan):
        seen.append((scan.name, scan.label))
        return np.full((4, 4, 3), int(scan.name[-1]), np.uint8), scan.label and np.eye(4, dtype=np.uint8), np.eye(4)

    scans = [Scan("d4", Path("d4.png"), None, "unlabeled", case="d"), scan("c3", "test"), scan("b2", "validation"),
             Scan("a1", Path("a1.png"), Path("m.png"), case="a"), Scan("a2", Path("a2.png"), Path("m.png"), case="a")]
    recipe = replace(toy(scans, {(None, None): 6, (None, "test"): 1}, read), folds=False)
    with pytest.warns(UserWarning, match=": expected 6 scans, found 5; is the download whole"):
        found = read_dataset(run(recipe, tmp_path, tmp_path / "out"))
    assert [[(Path(item["image"]).stem, item["case"], "label" in item) for item in getattr(found, split)]
            for split in ("training", "validation", "test", "unlabeled")] == [
        [("a1", "a", True), ("a2", "a", True)], [("b2", "b2", True)], [("c3", "c3", True)], [("d4", "d", False)]]
    assert found.folds == [] and dict(seen)["d4"] is None


def test_counts_of_domains_are_told_apart(tmp_path):
    scans = [scan("a1", domain="east"), scan("b2", domain="east"), scan("c3", "validation", "west")]
    counts = {("east", "training"): 2, ("west", "training"): 1, ("west", "validation"): 2}
    text = "west, training: expected 1 scans, found 0; west, validation: expected 2 scans, found 1; is the download"
    with pytest.warns(UserWarning, match=text) as caught:
        run(toy(scans, counts), tmp_path, tmp_path / "out")
    assert "east" not in str(caught[0].message)


def test_a_volume_without_a_place(tmp_path):
    volume = nib.Nifti1Image(np.zeros((2, 3, 4), np.uint8), np.diag([2.0, 2, 2, 1]))
    content = bytearray(volume.to_bytes())
    content[312:328] = bytes(16)  # the third row of the affine
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(Bad, match="a.nii: expected an invertible affine"):
        load_nifti(tmp_path / "a.nii")
    with pytest.raises(Bad, match=r"b.nii: expected three axes, found shape \(2, 3, 4, 5\)"):
        nib.Nifti1Image(np.zeros((2, 3, 4, 5)), np.eye(4)).to_filename(tmp_path / "b.nii")
        load_nifti(tmp_path / "b.nii")


def test_bad_scans_of_all_splits_in_one_error(tmp_path):
    def read(scan):
        if scan.name[0] in "bc":
            raise Bad([f"{scan.image}: bad", f"{scan.label}: worse"])
        return np.zeros((4, 4), np.uint8), np.eye(4, dtype=np.uint8), np.eye(4)

    scans = [scan("d4", "validation"), scan("c3", "validation"), scan("b2"), scan("a1")]
    with pytest.raises(DataError) as caught:
        run(toy(scans, {}, read), tmp_path, tmp_path / "out")
    assert str(caught.value).splitlines() == [
        f"4 problems in {tmp_path}:", "  b2, b2.png: bad", "  b2, b2_mask.png: worse", "  c3, c3.png: bad",
        "  c3, c3_mask.png: worse"]
    with pytest.raises(DataError, match="2 problems"):
        run(toy(scans[2:], {}, read), tmp_path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_looks_unusual_is_warned_of_once_and_kept(tmp_path):
    recipe = toy([scan("a1"), scan("b2"), scan("c3", "validation")], {},
                 doubts=lambda image, label: [f"the value {image.max()}; look at it"] * int(image.max() != 2))
    with pytest.warns(UserWarning) as caught:
        run(recipe, tmp_path, tmp_path / "out")
    assert str(caught.pop().message).splitlines() == [
        f"unusual data in {tmp_path}, used as it is:", "  a1, a1.png: the value 1; look at it",
        "  c3, c3.png: the value 3; look at it"]
    assert not caught.list and len(read_dataset(tmp_path / "out").training) == 2


@pytest.mark.parametrize(("names", "expected"), [
    (["a.nii.gz"], "a.nii.gz"), (["a.NII.GZ", "a_gt.nii.gz"], "a.NII.GZ"), (["a.Nii", "a.nii.gz"], "a.Nii"),
    (["._a.nii.gz"], "a.nii.gz")])  # fmt: skip
def test_a_file_in_whatever_case_its_suffix_is(tmp_path, names, expected):
    for name in names:
        (tmp_path / name).touch()
    assert nifti(tmp_path, "a") == tmp_path / expected
