import pytest

from common.data import DataError, atomic_folder, ensure_sample_data, refuse_foreign


def test_sample_data_are_made_where_they_are_missing(tmp_path):
    made = []

    def generate(directory):
        directory.mkdir()
        made.append(directory)

    assert not ensure_sample_data(tmp_path / "other", tmp_path, generate) and not made
    for _ in range(2):
        assert ensure_sample_data(f"{tmp_path}/sample_data/.", str(tmp_path), generate)
    assert len(made) == 1 and made[0].samefile(tmp_path / "sample_data")


def test_the_sample_data_of_a_run_that_was_faster_are_used(tmp_path):
    def late(directory):
        with atomic_folder(directory) as root:
            root.mkdir()
            directory.mkdir()
            (directory / "dataset.json").write_text("theirs")

    def broken(directory):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ensure_sample_data(tmp_path / "sample_data", tmp_path, broken)
    assert ensure_sample_data(tmp_path / "sample_data", tmp_path, late)
    assert [path.name for path in tmp_path.rglob("*")] == ["sample_data", "dataset.json"]


def test_images_that_no_dataset_json_names():
    own, foreign = {"image": "a.png", "case": "a"}, {"image": "b.png"}
    for data, sample in (([own], True), ([own, foreign], False), ([foreign], False)):
        refuse_foreign(data, sample)
    with pytest.raises(DataError, match="expected labelled images of the sample data.*found b.png; set `dataset_dir`"):
        refuse_foreign([own, foreign], True)
