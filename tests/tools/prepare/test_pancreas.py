"""Pancreas-CT as DICOM or NIfTI with NIfTI masks; the pancreas is a block at known millimetres, in fat."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import dicom, pancreas, prepare

SHAPE = (24, 20, 12)  # column, row, slice
STEPS = np.array([2.0, 2.0, 1.5])
CORNER = np.array([-20.0, -10, 40])  # LPS of the first voxel of the DICOM volume
BLOCK = (slice(5, 11), slice(4, 9), slice(6, 10))  # off the centre along each axis
LPS = np.diag([-1.0, -1, 1, 1])
PLACE = (LPS @ [*(CORNER + STEPS * [7.5, 6, 7.5]), 1])[:3]


@pytest.fixture(autouse=True)
def few_scans(monkeypatch):
    """Four scans and the duplicates, cut close; warnings are errors."""
    monkeypatch.setattr(pancreas, "NUMBERS", ["0001", "0002", "0003", "0004", "0025", "0070"])
    monkeypatch.setattr(pancreas, "TRAINING", 3)
    monkeypatch.setattr(pancreas, "MARGIN", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def volume(number=1):
    """HU and mask in the order of the DICOM voxels; no two scans are equal."""
    image, label = np.full(SHAPE, -100, np.int16), np.zeros(SHAPE, np.uint8)
    image[BLOCK], label[BLOCK] = 74 + number, 1
    image[0, 0, 0], image[-1, -1, -1] = -1000, 2000
    return image, label


def grid(flips=(False, False, False)):
    """The affine (RAS+) of the volume with some axes flipped."""
    turn = nib.orientations.inv_ornt_aff(np.array([[i, -1 if flip else 1] for i, flip in enumerate(flips)]), SHAPE)
    return LPS @ nib.affines.from_matvec(np.diag(STEPS), CORNER) @ turn


def write_label(root, number, label=None, flips=(False, True, False), affine=None):
    """A mask, by default with its second axis to the front, and with another origin than the scan."""
    array = volume()[1] if label is None else label
    affine = grid(flips) + 7 * np.eye(4, k=3) if affine is None else affine
    folder = root / "TCIA_pancreas_labels"
    folder.mkdir(parents=True, exist_ok=True)
    array = np.flip(array, [axis for axis in range(3) if flips[axis]])
    nib.Nifti1Image(array, affine).to_filename(folder / f"label{number:04d}.nii.gz")


def write_nifti(root, number, name="PANCREAS_{:04d}.nii.gz", flips=(True, True, True)):
    root.mkdir(parents=True, exist_ok=True)
    array = np.flip(volume(number)[0], [axis for axis in range(3) if flips[axis]])
    nib.Nifti1Image(array, grid(flips)).to_filename(root / name.format(number))


def write_dicom(root, number, skip=(), series="1.2.3"):
    pydicom = pytest.importorskip("pydicom", reason="pydicom writes the DICOM files of this test")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder = root / "Pancreas-CT" / f"PANCREAS_{number:04d}" / "11-24-2015-PANCREAS" / series
    folder.mkdir(parents=True)
    for k in set(range(SHAPE[2])) - set(skip):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.2", ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *SHAPE[1::-1], 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
        data.PixelSpacing, data.ImageOrientationPatient = [2.0, 2.0], [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = (CORNER + [0, 0, 1.5 * k]).tolist()
        data.PixelData = (volume(number)[0][:, :, k].T + 1024).astype(np.uint16).tobytes()
        # numbered from the head down
        pydicom.dcmwrite(folder / f"{SHAPE[2] - k:06d}.dcm", data, enforce_file_format=True)
    return folder


def error_of(tmp_path, **options):
    with pytest.raises(SystemExit) as caught:
        prepare("pancreas", str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def write_all(root, write=write_nifti):
    for number in (1, 2, 3, 4):
        write(root, number)
        write_label(root, number)


def assert_prepared(folder, load, assert_at, whole=False):
    found = read_dataset(folder)
    check_dataset(found)
    names = {split: [item["case"] for item in getattr(found, split)] for split in ("training", "unlabeled", "test")}
    assert names == {"training": ["pancreas_0001"], "unlabeled": ["pancreas_0002", "pancreas_0003"],
                     "test": ["pancreas_0004"]}
    assert found.labels == {1: "pancreas"} and not found.folds and not found.validation
    image, affine = load(found.training[0], "image")
    label, label_affine = load(found.training[0], "label")
    np.testing.assert_allclose(affine, label_affine)
    np.testing.assert_allclose(affine[:3, :3], np.diag([-1, 1, 1]), atol=1e-6)  # 1 mm; left, front, head
    assert_at(label, affine, {1: PLACE}, 0.76)
    extent = [np.ptp(side) + 1 for side in np.nonzero(label)]
    assert np.abs(np.array(extent) - [12, 10, 6]).max() <= 1
    inside = image[label == 1]
    assert np.median(inside) == 128 and np.median(image[label == 0]) == 16  # (75 + 125) / 400 and 25 / 400 of 255
    # linear interpolation keeps the centre of mass: image and mask did not drift apart
    mass = np.average(np.indices(image.shape).reshape(3, -1), axis=1, weights=(image.ravel() > 20) * image.ravel())
    if not whole:
        assert np.abs(nib.affines.apply_affine(affine, mass) - PLACE).max() < 0.6
        sides = zip(np.nonzero(label), image.shape, strict=True)
        assert all(side.min() == 3 and size - 1 - side.max() == 3 for side, size in sides)
    else:
        assert np.abs(np.array(image.shape) - STEPS * SHAPE).max() <= 2


def test_nifti_scans_are_cut_around_the_pancreas(tmp_path, load, assert_at, capsys):
    write_all(tmp_path / "in", lambda root, n: write_nifti(root, n, "image{:04d}.nii.gz" if n == 2 else
                                                           "pancreas_{:04d}.nii"))
    write_label(tmp_path / "in", 25)  # the duplicates may be there, whole or not
    write_nifti(tmp_path / "in", 70)
    prepare("pancreas", str(tmp_path / "in"), str(tmp_path / "out"), labelled=1)
    assert_prepared(tmp_path / "out", load, assert_at)
    index = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert index["description"].endswith("1 labelled; training: by number; crop: label")
    assert "CC BY 3.0" in capsys.readouterr().out


def test_dicom_slices(tmp_path, load, assert_at):
    write_all(tmp_path / "in", write_dicom)
    prepare("pancreas", str(tmp_path / "in"), str(tmp_path / "out"), labelled=1)
    assert_prepared(tmp_path / "out", load, assert_at)


def test_whole_scans_open_no_label_of_an_unlabelled_one(tmp_path, load, assert_at):
    write_all(tmp_path / "in")
    (tmp_path / "in" / "TCIA_pancreas_labels" / "label0002.nii.gz").write_bytes(b"no mask")
    assert "label0002.nii.gz: expected a NIfTI file" in error_of(tmp_path, labelled=1)
    prepare("pancreas", str(tmp_path / "in"), str(tmp_path / "out"), labelled=1, crop="none")
    assert_prepared(tmp_path / "out", load, assert_at, whole=True)


def test_the_published_list_may_name_the_duplicates(tmp_path):
    write_all(tmp_path)
    (tmp_path / "train.list").write_text("image0070_norm.h5\ndata/2015/0004.h5\nPANCREAS_0001\nlabel0003.nii.gz\n")
    (tmp_path / "held.list").write_text("0001")
    scans, problems = pancreas.find(tmp_path, 1, str(tmp_path / "train.list"), str(tmp_path / "held.list"))
    assert not problems and [(scan.name[-1], scan.split) for scan in scans] == [
        ("4", "training"), ("3", "unlabeled"), ("1", "validation"), ("2", "test")]


def test_every_missing_or_bad_file_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(pancreas, "NUMBERS", [f"{number:04d}" for number in range(1, 13)])
    root, label = tmp_path / "in", volume()[1]
    for number in (1, 3, 4, 5, 6, 7, 8, 9):
        write_nifti(root, number)
    write_nifti(root / "again", 9)
    write_label(root, 2)
    write_label(root, 4, label=label * 3)
    write_label(root, 5, label=label * 0)
    write_label(root, 6, label=label[:, :, :-1])
    write_label(root, 7, affine=grid((False, True, False)) @ np.diag([1, 1, 2, 1]))
    write_label(root, 8, label=label[:, 1:])
    write_label(root, 9)
    (root / "PANCREAS_0003.nii.gz").write_bytes(b"no scan")
    write_label(root, 3)
    text = error_of(tmp_path, labelled=1)
    for part in ("expected the scans 0001 to 0012 but for 0025 and 0070, found none of 0010, 0011, 0012;",
                 "PANCREAS_0001.nii.gz: expected label0001.nii.gz below",
                 "label0002.nii.gz: expected PANCREAS_0002 below",
                 "PANCREAS_0003.nii.gz: expected a NIfTI file",
                 "label0004.nii.gz: expected the label values 0, 1, found [3]",
                 "label0005.nii.gz: expected a pancreas", "PANCREAS_0009.nii.gz: expected once, found",
                 "label0006.nii.gz: expected the size (24, 20, 12) at",
                 "label0007.nii.gz: expected the size (24, 20, 12) at [2.0, 2.0, 1.5] mm of PANCREAS_0007.nii.gz, ",
                 "found (24, 20, 12) at [2.0, 2.0, 3.0] mm; they",
                 "found (24, 19, 12) at [2.0, 2.0, 1.5] mm; they"):
        assert part in text, part
    assert text.startswith("10 problems")


def test_every_bad_series_in_one_error(tmp_path):
    root = tmp_path / "in"
    write_dicom(root, 1, skip=[5])
    write_dicom(root, 2)
    write_dicom(root, 2, series="4.5.6")
    (write_dicom(root, 3) / "000004.dcm").write_bytes(b"no slice")
    write_dicom(root, 4, skip=[0])
    for number in (1, 2, 3, 4):
        write_label(root, number)
    (root / "Pancreas-CT" / "PANCREAS_0005").mkdir()
    text = error_of(tmp_path, labelled=1)
    for part in ("PANCREAS_0001: expected slices at even distances, found 1.50 to 3.00 mm",
                 "PANCREAS_0002: expected one series of DICOM slices, found", "000004.dcm: expected a DICOM slice",
                 "label0004.nii.gz: expected the size (24, 20, 11)"):
        assert part in text, part
    assert text.startswith("4 problems")


@pytest.mark.parametrize(("flips", "axes"), [((True, False, False), "1"), ((False, True, True), "2 and 3"),
                                             ((False, False, False), None)])
def test_a_mask_that_fits_better_when_flipped_is_doubted(flips, axes):
    image, label = volume()
    texts = pancreas.doubts(image, np.flip(label, [axis for axis in range(3) if flips[axis]]))
    assert len(texts) == (axes is not None)
    assert not texts or f"and 100% when flipped along axis {axes}; look" in texts[0]
    assert pancreas.doubts(image, None) == []


def test_dicom_without_pydicom_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "HAS_PYDICOM", False)
    folder = tmp_path / "in" / "PANCREAS_0001"
    folder.mkdir(parents=True)
    (folder / "1.dcm").touch()
    assert "needs the package pydicom" in error_of(tmp_path)
