"""Lists of ids and who gets which split."""

from tools.prepare.splits import read_list, split_up


def test_ids_in_the_order_of_their_first_line(tmp_path):
    file = tmp_path / "train.list"
    file.write_bytes(b"\xef\xbb\xbfdata/p3_slice1.h5\r\np3_slice2\r\n\r\n p1 \r\n")
    problems = []
    assert read_list(str(file), r"(p\d)", {"p1", "p2", "p3"}, problems) == ["p3", "p1"] and not problems


def test_what_a_list_should_not_hold(tmp_path):
    file, problems = tmp_path / "train.list", []
    file.write_text("p1\np9\nx\n")
    assert read_list(str(file), r"(p\d)", {"p1"}, problems) == ["p1"]
    assert [line.split("; ")[0] for line in problems] == [
        f"{file}, line 2: expected an id of the download, found p9",
        f"{file}, line 3: expected an id of the download, found x"]
    for wrong in (str(tmp_path), str(tmp_path / "lost"), "True"):
        problems = []
        assert read_list(wrong, r"(p\d)", {"p1"}, problems) == []
        assert problems[0].startswith(f"{wrong}: expected a text file with one id a line")
    file.write_bytes(b"\xff\xfe\x00")
    assert read_list(str(file), r"(p\d)", {"p1"}, problems) == [] and "UnicodeDecodeError" in problems[-1]


def test_the_first_that_no_list_names_are_labelled():
    problems = []
    splits = split_up(list("abcdef"), 2, ["a", "x"], ["d"], problems)
    assert splits == {"b": "training", "c": "training", "e": "unlabeled", "f": "unlabeled", "a": "validation",
                      "x": "validation", "d": "test"} and list(splits)[:2] == ["b", "c"]
    assert not problems
    split_up(list("abc"), 4, ["a"], ["a"], problems)
    assert problems == ["a: expected in one list, found for validation and for the test; take it out of one, or give "
                        "both lists", "labelled: expected 1 to 2, as many as there are to train on, found 4; correct "
                        "--labelled"]
