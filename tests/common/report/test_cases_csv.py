"""cases.csv: what was given comes back, and a spreadsheet calculates none of it."""

import csv

import pytest

from common.report import read_cases_csv, write_cases_csv

NAN = float("nan")


def written(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_replace_older_ones_and_columns_are_those_of_all(tmp_path):
    path = tmp_path / "eval" / "cases.csv"
    write_cases_csv([{"case": "old"}] * 99, path)
    rows = [{"case": "a", "dice": 0.0, "hd95_mm": 12.0, "n": 3}, {"case": "b", "dice": 1 / 3, "hd95_mm": NAN}]
    write_cases_csv([*rows, {"case": "c", "support": "s1"}], path)
    assert written(path) == [
        {"case": "a", "dice": "0", "hd95_mm": "12", "n": "3", "support": ""},
        {"case": "b", "dice": "0.333333", "hd95_mm": "", "n": "", "support": ""},
        {"case": "c", "dice": "", "hd95_mm": "", "n": "", "support": "s1"},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["cases.csv"]


FORMULAE = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "＝1", '=HYPERLINK("http://x";"y")']
TEXTS = ["liver", "a,b", 'say "x"', "two\nlines", "'quoted'", "''", "", "כבד", "😀", "a=b", "1-2"]


@pytest.mark.parametrize("name", FORMULAE + TEXTS, ids=ascii)
def test_texts_come_back_and_none_is_a_formula(tmp_path, name):
    write_cases_csv([{"case": name, "dice": -0.5}], tmp_path / "cases.csv")
    (row,) = written(tmp_path / "cases.csv")
    assert not row["case"].lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝"))
    assert row["dice"] == "-0.5"  # a number is one
    assert name not in TEXTS or name[:1] == "'" or row["case"] == name
    columns, (back,) = read_cases_csv(tmp_path / "cases.csv")
    assert columns == ["case", "dice"] and back == {"case": name, "dice": "-0.5"}


def test_half_a_letter_is_written_as_its_number(tmp_path):
    """As Python reads file names that are not in UTF-8."""
    write_cases_csv([{"case": "scan_\udcff"}], tmp_path / "cases.csv")
    assert read_cases_csv(tmp_path / "cases.csv")[1] == [{"case": "scan_\\udcff"}]


def test_nothing_was_scored(tmp_path):
    write_cases_csv([], tmp_path / "cases.csv")
    assert read_cases_csv(tmp_path / "cases.csv") == ([], [])
