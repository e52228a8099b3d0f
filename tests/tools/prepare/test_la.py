"""The atrial challenge in both public layouts, with small scans: a block at known millimetres."""

import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import la, prepare

IDS = ["06SR5RBREL16DQ6M8LWS", "00ABCDEFGHIJKLMNOPQR", "1D7CUD1955YZPGK8XHJX", "ZZABCDEFGHIJKLMNOPQR"]
SHAPE = (40, 36, 6)
BLOCK = (slice(15, 25), slice(10, 13), slice(1, 4))
DIRECTIONS = np.diag([0.5, 0.5, 0.75])  # LPS
ORIGIN = np.array([-20.0, 30, 5])


@pytest.fixture(autouse=True)
def small_scans(monkeypatch):
    """Few, small and cut close; warnings are errors, but for that of the missing scans."""
    monkeypatch.setattr(la, "TRAINING", 3)
    monkeypatch.setattr(la, "MARGIN", 2)
    monkeypatch.setattr(la, "LEAST", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is the download whole")
        yield


def arrays(name, value=255):
    """Even numbers from 10 to 208 by chance, and the atrium."""
    rng = np.random.default_rng(list(name.encode()))
    label = np.zeros(SHAPE, np.uint8)
    label[BLOCK] = value
    return rng.integers(5, 105, SHAPE).astype(np.uint8) * 2, label


def write_nrrd(root, name, part="Training Set", label=None, **header):
    nrrd = pytest.importorskip("nrrd", reason="pynrrd writes the NRRD files of this test")
    folder = root / part / name
    folder.mkdir(parents=True)
    about = {"space": "left-posterior-superior", "space directions": DIRECTIONS, "space origin": ORIGIN}
    image, atrium = arrays(name)
    nrrd.write(str(folder / "lgemri.nrrd"), image, about | header)
    nrrd.write(str(folder / "laendo.nrrd"), atrium if label is None else label, {"encoding": "gzip"})
    return folder


def write_hdf5(root, name):
    h5py = pytest.importorskip("h5py", reason="h5py writes the HDF5 files of this test")
    folder = root / "2018LA_Seg_Training Set" / name
    folder.mkdir(parents=True)
    image, label = arrays(name, value=1)
    with h5py.File(folder / "mri_norm2.h5", "w") as file:
        file["image"] = ((image - image.mean()) / image.std()).astype(np.float32)
        file["label"] = label
    return folder / "mri_norm2.h5"


def fake(root, *names):
    """Files for `find`, which opens none."""
    for name in names:
        (root / name).mkdir(parents=True)
        for file in ("lgemri.nrrd", "laendo.nrrd"):
            (root / name / file).touch()


def splits(scans):
    return {split: [scan.name for scan in scans if scan.split == split]
            for split in ("training", "unlabeled", "validation", "test")}


def error_of(tmp_path, **options):
    with pytest.raises(SystemExit) as caught:
        prepare("la", str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_nrrd_scans_are_cut_around_the_atrium_and_stay_where_they_are(tmp_path, load, assert_at, capsys):
    for name in IDS:
        write_nrrd(tmp_path / "in", name)
    write_nrrd(tmp_path / "in", "OTABCDEFGHIJKLMNOPQR", part="Testing Set")
    prepare("la", str(tmp_path / "in"), str(tmp_path / "out"), labelled=2)
    found = read_dataset(tmp_path / "out")
    check_dataset(found)
    assert [[item["case"] for item in getattr(found, split)] for split in ("training", "unlabeled", "test")] == [
        [IDS[0], IDS[1]], [IDS[2]], [IDS[3]]]
    assert found.labels == {1: "left atrium"} and not found.folds and not found.validation
    image, affine = load(found.training[0], "image")
    label, _ = load(found.training[0], "label")
    # in the plane 2 voxels more on each side, and 3 voxels grow to 8 less one (5 // 2 = 2 on each side)
    box = (slice(13, 27), slice(6, 17), slice(None))
    original, atrium = arrays(IDS[0])
    np.testing.assert_array_equal(image, (original[box].astype(int) - original[box].min()) // 2)
    np.testing.assert_array_equal(label, atrium[box] // 255)
    centre = ORIGIN + DIRECTIONS @ [19.5, 11, 2]
    assert_at(label, affine, {1: centre * [-1, -1, 1]}, 1e-4)
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (0.5, 0.5, 0.75))
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    assert "no licence file" in capsys.readouterr().out


def test_whole_scans_open_no_label_of_an_unlabelled_one(tmp_path, load):
    for name in IDS:
        folder = write_nrrd(tmp_path / "in", name)
        if name == IDS[2]:
            (folder / "laendo.nrrd").write_bytes(b"no mask")
    assert "laendo.nrrd: expected a NRRD file" in error_of(tmp_path, labelled=2)
    prepare("la", str(tmp_path / "in"), str(tmp_path / "out"), labelled=2, crop="none")
    found = read_dataset(tmp_path / "out")
    assert [item["case"] for item in found.unlabeled] == [IDS[2]]
    assert load(found.unlabeled[0], "image")[0].shape == load(found.test[0], "label")[0].shape == SHAPE


def test_hdf5_gives_the_8_bits_it_was_made_of(tmp_path, load):
    for name in IDS:
        write_hdf5(tmp_path / "in", name)
    prepare("la", str(tmp_path / "in"), str(tmp_path / "out"), labelled=1)
    found = read_dataset(tmp_path / "out")
    check_dataset(found)
    assert [item["case"] for item in found.unlabeled] == IDS[1:3] and len(found.test) == 1
    image, affine = load(found.training[0], "image")
    original, atrium = arrays(IDS[0], value=1)
    np.testing.assert_array_equal(image, (original.astype(int) - original.min()) // 2)
    np.testing.assert_array_equal(load(found.training[0], "label")[0], atrium)
    np.testing.assert_allclose(affine, np.diag([0.625, 0.625, 0.625, 1]))
    shutil.rmtree(tmp_path / "out")
    assert "found HDF5, which is cut already" in error_of(tmp_path, crop="none", labelled=1)


def test_intensities_of_more_than_8_bits_are_scaled():
    image = np.linspace(-1, 4, 1001)
    np.testing.assert_array_equal(la.eight_bits(image), np.rint((image + 1) * 51))
    np.testing.assert_array_equal(la.eight_bits(np.array([30, 10, 12, 20], np.uint8)), [10, 0, 1, 5])


def test_the_published_list_and_a_validation_split(tmp_path, monkeypatch):
    monkeypatch.setattr(la, "HAS_NRRD", True)
    fake(tmp_path, *IDS)
    (tmp_path / "train.list").write_text("\n".join([IDS[3], IDS[0], IDS[1]]))
    (tmp_path / "held.list").write_text(IDS[0])
    scans, problems = la.find(tmp_path, labelled=1, train=str(tmp_path / "train.list"))
    assert not problems and splits(scans) == {
        "training": [IDS[3]], "unlabeled": [IDS[0], IDS[1]], "validation": [], "test": [IDS[2]]}
    scans, problems = la.find(tmp_path, 1, str(tmp_path / "train.list"), str(tmp_path / "held.list"))
    assert not problems and splits(scans) == {
        "training": [IDS[3]], "unlabeled": [IDS[1]], "validation": [IDS[0]], "test": [IDS[2]]}
    shutil.rmtree(tmp_path / IDS[0])
    scans, problems = la.find(tmp_path, labelled=3)  # without the first of the list, alphabetical
    assert not problems and splits(scans)["training"] == IDS[1:]
    text = "training: as listed in train.list; crop: none"
    assert text in la.configure(train="a/train.list", crop="none").about["description"]


def test_published_counts(tmp_path, monkeypatch):
    for name in IDS[:2]:
        write_nrrd(tmp_path / "in", name)
    with pytest.warns(UserWarning, match="expected 100 scans, found 2; is the download whole"):
        prepare("la", str(tmp_path / "in"), str(tmp_path / "out"), labelled=1)


def test_every_missing_file_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(la, "HAS_NRRD", True)
    monkeypatch.setattr(la, "HAS_H5PY", True)
    fake(tmp_path, *IDS, f"again/{IDS[3]}")
    (tmp_path / IDS[0] / "laendo.nrrd").unlink()
    (tmp_path / IDS[1] / "lgemri.nrrd").unlink()
    (tmp_path / "h5").mkdir()
    (tmp_path / "h5" / "mri_norm2.h5").touch()
    (tmp_path / "train.list").write_text(f"{IDS[0]}\n{IDS[2]}\nABC\n")
    text = "\n".join(la.find(tmp_path, 2, str(tmp_path / "train.list"))[1])
    for part in (f"{IDS[0]}/laendo.nrrd: expected this file", f"{IDS[1]}/lgemri.nrrd: expected this file",
                 f"{IDS[3]}/lgemri.nrrd: expected {IDS[3]} once, found", "expected the files of one source, found NRRD",
                 f"train.list, line 1: expected an id of the download, found {IDS[0]}", "line 3: expected an id",
                 "labelled: expected 1 to 1"):
        assert part in text, part
    assert len(text.splitlines()) == 7


def test_every_bad_nrrd_file_in_one_error(tmp_path):
    names = [f"{i}ABCDEFGHIJKLMNOPQRS" for i in range(9)]
    atrium = arrays("")[1]
    write_nrrd(tmp_path / "in", names[0], label=atrium // 2)
    write_nrrd(tmp_path / "in", names[1], label=atrium * 0)
    write_nrrd(tmp_path / "in", names[2], label=atrium[:-1])
    write_nrrd(tmp_path / "in", names[3])
    for file, content in (("lgemri", b"NRRD0004\n# nothing\n"), ("laendo", b"")):
        (tmp_path / "in" / "Training Set" / names[3] / f"{file}.nrrd").write_bytes(content)
    damaged = write_nrrd(tmp_path / "in", names[4]) / "lgemri.nrrd"
    damaged.write_bytes(damaged.read_bytes()[:-2000])
    write_nrrd(tmp_path / "in", names[5], **{"space directions": np.diag([0.5, 0, 0.5])})
    nrrd = pytest.importorskip("nrrd")
    folder = write_nrrd(tmp_path / "in", names[6])
    nrrd.write(str(folder / "lgemri.nrrd"), np.moveaxis(arrays("")[0], 2, 0))
    folder = write_nrrd(tmp_path / "in", names[7])
    nrrd.write(str(folder / "lgemri.nrrd"), np.full(SHAPE, 3, np.uint8), {
        "space": "left-posterior-superior", "space directions": DIRECTIONS, "space origin": ORIGIN})
    write_nrrd(tmp_path / "in", names[8], **{"space directions": np.diag([0.5, np.nan, 0.5])})
    text = error_of(tmp_path, labelled=1)
    for number, part in ((0, "laendo.nrrd: expected the label values 0, 255, found [127]"),
                         (1, "laendo.nrrd: expected an atrium"), (2, "laendo.nrrd: expected the shape (40, 36, 6)"),
                         (3, "lgemri.nrrd: expected a NRRD file"), (3, "laendo.nrrd: expected a NRRD file"),
                         (4, "lgemri.nrrd: expected a NRRD file"),
                         (5, "lgemri.nrrd: expected three space directions and an origin"),
                         (6, "lgemri.nrrd: expected three space directions and an origin"),
                         (7, "lgemri.nrrd: expected an image of finite numbers"),
                         (8, "lgemri.nrrd: expected three space directions and an origin")):
        assert f"{names[number]}/{part}" in text, part
    assert text.startswith("10 problems")


def test_every_bad_hdf5_file_in_one_error(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py writes the HDF5 files of this test")
    names = [f"{i}ABCDEFGHIJKLMNOPQRS" for i in range(3)]
    files = [write_hdf5(tmp_path / "in", name) for name in names]
    files[0].write_bytes(files[0].read_bytes()[:1000])
    for file, key, array in ((files[1], "label", None), (files[2], "image", np.zeros((6, 40, 36)))):
        with h5py.File(file, "a") as content:
            del content[key]
            if array is not None:
                content[key] = array
    text = error_of(tmp_path, labelled=3)
    for part in ("0ABCDEFGHIJKLMNOPQRS/mri_norm2.h5: expected HDF5 with `image` and `label`, found OSError",
                 "1ABCDEFGHIJKLMNOPQRS/mri_norm2.h5: expected HDF5 with `image` and `label`, found KeyError",
                 "2ABCDEFGHIJKLMNOPQRS/mri_norm2.h5: expected slices along the third axis, the shortest, found",
                 "mri_norm2.h5: expected the shape (6, 40, 36)"):
        assert part in text, part
    assert text.startswith("4 problems")


@pytest.mark.parametrize(("flag", "file", "package"), [("HAS_NRRD", "lgemri.nrrd", "pynrrd"),
                                                       ("HAS_H5PY", "mri_norm2.h5", "h5py")])
def test_without_its_package_a_form_says_so(tmp_path, monkeypatch, flag, file, package):
    monkeypatch.setattr(la, flag, False)
    fake(tmp_path / "in", IDS[0])
    if file == "mri_norm2.h5":
        shutil.rmtree(tmp_path / "in" / IDS[0])
        (tmp_path / "in" / IDS[0]).mkdir()
        (tmp_path / "in" / IDS[0] / file).touch()
    assert f"needs the package {package}, which is not installed: pip install {package}" in error_of(tmp_path)
