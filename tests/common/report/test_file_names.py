"""Names of data never decide where a file goes."""

import pytest

from common.report.file_names import file_name


@pytest.mark.parametrize("name", ["case_01", "left ventricle", "Größe-2.5+", "脾臓"])
def test_usual_names_stay_readable(name):
    assert file_name(name) == name.replace(" ", "_")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "a\\b", ".hidden", "x" * 500, "a\nb", "a:b|c*?", "..", ""])
def test_no_name_is_a_path_or_too_long(name):
    made = f"overlay_{file_name(name)}.png"
    assert "/" not in made and "\\" not in made and len(made.encode()) <= 255 and made.isprintable()


def test_different_names_stay_different():
    names = ["a/b", "a:b", "a_b", "a\\b", "x" * 200, "x" * 201, "../a", "./a"]
    assert len({file_name(name) for name in names}) == len(names)
    assert file_name("case", "organ") == "case_organ"
