import json

import pytest

from common.data.errors import DataError
from common.data.json_file import read_json, repeated_keys


def error_of(folder, content):
    (folder / "f.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(folder / "f.json")
    assert str(folder / "f.json") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [[], {}, {"a": {"a": [{"a": 1}, {"a": 2}]}}, {"a": "\"a\": {", "b\\": ["a", ":"]}])
def test_valid_json_of_other_forms(tmp_path, value):
    """A key in another object, and what looks like a key in a text, is no second key."""
    (tmp_path / "f.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value, indent=1).encode())
    assert read_json(tmp_path / "f.json") == value


def test_a_key_twice_with_both_lines(tmp_path):
    text = '{"a": 1,\n "b": [{"c": 1,\n  "d": "}", "c": 2}],\n "\\u0061": 3}'
    problems = ["`c`: expected once in an object, found in line 2 and again in line 3; remove one",
                "`a`: expected once in an object, found in line 1 and again in line 4; remove one"]
    assert repeated_keys(text) == problems
    assert error_of(tmp_path, text.encode()).splitlines()[1:] == [f"  {line}" for line in problems]


@pytest.mark.parametrize(("content", "expected"), [
    (b"", "found an empty file"),
    (b" \n", "found an empty file"),
    ("{}".encode("utf-16"), "expected text in UTF-8, found other bytes"),
    (b'{"a": 1,\n}', "line 2 column 1"),
    (b'{\n "a": 1, // the first\n "b": 2}', "'\"a\": 1, // the first'; correct that line (JSON has no comments"),
    (b'{"a": NaN}', "found NaN, which is no number of JSON"),
    (b"[" * 100000, "too many brackets"),
])  # fmt: skip
def test_no_json(tmp_path, content, expected):
    assert expected in error_of(tmp_path, content)


def test_a_folder_of_that_name(tmp_path):
    (tmp_path / "f.json").mkdir()
    with pytest.raises(DataError, match="expected a file that can be read, found Is a directory"):
        read_json(tmp_path / "f.json")
