import pytest

from common.data import DataError, ensure_sample_data, refuse_foreign


def test_sample_data_are_made_where_they_are_missing(tmp_path):
    made = []

    def generate(directory):
        directory.mkdir()
        made.append(directory)

    assert not ensure_sample_data(tmp_path / "other", tmp_path, generate) and not made
    for _ in range(2):
        assert ensure_sample_data(f"{tmp_path}/sample_data/.", str(tmp_path), generate)
    assert len(made) == 1 and made[0].samefile(tmp_path / "sample_data")


def test_images_that_no_dataset_json_names():
    own, foreign = {"image": "a.png", "case": "a"}, {"image": "b.png"}
    for data, sample in (([own], True), ([own, foreign], False), ([foreign], False)):
        refuse_foreign(data, sample)
    with pytest.raises(DataError, match="expected labelled images of the sample data.*found b.png; set `dataset_dir`"):
        refuse_foreign([own, foreign], True)
