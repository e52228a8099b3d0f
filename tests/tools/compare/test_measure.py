import math

import pytest

from tools.compare.measure import column_of, digits_of, factor_of, name_of


@pytest.mark.parametrize("measure, name", [
    ("dice", ("Dice", "%")), ("jaccard", ("Jaccard", "%")), ("hd95_mm", ("HD95", "mm")), ("asd_px", ("ASD", "px")),
    ("hd95_voxels", ("HD95", "voxels")),
    ("hd95_mm_found_only", ("HD95 found only", "mm")), ("scatter", ("Scatter", "")), ("mm", ("Mm", "mm")),
])  # fmt: skip
def test_names(measure, name):
    assert name_of(measure) == name
    assert factor_of(measure) == (100 if name[1] == "%" else 1)


@pytest.mark.parametrize("unit", ["mm", "px", "voxels"])
def test_the_unit_need_not_be_given(unit):
    columns = ["case", "dice", f"hd95_{unit}", f"hd95_{unit}_found_only", f"prior_asd_{unit}", "truth_voxels"]
    wanted = ("dice", "hd95", "hd95_found_only", "prior_asd", "hd95_mm", "truth")
    assert [column_of(measure, columns) for measure in wanted] == [
        "dice", f"hd95_{unit}", f"hd95_{unit}_found_only", f"prior_asd_{unit}", "hd95_mm", "truth"]  # fmt: skip
    assert column_of("hd95", ["hd95_mm", "hd95_voxels"]) == "hd95"


@pytest.mark.parametrize("numbers, digits", [
    ([12.3, 45.6, 9.8], 1), ([3.24, 2.5, 250.0], 2), ([0.077, 0.1, 0.06], 4), ([100.0], 0), ([4321.0], 0), ([-3.2], 2),
    ([math.nan, 0.0, 3.2], 2), ([0.0], 1), ([], 1),
])  # fmt: skip
def test_three_digits_of_the_median(numbers, digits):
    assert digits_of("asd_px", numbers) == digits


def test_percent_has_one_decimal():
    assert digits_of("dice", [0.05, 0.01]) == 1
