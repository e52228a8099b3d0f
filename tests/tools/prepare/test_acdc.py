"""ACDC in the layout of the public download, with tiny scans: 100 patients at two times."""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import acdc, prepare

SHAPE = (9, 8, 3)
TURN = np.linalg.qr(np.array([[0.7, 0.5, 0.5], [-0.6, 0.8, 0.1], [-0.4, -0.3, 0.87]]))[0]
AFFINE = np.block([[TURN * (1.5, 1.5, 10.0), np.array([[12.0], [-40], [70]])], [np.zeros((1, 3)), np.ones((1, 1))]])
LABELLED = ["patient038", "patient050", "patient099", "patient021", "patient049", "patient058", "patient100"]


def name(number):
    return f"patient{number:03d}"


def write_frame(folder, frame, affine=AFFINE, values=(1, 2, 3)):
    """An oblique scan of random intensities, with a block for each structure."""
    rng = np.random.default_rng([frame, *folder.name.encode()])
    image, label = rng.integers(0, 2000, SHAPE).astype(np.int16), np.zeros(SHAPE, np.uint8)
    for k, value in enumerate(values):
        label[2 * k + 1:2 * k + 3, 2:5, :2] = value
    stem = folder / f"{folder.name}_frame{frame:02d}"
    nib.Nifti1Image(image, affine).to_filename(f"{stem}.nii.gz")
    nib.Nifti1Image(label, affine).to_filename(f"{stem}_gt.nii.gz")
    return image, label


