import json

import pytest

from common.data import DataError, read_dataset

CONTENT = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "numTraining": 2,
           "file_ending": ".nii.gz"}  # fmt: skip
FILES = ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.NII.GZ", "imagesTr/c_0000.nii.gz", "imagesTr/._a_0000.nii.gz",
         "imagesTr/.DS_Store", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "labelsTr/._a.nii.gz",
         "imagesTs/t_0000.nii.gz", "imagesTs/u_0000.nii.gz", "labelsTs/u.nii.gz")  # fmt: skip
PAIR = ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")


def folder_of(folder, files=FILES, content=CONTENT, **changes):
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))
    return folder


def error_of(folder, *args, **changes):
    with pytest.raises(DataError) as caught:
        read_dataset(folder_of(folder, *args, **changes))
    return str(caught.value)


def test_a_folder_as_it_is(tmp_path):
    dataset = read_dataset(folder_of(tmp_path))
    assert (dataset.name, dataset.modality, dataset.notes) == (tmp_path.name, {"0": "CT"}, ())
    assert dataset.labels == {1: "liver", 2: "spleen"} and dataset.validation == []
    assert [(x["case"], x["image"], x["label"]) for x in dataset.training] == [
        ("a", str(tmp_path / "imagesTr/a_0000.nii.gz"), str(tmp_path / "labelsTr/a.nii.gz")),
        ("b", str(tmp_path / "imagesTr/b_0000.NII.GZ"), str(tmp_path / "labelsTr/b.nii.gz"))]
    assert dataset.unlabeled == [{"case": "c", "image": str(tmp_path / "imagesTr/c_0000.nii.gz")}]
    assert dataset.test == [{"case": "t", "image": str(tmp_path / "imagesTs/t_0000.nii.gz")},
                            {"case": "u", "image": str(tmp_path / "imagesTs/u_0000.nii.gz"),
                             "label": str(tmp_path / "labelsTs/u.nii.gz")}]  # fmt: skip


@pytest.mark.parametrize("names", [{"0": "CT"}, {"0": "T1", "1": "T2"}])
def test_channels_in_files_of_their_own(tmp_path, names):
    text = error_of(tmp_path, PAIR, channel_names=names)
    assert "found a_0000.nii.gz, a_0001.nii.gz; merge them, as nibabel.concat_images(" in text


def test_channels_in_one_file(tmp_path):
    names = {"0": "T1", "1": "T2"}
    assert "found a_0000.nii.gz; merge" in error_of(tmp_path, PAIR[::2], channel_names=names)
    (tmp_path / PAIR[0]).rename(tmp_path / "imagesTr/a.nii.gz")
    dataset = read_dataset(tmp_path)
    assert dataset.channels == 2 and dataset.training[0]["image"] == str(tmp_path / "imagesTr/a.nii.gz")


def test_a_photograph_has_its_channels_in_one_file(tmp_path):
    files, names = ("imagesTr/a_0000.png", "labelsTr/a.png"), {"0": "R", "1": "G", "2": "B"}
    dataset = read_dataset(folder_of(tmp_path, files, channel_names=names, file_ending=".png", numTraining=1))
    assert dataset.training[0]["case"] == "a"


@pytest.mark.parametrize(("changes", "expected"), [
    ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, 'regions of several ids: {"whole": [1, 2]}; name'),
    ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "found ignore (2), whose voxels"),
    ({"labels": {"background": 0, "liver": 1.0}}, 'a whole number from 0 on for each name, found {"liver": 1.0}'),
    ({"labels": {"background": 0, "a": 1, "b": 1}}, 'expected an id of its own for each name, found {"a": 1, "b": 1}'),
    ({"labels": []}, "`labels`: expected"),
    ({"channel_names": ["CT"]}, "`channel_names`: expected"),
    ({"file_ending": ".mha"}, "`file_ending`: expected .nii.gz or .nii or .png, found"),
    ({"files": ()}, "imagesTr: expected scans such as case_0000.nii.gz, found none"),
    ({"files": (*FILES, "labelsTr/z.nii.gz")}, "labelsTr/z.nii.gz: expected the scan of this label in imagesTr"),
    ({"dataset": {"a": {"images": ["x.nii.gz", "y.nii.gz"], "label": "z.nii.gz"}}}, "found x.nii.gz, y.nii.gz; merge"),
    ({"dataset": {"a": {"images": "x.nii.gz", "label": "z.nii.gz"}}}, '`dataset`, a: expected {"images": ["..."]'),
])  # fmt: skip
def test_refused_in_words(tmp_path, changes, expected):
    assert expected in error_of(tmp_path, **changes)


def test_lists_of_one_id_are_ids(tmp_path):
    assert read_dataset(folder_of(tmp_path, labels={"background": 0, "core": [2], "whole": 1})).labels == {
        1: "whole", 2: "core"}  # fmt: skip


def test_files_that_it_names_itself(tmp_path):
    own = {"k": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}}
    assert read_dataset(folder_of(tmp_path, dataset=own)).training == [
        {"case": "k", "image": str(tmp_path / PAIR[0]), "label": str(tmp_path / PAIR[2])}]


FIRST = {"name": "old", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "numTraining": 1,
         "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]}  # fmt: skip


def test_the_list_of_the_first_version_leaves_the_channel_out(tmp_path):
    item = read_dataset(folder_of(tmp_path, FILES, FIRST)).training[0]
    assert item["case"] == "a" and item["image"] == str(tmp_path / PAIR[0])


def test_several_channels_of_the_first_version(tmp_path):
    assert "a: expected one file a scan" in error_of(tmp_path, PAIR, FIRST)
