"""BraTS in the layouts of three editions, with tiny scans: a brain in zeros, a tumour in three parts."""

import warnings

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import brats, prepare

SHAPE = (12, 11, 9)
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 10], [0, 0, 1, 0], [0, 0, 0, 1]])
BRAIN = (slice(2, 10), slice(1, 9), slice(3, 8))
PARTS = {1: (slice(4, 6), slice(3, 5), slice(4, 6)), 2: (slice(6, 8), slice(3, 5), slice(4, 6)),
         4: (slice(4, 6), slice(5, 7), slice(4, 6))}
CENTRE = AFFINE @ [(4.5 + 6.5 + 4.5) / 3, (3.5 + 3.5 + 5.5) / 3, 4.5, 1]
NAMES = [f"BraTS19_TCIA{number:02d}_{number}_1" for number in range(8)]
# in the order of their SHA-256, as the program sha256sum gives it
DRAWN = [NAMES[number] for number in (4, 7, 5, 2, 1, 0, 3, 6)]


@pytest.fixture(autouse=True)
def small_scans(monkeypatch):
    """Warnings are errors, but for that of the missing scans."""
    monkeypatch.setattr(brats, "SHAPE", SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is the download whole")
        yield


def arrays(name, end="flair"):
    """A brain of 100 to 2000 with a tumour, other intensities in each modality."""
    image, label = np.zeros(SHAPE, np.int16), np.zeros(SHAPE, np.uint8)
    image[BRAIN] = np.random.default_rng(list(f"{name}{end}".encode())).integers(100, 2000, image[BRAIN].shape)
    for value, part in PARTS.items():
        label[part] = value
    return image, label


def write(root, name, suffix=".nii.gz", ends=("flair", "t1ce"), image=None, label=None, affine=AFFINE):
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for end in ends:
        array = arrays(name, end)[0] if image is None else image
        nib.Nifti1Image(array, AFFINE).to_filename(folder / f"{name}_{end}{suffix}")
    tumour = arrays(name)[1] if label is None else label
    nib.Nifti1Image(tumour, affine).to_filename(folder / f"{name}_seg{suffix}")
    return folder


def fake(root, *names):
    """Files for `find`, which opens none."""
    for name in names:
        (root / name).mkdir(parents=True)
        for end in ("flair", "seg"):
            (root / name / f"{name}_{end}.nii.gz").touch()


def splits(scans):
    return {split: [scan.name for scan in scans if scan.split == split]
            for split in ("training", "unlabeled", "validation", "test")}


def error_of(tmp_path, **options):
    with pytest.raises(SystemExit) as caught:
        prepare("brats", str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


@pytest.fixture
def download(tmp_path):
    """Of 2019: two grades, and validation data without masks."""
    root = tmp_path / "in" / "MICCAI_BraTS_2019_Data_Training"
    for i, name in enumerate(NAMES):
        write(root / ("LGG" if i % 3 else "HGG"), name, suffix=".nii" if i % 2 else ".nii.gz")
    (root / "HGG" / "BraTS19_notes").mkdir()
    (root / "LGG" / "BraTS19_CBICA_AAB_1").touch()  # no folder
    aside = write(tmp_path / "in" / "MICCAI_BraTS_2019_Data_Validation", "BraTS19_CBICA_AAM_1")
    (aside / "BraTS19_CBICA_AAM_1_seg.nii.gz").unlink()
    return tmp_path / "in"


def test_flair_and_the_whole_tumour_cut_to_the_brain(tmp_path, download, load, assert_at, capsys):
    for file in download.rglob(f"{DRAWN[-1]}_seg.nii*"):
        file.write_bytes(b"no mask")  # that of an unlabelled scan is not opened
    prepare("brats", str(download), str(tmp_path / "out"), labelled=2)
    found = read_dataset(tmp_path / "out")
    check_dataset(found)
    assert [[item["case"] for item in getattr(found, split)]
            for split in ("validation", "test", "training", "unlabeled")] == [
        DRAWN[:1], DRAWN[1:2], DRAWN[2:4], DRAWN[4:]]
    assert found.labels == {1: "whole tumour"} and not found.folds and found.modality == {"0": "FLAIR MRI"}
    for item in found.training + found.validation + found.test:
        (image, affine), (label, label_affine) = load(item, "image"), load(item, "label")
        original, parts = arrays(item["case"])
        assert image.dtype == np.int16 and np.array_equal(image, original[BRAIN])
        assert np.array_equal(label, parts[BRAIN] > 0) and np.array_equal(affine, label_affine)
        assert_at(label, affine, {1: CENTRE[:3]}, 1e-4)
        assert nib.aff2axcodes(affine) == ("L", "P", "S")
    assert load(found.unlabeled[0], "image")[0].shape == arrays("")[0][BRAIN].shape
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 4
    text = (tmp_path / "out" / "dataset.json").read_text()
    assert "2 labelled; training: drawn; validation: drawn" in text and "for research" in capsys.readouterr().out


def test_another_modality(tmp_path, download, load):
    prepare("brats", str(download), str(tmp_path / "out"), labelled=2, modality="t1ce")
    found = read_dataset(tmp_path / "out")
    name = found.training[0]["case"]
    assert np.array_equal(load(found.training[0], "image")[0], arrays(name, "t1ce")[0][BRAIN])
    assert found.modality == {"0": "T1 MRI with contrast agent"}


def test_a_modality_that_there_is_not(tmp_path):
    write(tmp_path / "in", NAMES[0])
    text = "modality: expected one of flair, t1, t1ce, t2, found pd; correct --modality"
    assert text in error_of(tmp_path, modality="pd")
    text = error_of(tmp_path, labelled=1, modality="t2")
    assert f"{NAMES[0]}_t2.nii.gz: expected this file, or without .gz, found {NAMES[0]}_flair.nii.gz, " in text


@pytest.mark.parametrize(("root", "form", "count", "sizes"), [
    ("MICCAI_BraTS_2019_Data_Training/HGG", "BraTS19_CBICA_A{:03d}_1", 335, (25, 225, 25, 60)),
    ("MICCAI_BraTS2020_TrainingData", "BraTS20_Training_{:03d}", 369, (25, 250, 28, 66)),
    ("BraTS2021_Training_Data", "BraTS2021_{:05d}", 1251, (25, 909, 93, 224)),
])
def test_editions_have_their_splits(tmp_path, monkeypatch, root, form, count, sizes):
    names = [form.format(number) for number in range(count)]
    monkeypatch.setattr(brats, "_pair", lambda folder, modality, problems: (tmp_path, tmp_path))
    monkeypatch.setattr("pathlib.Path.is_file", lambda file: True)
    for name in names:
        (tmp_path / root / name).mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scans, problems = brats.find(tmp_path)
    found = splits(scans)
    assert not problems and tuple(map(len, found.values())) == sizes
    assert sorted(sum(found.values(), [])) == names
    for split in found.values():  # drawn, not in order: the mean place of a split is about the middle
        assert abs(np.mean([names.index(name) for name in split]) / count - 0.5) < 0.2 and split != sorted(split)
    assert all((scan.label is None) == (scan.split == "unlabeled") for scan in scans)


def test_lists_of_the_papers(tmp_path):
    fake(tmp_path / "in", *NAMES)
    (tmp_path / "train.list").write_text("\n".join([NAMES[5], f"{NAMES[1]}.h5", f"HGG/{NAMES[7]}", NAMES[2]]))
    (tmp_path / "val.list").write_text(f"{NAMES[0]}\r\n\r\n{NAMES[6]}_flair.nii.gz\r\n")
    lists = {"train": str(tmp_path / "train.list"), "validation": str(tmp_path / "val.list")}
    scans, problems = brats.find(tmp_path / "in", labelled=2, **lists)
    assert not problems and splits(scans) == {
        "training": [NAMES[5], NAMES[1]], "unlabeled": [NAMES[7], NAMES[2]], "validation": [NAMES[0], NAMES[6]],
        "test": [name for name in DRAWN if name in (NAMES[3], NAMES[4])]}
    # without one of the lists: its scans are drawn of those that the other does not name
    left = [name for name in DRAWN if name not in (NAMES[0], NAMES[6])]
    found = splits(brats.find(tmp_path / "in", labelled=1, validation=lists["validation"])[0])
    assert (found["test"], found["training"] + found["unlabeled"]) == (left[:1], left[1:])
    left = [name for name in DRAWN if name not in (NAMES[5], NAMES[1], NAMES[7], NAMES[2])]
    found = splits(brats.find(tmp_path / "in", labelled=4, train=lists["train"])[0])
    assert found["validation"] == left[:1] and found["test"] == left[1:] and found["training"][3] == NAMES[2]
    assert "training: as listed in train.list; validation: as listed in val.list" in brats.configure(
        **lists).about["description"]


def test_what_is_wrong_with_the_folder_the_lists_and_the_options(tmp_path):
    fake(tmp_path / "in", *NAMES[:3])
    fake(tmp_path / "in" / "again", NAMES[0])
    fake(tmp_path / "in", "BraTS20_Training_001")
    (tmp_path / "train.list").write_text("BraTS19_TCIA09_9_1\n")
    text = error_of(tmp_path, train=str(tmp_path / "train.list"), validation=str(tmp_path / "lost"))
    for part in (f"{NAMES[0]}: expected once, found", "expected one edition, found BraTS19 and BraTS20, which share",
                 "train.list, line 1: expected an id of the download, found BraTS19_TCIA09_9_1",
                 "lost: expected a text file", "labelled: expected 1 to 0"):
        assert part in text, part


def test_another_count_warns(tmp_path):
    fake(tmp_path / "in", *NAMES)
    with pytest.warns(UserWarning, match="in: expected 335 scans, found 8; is the download whole"):
        brats.find(tmp_path / "in", labelled=1)


def test_every_missing_or_bad_file_in_one_error(tmp_path):
    root, (plain, parts) = tmp_path / "in", arrays("any")
    changes = {
        NAMES[0]: {"image": np.where(plain > 0, plain / 2000, 0)}, NAMES[1]: {"image": np.zeros_like(plain)},
        NAMES[2]: {"label": np.where(parts == 4, 3, parts)}, NAMES[3]: {"label": np.zeros_like(parts)},
        NAMES[4]: {"affine": AFFINE + 3 * np.eye(4, k=3)}, NAMES[5]: {"image": np.int32(plain) * 40},
    }
    for name in NAMES:
        write(root, name, **changes.get(name, {}))
    (root / NAMES[6] / f"{NAMES[6]}_seg.nii.gz").rename(root / NAMES[6] / "W39_1998.09.19_Segm.nii.gz")
    damaged = root / NAMES[7] / f"{NAMES[7]}_flair.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    everything = tmp_path / "train.list"
    everything.write_text("\n".join(name for name in NAMES if name != NAMES[6]))
    text = error_of(tmp_path, labelled=7, train=str(everything))
    for number, part in ((0, "flair.nii.gz: expected whole numbers of 16 bits, found others (0 to "),
                         (1, "flair.nii.gz: expected a brain"),
                         (2, "seg.nii.gz: expected the label values 0, 1, 2, 4, found [3]"),
                         (3, "seg.nii.gz: expected a tumour"), (4, "seg.nii.gz: expected the grid of"),
                         (5, "flair.nii.gz: expected whole numbers of 16 bits"),
                         (6, "seg.nii.gz: expected this file, or without .gz, found "),
                         (7, "flair.nii.gz: expected a NIfTI file")):
        assert f"{NAMES[number]}_{part}" in text, part
    assert "W39_1998.09.19_Segm.nii.gz; copy or rename it" in text and text.startswith("8 problems")


def test_unusual_images_warn_and_are_used(tmp_path):
    image, label = arrays(NAMES[0])
    label[0, 0, 0] = 1  # one of 25 voxels, in the corner of the picture
    write(tmp_path / "in", NAMES[0], image=image[..., :-1], label=label[..., :-1])
    with pytest.warns(UserWarning) as caught:
        prepare("brats", str(tmp_path / "in"), str(tmp_path / "out"), labelled=1)
    text = str([warning.message for warning in caught])
    assert "expected 12 x 11 x 9 voxels, found 12 x 11 x 8" in text
    assert "expected the tumour within the brain, found 4% of it where the image is 0; look at it" in text
    assert len(read_dataset(tmp_path / "out").training) == 1