def write_patient(root, number):
    folder = root / name(number)
    folder.mkdir(parents=True)
    end = 8 + number % 5
    (folder / "Info.cfg").write_text(f"ED: 1\nES: {end}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    write_frame(folder, 1)
    write_frame(folder, end)
    (folder / f"{name(number)}_4d.nii.gz").write_bytes(b"not needed")


@pytest.fixture(scope="module")
def download(tmp_path_factory):
    """The later release, but for most of its test patients."""
    root = tmp_path_factory.mktemp("acdc") / "ACDC" / "database"
    for number in range(1, 101):
        write_patient(root / "training", number)
    for number in (101, 150):
        write_patient(root / "testing", number)
    (root / "testing" / "patient150" / "Info.cfg").unlink()  # nobody asks for this one
    return root


@pytest.fixture
def copy(download, tmp_path):
    """Its files are links: unlink one before you write it."""
    return shutil.copytree(download, tmp_path / "in", copy_function=os.link)


def cases(items):
    assert [item["case"] for item in items[::2]] == [item["case"] for item in items[1::2]]  # two times of each
    return [item["case"] for item in items[::2]]


def originals(root, number, frame):
    stem = root / "training" / name(number) / f"{name(number)}_frame{frame:02d}"
    return (np.asarray(nib.load(f"{stem}{end}.nii.gz").dataobj) for end in ("", "_gt"))


def test_the_papers_labelled_patients_and_splits_by_number(tmp_path, copy, load, assert_at, capsys):
    for number in (1, 3):  # a label of an unlabelled scan is not opened
        mask = copy / "training" / name(number) / f"{name(number)}_frame01_gt.nii.gz"
        mask.unlink()
        mask.write_bytes(b"no mask")
    prepare("acdc", str(copy), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    check_dataset(found)
    assert found.labels == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"} and not found.folds
    assert cases(found.training) == LABELLED
    assert cases(found.validation) == [name(n) for n in range(5, 101, 10)]
    assert cases(found.test) == [name(n) for n in range(1, 101) if n % 5 == 2]
    assert len(found.unlabeled) == 126 and cases(found.unlabeled)[:3] == ["patient001", "patient003", "patient004"]
    assert all("label" in item for item in found.test) and len(list((tmp_path / "out" / "labels").iterdir())) == 74
    item = found.training[0]
    assert item["image"].endswith("images/patient038_frame01.nii.gz")
    image, affine = load(item, "image")
    label, label_affine = load(item, "label")
    original, mask = originals(copy, 38, 1)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-4)
    np.testing.assert_allclose(label_affine, AFFINE, atol=1e-4)
    np.testing.assert_array_equal(label, mask)
    low, high = np.percentile(original, (0, 99.9))
    np.testing.assert_allclose(image, np.clip((original - low) / (high - low), 0, 1) * 255, atol=0.51)
    index = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert "7 labelled; validation: numbers that end in 5; test: numbers that end in 2 or 7" in index["description"]
    assert index["licence"].startswith("CC BY-NC-SA") and index["licence"] in capsys.readouterr().out


@pytest.mark.parametrize("labelled", [1, 3, 14])
def test_how_many_are_labelled(tmp_path, download, labelled):
    scans, problems = acdc.find(download, labelled=labelled)
    training = list(dict.fromkeys(scan.case for scan in scans if scan.split == "training"))
    more = [name(n) for n in (1, 3, 4, 6, 8, 9, 10)]  # those for validation and test are not among them
    assert not problems and training == (LABELLED + more)[:labelled]
    assert sum(scan.split == "unlabeled" for scan in scans) == 2 * (70 - labelled)


def test_lists_of_the_papers(tmp_path, download):
    (tmp_path / "val.list").write_text("patient006_frame01\npatient006_frame16\n\n patient014_frame01 \n")
    (tmp_path / "test.list").write_text("patient101\r\npatient005_frame01.h5\r\n")
    options = {"validation": str(tmp_path / "val.list"), "test": str(tmp_path / "test.list")}
    scans, problems = acdc.find(download, **options)
    assert not problems
    for split, wanted in (("validation", ["patient006", "patient014"]), ("test", ["patient101", "patient005"])):
        assert list(dict.fromkeys(scan.case for scan in scans if scan.split == split)) == wanted
    assert len(scans) == 202 and sum(scan.split == "unlabeled" for scan in scans) == 2 * (100 - 3 - 7)
    assert "validation: as listed in val.list; test: as listed in test.list" in acdc.configure(
        **options).about["description"]


def test_what_is_wrong_with_lists_and_options(tmp_path, download):
    (tmp_path / "val.list").write_text("patient007\npatient203\nsomebody\n")
    _, problems = acdc.find(download, validation=str(tmp_path / "val.list"), labelled=100)
    assert len(problems) == 4
    for part in ("val.list, line 2: expected an id of the download, found patient203", "line 3: expected an id",
                 "patient007: expected in one list, found for validation and for the test",
                 "labelled: expected 1 to 80, as many as there are to train on, found 100"):
        assert part in "\n".join(problems), part
    assert "lost.list: expected a text file" in acdc.find(download, test=str(tmp_path / "lost.list"))[1][0]
    for labelled in (True, 0, "7"):
        assert f"found {labelled}; correct --labelled" in acdc.find(download, labelled=labelled)[1][0]


def test_every_missing_or_bad_file_in_one_error(tmp_path, copy):
    training = copy / "training"
    for number in (11, 12):
        shutil.rmtree(training / name(number))
    shutil.copytree(training / "patient013", copy / "again" / "patient013")
    (training / "patient014" / "Info.cfg").unlink()
    (training / "patient016" / "patient016_frame01.nii.gz").unlink()
    (training / "patient018" / "patient018_frame01_gt.nii.gz").unlink()  # unlabelled, but the download is not whole
    changes = {38: {"values": (1, 2, 5)}, 50: {"values": (0, 0, 0)}, 99: {"affine": AFFINE[:, [2, 0, 1, 3]]}}
    for number, change in changes.items():
        for file in (training / name(number)).glob("*_frame01*"):
            file.unlink()
        write_frame(training / name(number), 1, **change)
    damaged = training / "patient020" / "patient020_frame01.nii.gz"
    content = damaged.read_bytes()
    damaged.unlink()
    damaged.write_bytes(content[:200])
    moved = training / "patient021" / "patient021_frame01_gt.nii.gz"
    shifted = nib.Nifti1Image(np.asarray(nib.load(moved).dataobj), AFFINE + 3 * np.eye(4, k=3))
    moved.unlink()
    shifted.to_filename(moved)
    with pytest.raises(SystemExit) as caught:
        prepare("acdc", str(copy), str(tmp_path / "out"))
    text = str(caught.value)
    for part in (
        "expected patient001 to patient100, found none of patient011, patient012;",
        "patient013: expected once, found",
        "Info.cfg: expected the frame of ED, such as `ED: 1`", "Info.cfg: expected the frame of ES",
        "patient016_frame01.nii.gz: expected this file (ED in Info.cfg)",
        "patient018_frame01_gt.nii.gz: expected this file (ED in Info.cfg)",
        "patient020_frame01, ", "patient020_frame01.nii.gz: expected a NIfTI file",
        "patient021_frame01_gt.nii.gz: expected the grid of patient021_frame01.nii.gz",
        "patient038_frame01_gt.nii.gz: expected the label values 0, 1, 2, 3, found [5]",
        "patient050_frame01_gt.nii.gz: expected a heart", "patient099_frame01.nii.gz: expected thick slices",
    ):
        assert part in text, part
    assert text.startswith("11 problems") and not (tmp_path / "out").exists()
