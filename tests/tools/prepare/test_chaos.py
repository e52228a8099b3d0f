"""CHAOS in the layout of the public download; the organs are blocks at known millimetres."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import chaos, dicom, prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*expected .* scans, found")

GREY = {1: 63, 2: 126, 3: 189, 4: 252}
# RAS+ millimetres: liver right and in front, right kidney right, behind and low, left kidney left, spleen left and high
PLACES = {1: (-60.0, 40, 28), 2: (-45, -50, -36), 3: (50, -45, -20), 4: (80, -30, 44)}


def write_chaos_scan(root, number, places=PLACES, reverse=False, tilt=0.0, grey=GREY):
    """A T2SPIR series as published: pixels 1.5 mm high and 1.6 mm wide, 8 mm slices, numbered upwards or downwards."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom writes the DICOM files of this test")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    rows, columns, count = 144, 160, 16
    cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    across, down, normal = np.array([1.0, 0, 0]), np.array([0, cos, sin]), np.array([0, -sin, cos])  # LPS
    origin = -across * 1.6 * 79.5 - down * 1.5 * 71.5 - normal * 8 * 7.5
    folder = root / "Train_Sets" / "MR" / str(number) / "T2SPIR"
    (folder / "DICOM_anon").mkdir(parents=True)
    (folder / "Ground").mkdir()
    r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    for k in range(count):
        corner = origin + normal * 8 * k
        lps = corner + c[..., None] * 1.6 * across + r[..., None] * 1.5 * down
        ras = lps * [-1, -1, 1]
        pixels, mask = np.full((rows, columns), 20, np.uint16), np.zeros((rows, columns), np.uint8)
        for organ, place in places.items():
            inside = (np.abs(ras - place) <= (20, 20, 13)).all(-1)
            pixels[inside], mask[inside] = 100 * organ, grey[organ]
        pixels[:6, :6] = 3000  # brighter than all organs, but less than 0.5 % of the voxels
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = "1.2.840.10008.5.1.4.1.1.4", ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelSpacing, data.ImagePositionPatient = [1.5, 1.6], [f"{x:.6f}" for x in corner]
        data.ImageOrientationPatient = [f"{x:.6f}" for x in (*across, *down)]
        data.PixelData = pixels.tobytes()
        name = f"IMG-0004-{count - k if reverse else k + 1:05d}"
        data.InstanceNumber = int(name[-5:])
        pydicom.dcmwrite(folder / "DICOM_anon" / f"{name}.dcm", data, enforce_file_format=True)
        Image.fromarray(mask).save(folder / "Ground" / f"{name}.png")
    return folder


