"""Names of data never decide where a file goes."""

import pytest

from common.report.file_names import FileNames, file_name

HOSTILE = ["../../etc/passwd", "/abs", "a/b", "a\\b", "C:\\x", ".hidden", "..", ".", "", "trailing.",
           "trailing. ", "a\nb", "nul\0", "a:b|c*?\"<>", "\u202eevil", "\ud83d", "x" * 500, "脾" * 200,
           "😀" * 100, "CON", "con.nii", "Lpt1", "NUL.tar.gz"]  # fmt: skip


@pytest.mark.parametrize("name", ["case_01", "left ventricle", "Größe-2.5+", "脾臓", "console", "com10"])
def test_usual_names_stay_readable(name):
    assert file_name(name) == name.replace(" ", "_")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
@pytest.mark.parametrize("form", ["{}", "overlay_{}.png"])
def test_every_file_system_takes_the_name_as_one(name, form):
    made = form.format(file_name(name))
    assert made.isprintable() and not set(made) & set('/\\:*?"<>|\0') and len(made.encode()) <= 255
    assert made[0] != "." and made[-1] not in ". "
    assert made.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}


def test_a_name_is_created_where_it_is_wanted(tmp_path):
    names = FileNames()
    for name in HOSTILE:
        (tmp_path / f"overlay_{names(name)}.png").write_text(name.encode(errors="surrogatepass").hex())
    found = {bytes.fromhex(file.read_text()).decode(errors="surrogatepass") for file in tmp_path.iterdir()}
    assert found == set(HOSTILE)


def test_different_names_stay_different():
    names = ["a/b", "a:b", "a_b", "a\\b", "x" * 200, "x" * 201, "x" * 202, "../a", "./a", "脾" * 90, "脾" * 91]
    assert len({file_name(name) for name in names}) == len(names)
    assert file_name("case", "organ") == "case_organ"


def test_names_of_one_folder_stay_different_without_capitals():
    """Also those that differ by spaces, by how their accents are stored, or by where one of several ends."""
    names = FileNames()
    given = [("Liver",), ("liver",), ("LIVER",), ("a b",), ("a_b",), ("a", "b"), ("é",), ("e\u0301",), ("ß",), ("ss",)]
    made = [names(*one) for one in given]
    assert len({one.casefold() for one in made}) == len(given)
    assert [names(*one) for one in given] == made and made[0] == "Liver"
