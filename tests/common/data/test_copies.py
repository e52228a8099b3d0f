from dataclasses import dataclass
from pathlib import Path

import pytest

from common.data import DataError, refuse_shared


@dataclass
class Fact:
    image: str
    digest: str
    shape: tuple = (2, 2, 2)


A, B, C = ({"case": name, "image": f"{name}.nii"} for name in "abc")
FACTS = {"training": [Fact("a.nii", "x"), Fact("b.nii", "y"), Fact("c.nii", "x")]}


def test_a_copy_under_another_name():
    refuse_shared({"training": [A, C], "queries": [B]}, FACTS, Path("d"))  # in one part it is no leak
    with pytest.raises(DataError) as caught:
        refuse_shared({"training": [A, B], "queries": [C]}, FACTS, Path("d"))
    assert str(caught.value).splitlines()[1:] == [
        "  c, c.nii: expected an image that is in one split only, found the same voxels in a, a.nii (queries and "
        "training); remove one of them"]


def test_one_file_as_two_cases():
    with pytest.raises(DataError, match="e, a.nii: expected an image that is in one split only"):
        refuse_shared({"training": [A], "queries": [A | {"case": "e"}]}, FACTS, Path("d"))


def test_a_case_in_two_parts():
    other = {"case": "a", "image": "b.nii"}
    with pytest.raises(DataError, match="a: expected in one split, found in training and the target west"):
        refuse_shared({"training": [A], "the target west": [other]}, FACTS, Path("d"))