@pytest.mark.parametrize(("reverse", "tilt"), [(False, 0.0), (True, 0.0), (True, 4.0)])
def test_chaos_organs_stay_where_they_are(tmp_path, reverse, tilt, load, assert_at):
    write_chaos_scan(tmp_path / "in", 7, reverse=reverse, tilt=tilt)
    prepare("chaos", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    image, affine = load(found.training[0], "image")
    label, label_affine = load(found.training[0], "label")
    np.testing.assert_allclose(affine, label_affine)
    assert image.shape[:2] == (256, 256) and nib.aff2axcodes(affine) == ("L", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (1.25, 1.25, 7.70), atol=1e-3)
    assert_at(label, affine, PLACES, (1.5, 1.5, 4.2) if not tilt else (2, 3, 5))
    millimetres = nib.affines.apply_affine(affine, np.moveaxis(np.indices(image.shape), 0, -1))
    for organ, place in PLACES.items():
        # linear interpolation keeps the centre of mass, so that of the intensities shows even half a voxel
        near = (np.abs(millimetres - place) < 30).all(-1)
        mass = np.average(millimetres[near], axis=0, weights=image[near])
        limit = (0.9, 0.9, 0.3) if not tilt else (1, 2, 4)
        assert (np.abs(mass - place) < limit).all(), f"class {organ} is at {mass}"
        # from 20, the least, to 400: more than 0.5 % of the voxels have at least that
        assert abs(int(image[label == organ].max()) - (100 * organ - 20) / 380 * 255) <= 1
        area = (label == organ).sum(axis=(0, 1)).max() * 1.25**2
        assert abs(area / (25 * 1.6 * 27 * 1.5) - 1) < 0.08 and (label == organ).any(axis=(0, 1)).sum() in (3, 4, 5)


def test_chaos_mapping_does_not_depend_on_which_organs_occur(tmp_path, load, assert_at):
    write_chaos_scan(tmp_path / "in", 3, places={k: PLACES[k] for k in (2, 4)})
    prepare("chaos", str(tmp_path / "in"), str(tmp_path / "out"))
    label, affine = load(read_dataset(tmp_path / "out").training[0], "label")
    assert_at(label, affine, {k: PLACES[k] for k in (2, 4)}, (1.5, 1.5, 4.2))


def test_chaos_set_as_a_whole(tmp_path, capsys):
    for number in (10, 2, 33, 1, 8):
        write_chaos_scan(tmp_path / "in", number, places={1: PLACES[1] + np.array([1.6 * number, 0, 0])})
    shutil.copytree(tmp_path / "in" / "Train_Sets" / "MR" / "1" / "T2SPIR" / "DICOM_anon",
                    tmp_path / "in" / "Test_Sets" / "MR" / "4" / "T2SPIR" / "DICOM_anon")
    with pytest.warns(UserWarning, match="expected 20 scans, found 5"):
        prepare("chaos", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    check_dataset(found)
    names = [f"chaos_t2_{n:02d}" for n in (1, 2, 8, 10, 33)]
    assert [item["case"] for item in found.training] == names and [n for f in found.folds for n in f] == names
    assert len(found.folds) == 5 and found.labels == chaos.LABELS
    index = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert "3362844" in index["reference"] and index["licence"].startswith("CC BY-NC-SA")
    assert index["licence"] in capsys.readouterr().out


def test_chaos_lists_every_bad_file_and_writes_nothing(tmp_path):
    for number in (1, 2, 3, 4):
        write_chaos_scan(tmp_path / "in", number)
    mr = tmp_path / "in" / "Train_Sets" / "MR"
    dicom, png = "T2SPIR/DICOM_anon/IMG-0004-000{:02d}.dcm", "T2SPIR/Ground/IMG-0004-000{:02d}.png"
    (mr / "1" / png.format(3)).unlink()
    (mr / "1" / dicom.format(5)).write_bytes(b"not DICOM")
    Image.fromarray(np.full((144, 160), 70, np.uint8)).save(mr / "2" / png.format(9))
    Image.fromarray(np.zeros((160, 144), np.uint8)).save(mr / "2" / png.format(10))
    for path in (dicom, png):
        (mr / "3" / path.format(8)).unlink()
    shutil.rmtree(mr / "4" / "T2SPIR" / "Ground")
    with pytest.raises(SystemExit) as caught:
        prepare("chaos", str(tmp_path / "in"), str(tmp_path / "out"))
    text = str(caught.value)
    for part in ("chaos_t2_01, ", "IMG-0004-00003.dcm: expected a mask", "IMG-0004-00005.dcm: expected a DICOM slice",
                 "IMG-0004-00009.png: expected the label values 0, 63, 126, 189, 252, found [70]",
                 "IMG-0004-00010.png: expected the rows", "slices at even distances, found 8.00 to 16.00 mm",
                 "expected the folder Ground"):
        assert part in text, part
    assert text.startswith("6 problems") and not (tmp_path / "out").exists()


def test_chaos_without_pydicom_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom, "HAS_PYDICOM", False)
    with pytest.raises(SystemExit, match="needs the package pydicom"):
        prepare("chaos", str(tmp_path), str(tmp_path / "out"))
