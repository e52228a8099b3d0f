"""The recipes on files in the layout of the public downloads; the anatomy is a few blocks at known millimetres."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import RECIPES, chaos, prepare
from tools.prepare.recipe import five_blocks

pytestmark = pytest.mark.filterwarnings("ignore:.*expected .* scans, found")


def load(item, key):
    volume = nib.load(item[key])
    return np.asarray(volume.dataobj), volume.affine


def centres(label, affine, classes):
    """Millimetres (RAS+) of the centre of each class."""
    return {k: nib.affines.apply_affine(affine, np.argwhere(label == k).mean(0)) for k in classes}


def assert_at(label, affine, places, tolerance):
    """Every class of ``places`` lies at its place, and no other class but the background occurs."""
    assert set(np.unique(label)) == {0, *places}
    for k, place in centres(label, affine, places).items():
        assert (np.abs(place - places[k]) <= tolerance).all(), f"class {k} is at {place}, not at {places[k]}"


# --- CHAOS ---------------------------------------------------------------------------------------------------------

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
def test_chaos_organs_stay_where_they_are(tmp_path, reverse, tilt):
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


def test_chaos_mapping_does_not_depend_on_which_organs_occur(tmp_path):
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
    monkeypatch.setattr(chaos, "HAS_PYDICOM", False)
    with pytest.raises(SystemExit, match="needs the package pydicom"):
        prepare("chaos", str(tmp_path), str(tmp_path / "out"))


# --- MS-CMRSeg -----------------------------------------------------------------------------------------------------

HEART = {1: (10.0, 40, 5), 2: (-35, 5, 15), 3: (30, -30, -15)}  # millimetres along the scan's own axes, from its centre


def write_heart(root, number, values=(200, 500, 600), shape=(140, 150, 8), spacing=(1.0, 1.0, 10.0), mask=True):
    """A bSSFP scan in a double-oblique plane, as short axes are."""
    turn = np.linalg.qr(np.array([[0.7, 0.5, 0.5], [-0.6, 0.8, 0.1], [-0.4, -0.3, 0.87]]))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = [12, -40, 70] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    along = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, spacing, strict=True)],
                                 indexing="ij"), axis=-1)
    image, label = np.full(shape, 50, np.int16), np.zeros(shape, np.int16)
    for k, place in HEART.items():
        inside = (np.abs(along - place) <= (13, 13, 16)).all(-1)
        image[inside], label[inside] = 200 * k, values[k - 1]
    for folder in ("c0t2lge", "c0gt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(image, affine).to_filename(root / "c0t2lge" / f"patient{number}_C0.nii.gz")
    nib.Nifti1Image(image, affine).to_filename(root / "c0t2lge" / f"patient{number}_T2.nii.gz")
    if mask:
        nib.Nifti1Image(label, affine).to_filename(root / "c0gt" / f"patient{number}_C0_manual.nii.gz")
    return {k: nib.affines.apply_affine(affine, np.argwhere(label == v).mean(0))
            for k, v in zip(HEART, values, strict=True) if (label == v).any()}


def test_mscmr_oblique_hearts_stay_where_they_are(tmp_path):
    places = write_heart(tmp_path / "in", 2)
    write_heart(tmp_path / "in", 11)
    write_heart(tmp_path / "in", 40, mask=False)  # of the ten patients without masks
    prepare("mscmr", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    assert [item["case"] for item in found.training] == ["mscmr_c0_02", "mscmr_c0_11"]
    assert found.labels == {1: "myocardium", 2: "left ventricle", 3: "right ventricle"}
    label, affine = load(found.training[0], "label")
    image, _ = load(found.training[0], "image")
    assert label.shape[:2] == (256, 256)
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (1.25, 1.25, 7.99), atol=1e-3)
    assert_at(label, affine, places, 3.0)
    for k, place in places.items():
        centre = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), place)).astype(int)
        assert abs(int(image[tuple(centre)]) - (200 * k - 50) / 550 * 255) <= 1


def test_mscmr_lists_every_bad_file(tmp_path):
    for number in (1, 2, 4, 5):
        write_heart(tmp_path / "in", number, values=(200, 501, 600) if number == 2 else (200, 500, 600))
    write_heart(tmp_path / "in", 3, spacing=(10.0, 1.0, 1.0))
    (tmp_path / "in" / "c0gt" / "patient1_C0_manual.nii.gz").unlink()
    damaged = tmp_path / "in" / "c0t2lge" / "patient4_C0.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    moved = tmp_path / "in" / "c0gt" / "patient5_C0_manual.nii.gz"
    nib.Nifti1Image(np.asarray(nib.load(moved).dataobj), np.eye(4)).to_filename(moved)
    with pytest.raises(SystemExit) as caught:
        prepare("mscmr", str(tmp_path / "in"), str(tmp_path / "out"))
    text = str(caught.value)
    for part in ("patient1_C0.nii.gz: expected patient1_C0_manual.nii.gz",
                 "patient2_C0_manual.nii.gz: expected the label values 0, 200, 500, 600, found [501]",
                 "patient3_C0.nii.gz: expected thick slices", "patient4_C0.nii.gz: expected a NIfTI file",
                 "patient5_C0_manual.nii.gz: expected the grid of patient5_C0.nii.gz"):
        assert part in text, part
    assert text.startswith("5 problems") and not (tmp_path / "out").exists()


# --- Synapse -------------------------------------------------------------------------------------------------------

def write_ct(root, number, places, size=512, training="Training"):
    """A CT of BTCV: first axis to the left or right, 0.8 mm pixels, 3 mm slices, air at -1024."""
    affine = np.array([[0.8, 0, 0, -200], [0, 0.8, 0, -210], [0, 0, 3, 50], [0, 0, 0, 1.0]])
    image, label = np.full((size, size, 6), -1024, np.int16), np.zeros((size, size, 6), np.uint8)
    for k, place in places.items():
        i, j, s = np.rint(np.linalg.solve(affine, [*place, 1])[:3]).astype(int)
        image[i - 12:i + 13, j - 12:j + 13, s - 1:s + 2], label[i - 12:i + 13, j - 12:j + 13, s - 1:s + 2] = 75, k
    for kind, array in (("img", image), ("label", label)):
        folder = root / "RawData" / training / kind
        folder.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(array, affine).to_filename(folder / f"{kind}{number:04d}.nii.gz")


CT_PLACES = {1: (80.0, 30, 56), 6: (-70, 10, 59), 13: (15, -60, 59)}


def test_synapse_organs_stay_where_they_are(tmp_path):
    write_ct(tmp_path / "in", 21, CT_PLACES)
    write_ct(tmp_path / "in", 3, {6: CT_PLACES[6]})
    write_ct(tmp_path / "in", 61, CT_PLACES, training="Testing")
    prepare("synapse", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    assert [item["case"] for item in found.training] == ["synapse_03", "synapse_21"] and len(found.labels) == 13
    label, affine = load(found.training[1], "label")
    image, _ = load(found.training[1], "image")
    assert label.shape == (256, 256, 6) and nib.aff2axcodes(affine) == ("L", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (1.4, 1.4, 3), atol=1e-4)
    assert_at(label, affine, CT_PLACES, (1.4, 1.4, 0.1))
    assert np.median(image[label == 6]) == 128 and image[0, 0, 0] == 0  # 75 HU is (75 + 125) / 400 of 255
    # the picture is centred where the 448 x 448 it was made of was
    np.testing.assert_allclose(nib.affines.apply_affine(affine, [127.5, 127.5, 0])[:2], (-200 + 255.5 * 0.8,
                                                                                         -210 + 255.5 * 0.8), atol=0.8)


def test_synapse_refuses_slices_of_another_size_and_files_without_partner(tmp_path):
    write_ct(tmp_path / "in", 1, CT_PLACES)
    write_ct(tmp_path / "in", 2, {}, size=256)
    (tmp_path / "in" / "RawData" / "Training" / "img" / "img0001.nii.gz").unlink()
    with pytest.raises(SystemExit) as caught:
        prepare("synapse", str(tmp_path / "in"), str(tmp_path / "out"))
    assert "label0001.nii.gz: expected img0001.nii.gz" in str(caught.value)
    assert "img0002.nii.gz: expected slices of 512 x 512, found 256 x 256" in str(caught.value)


# --- all -----------------------------------------------------------------------------------------------------------

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
    with pytest.raises(SystemExit, match="no scan was found; expected .*<number>"):
        prepare(name, str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(SystemExit, match="found no such folder"):
        prepare(name, str(tmp_path / "nowhere"), str(tmp_path / "out"))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_each_states_source_licence_splits_and_checks(name):
    text = __import__(f"tools.prepare.{name}", fromlist=["_"]).__doc__
    assert all(f"\n{part}" in text for part in ("Source:", "Licence:", "Splits:", "Checks:", "Preprocessing"))
    assert {"description", "reference", "licence"} <= set(RECIPES[name].about)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(SystemExit, match="expected one of chaos, mscmr, synapse, found acdd"):
        prepare("acdd", "a", "b")


def test_an_existing_output_is_not_touched(tmp_path):
    write_heart(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="exists already"):
        prepare("mscmr", str(tmp_path / "in"), str(tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
