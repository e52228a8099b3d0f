import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.data import DataError, Preprocessing, list_images, write_dataset
from common.data.write import Case

SCANS, ANY = Preprocessing(), Preprocessing(kinds=["photographs", "scans"])
PHOTOGRAPHS = Preprocessing(3, ["photographs"])


@pytest.fixture
def folder(tmp_path):
    """A data set whose validation and test hold a case each."""
    rng = np.random.default_rng(0)
    cases = {name: Case(name, rng.integers(0, 9, (4, 5, 3)), np.ones((4, 5, 3), np.uint8)) for name in "abc"}
    splits = {"training": [cases["a"]], "validation": [cases["b"]], "test": [cases["c"]]}
    return write_dataset(tmp_path / "set", "set", {"0": "MRI"}, {1: "box"}, **splits)


def test_a_folder_a_list_and_a_file(folder):
    files = sorted((folder / "images").iterdir())
    expected = [{"image": str(file), "case": file.name.removesuffix(".nii.gz")} for file in files]
    assert list_images("unused", SCANS, str(folder / "images")) == expected and len(expected) == 3
    assert list_images("unused", SCANS, [str(file) for file in files]) == expected
    assert list_images("unused", SCANS, str(files[1])) == expected[1:2]


def test_without_images_those_of_the_data_set_that_did_not_train(folder):
    assert [item["case"] for item in list_images(str(folder), SCANS)] == ["b", "c"]


def test_photographs_and_other_files_of_a_folder(tmp_path):
    for name in ("x.y.png", "b.JPG"):
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (6, 7, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [item["case"] for item in list_images("unused", PHOTOGRAPHS, str(tmp_path))] == ["b", "x.y"]


def test_images_of_the_other_kind_are_refused(folder, tmp_path):
    photograph = tmp_path / "a.png"
    Image.fromarray(np.arange(42, dtype=np.uint8).reshape(6, 7)).save(photograph)
    scans = str(folder / "images")
    grey = Preprocessing(kinds=["photographs"])
    assert len(list_images("unused", SCANS, scans)) == 3
    assert len(list_images("unused", grey, str(photograph))) == 1
    assert len(list_images("unused", ANY, [str(folder / "images" / "b.nii.gz"), str(photograph)])) == 2
    with pytest.raises(DataError, match=r"3 images, such as .*a.nii.gz: expected photographs \(PNG, JPEG\), as"):
        list_images("unused", grey, scans)
    with pytest.raises(DataError, match=r"1 images, such as .*a.png: expected scans \(NIfTI\), as .*`kinds`"):
        list_images("unused", SCANS, [scans, str(photograph)])


def test_the_channels_are_those_of_the_preprocessing(folder):
    with pytest.raises(DataError, match="(?s)3 problems.*channel"):
        list_images("unused", Preprocessing(channels=2), str(folder / "images"))


def test_images_of_one_name_are_refused_together(tmp_path):
    files = [tmp_path / case / name for case in ("p1", "p2") for name in ("ed.nii.gz", "es.nii", f"{case}.nii.gz")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2), np.eye(4)), file)
    with pytest.raises(DataError) as error:
        list_images("unused", SCANS, [str(file) for file in files])
    assert f"ed: {files[0]}, {files[3]}; es: {files[1]}, {files[4]}. Segment" in str(error.value)
    assert len(list_images("unused", SCANS, [str(file) for file in files[1:4]])) == 3


@pytest.mark.parametrize(("name", "files", "refused"), [
    ("imagesTs", ["a_0000", "a_0001", "b_0000"], ["a"]),
    ("scans", ["a_0000", "a_0001", "b_0000", "b_0001", "c_0000"], ["a", "b"]),
    ("scans", ["a_0000", "a_0001", "a_0002"], []),  # numbered scans
    ("imagesTs", ["a_0000", "b_0000"], []),
    ("imagesTr", ["PANCREAS_0001", "PANCREAS_0002"], []),  # channels begin at 0000
])  # fmt: skip
def test_channels_in_files_of_their_own_are_no_cases(tmp_path, name, files, refused):
    """As nnU-Net has them; a list of files says what it means."""
    (tmp_path / name).mkdir()
    for i, file in enumerate(files):
        nib.save(nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2) + i, np.eye(4)), tmp_path / name / f"{file}.nii.gz")
    paths = [str(tmp_path / name / f"{file}.nii.gz") for file in files]
    assert len(list_images("unused", SCANS, paths)) == len(files)
    if not refused:
        assert len(list_images("unused", SCANS, str(tmp_path / name))) == len(files)
        return
    with pytest.raises(DataError) as error:
        list_images("unused", SCANS, str(tmp_path / name))
    for case in refused:
        found = f"{case}: expected one file a scan, with its channels on the fourth axis, found {case}_0000.nii.gz, "
        assert f"{found}{case}_0001.nii.gz; merge them, as nibabel.concat_images(" in str(error.value)
    assert str(error.value).count("expected") == len(refused) and str(tmp_path / name) in str(error.value)


def test_nothing_to_segment_and_all_damaged_files_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image to segment: expected NIfTI.*empty; set images or dataset_dir"):
        list_images("unused", SCANS, str(tmp_path / "empty"))
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    nib.save(nib.Nifti1Image(np.arange(8.0).reshape(2, 2, 2), np.eye(4)), tmp_path / "fine.nii.gz")
    with pytest.raises(DataError, match=r"(?s)2 problems.*broken.*missing"):
        names = ("broken.nii.gz", "fine.nii.gz", "missing.nii.gz")
        list_images("unused", SCANS, [str(tmp_path / name) for name in names])


def test_a_missing_image_is_told_where_it_was_asked_for(folder):
    asked = str(folder / "images" / "nowhere.nii.gz")
    with pytest.raises(DataError, match="found no such file; correct the path in `images`, or copy it there"):
        list_images("unused", SCANS, asked)
    (folder / "images" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="found no such file; correct the path in dataset.json, or copy it there"):
        list_images(str(folder), SCANS)
