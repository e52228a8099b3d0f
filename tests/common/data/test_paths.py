"""Paths are text; what the command line made a number of is told with what to write."""

from pathlib import Path

import pytest

from common.data import read_dataset
from common.data.output_dir import check_output_dir
from common.data.paths import as_path


@pytest.mark.parametrize("name", ["2024_03_01", "a b", "c#d", "$HOME", "e@f", "ü"])
def test_any_text_is_a_path(tmp_path, name):
    assert as_path(name, "dataset_dir") == Path(name)
    assert check_output_dir(str(tmp_path / name)) == tmp_path / name and (tmp_path / name).is_dir()


def test_a_number_is_told(tmp_path):
    for call in (read_dataset, check_output_dir):
        with pytest.raises(ValueError, match=r"expected a path, found 20240301.* as int; write it .* \./2024_03_01"):
            call(20240301)


def test_backslashes_are_told_where_they_are_no_separators(tmp_path):
    with pytest.raises(ValueError, match="expected a path with /, found C:.data; backslashes are letters"):
        as_path("C:\\data", "dataset_dir")
    (tmp_path / "a\\b").mkdir()  # unless there is such a name
    assert as_path(tmp_path / "a\\b", "dataset_dir").is_dir()
