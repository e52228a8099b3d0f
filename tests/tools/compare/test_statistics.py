import math

import numpy as np
import pytest
from scipy import stats

from tools.compare.statistics import cell, mean_cell, paired, units


def rows_of(*table):
    return [dict(zip(("seed", "case", "structure", "dice"), line, strict=True)) for line in table]


def test_cell_by_hand():
    rows = rows_of((0, "a", "x", 0.2), (0, "b", "x", 0.4), (1, "a", "x", 0.5), (1, "b", "x", 0.9))
    mean, spread = cell(rows, "dice")
    assert mean == pytest.approx(0.5)
    assert spread == pytest.approx(0.4 / math.sqrt(2))  # seeds' means 0.3 and 0.7


def test_one_seed_has_no_spread_and_nothing_no_mean():
    assert math.isnan(cell(rows_of((0, "a", "x", 0.2), (0, "b", "x", 0.4)), "dice")[1])
    assert all(math.isnan(value) for value in cell([], "dice") + mean_cell([[]], "dice"))


def test_columns_count_alike_in_the_mean():
    large = rows_of(*((seed, case, "x", 0.2 + 0.2 * seed) for seed in (0, 1) for case in "abc"))
    small = rows_of((0, "a", "y", 0.8), (1, "a", "y", 1.0))
    mean, spread = mean_cell([large, small, []], "dice")
    assert mean == pytest.approx((0.3 + 0.9) / 2)
    assert spread == pytest.approx(0.2 / math.sqrt(2))  # seeds' means 0.5 and 0.7


def test_units_average_seeds_folds_and_supports():
    rows = rows_of((0, "a", "x", 0.1), (1, "a", "x", 0.3), (0, "a", "y", 0.5), (0, "b", "x", 0.7))
    assert units(rows, "dice", ("case", "structure")) == pytest.approx(
        {("a", "x"): 0.2, ("a", "y"): 0.5, ("b", "x"): 0.7})


def test_paired_by_hand():
    """Five positive differences: p is 2 of the 2^5 sign patterns; Student's quantile for 4 degrees is 2.7764."""
    gains = [0.01, 0.02, 0.03, 0.04, 0.10]
    theirs = rows_of(*((0, str(i), "x", 0.1 * i) for i in range(5)))
    ours = rows_of(*((0, str(i), "x", 0.1 * i + gain) for i, gain in enumerate(gains)))
    test = paired(ours, theirs, "dice")
    half = 2.7764451 * np.std(gains, ddof=1) / math.sqrt(5)
    assert (test.mean, test.low, test.high) == pytest.approx((0.04, 0.04 - half, 0.04 + half), abs=1e-6)
    assert test.p == pytest.approx(2 / 32) and test.n == 5


def test_paired_agrees_with_scipy_on_averaged_cases():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 3, 12))  # side, seed, case
    sides = [rows_of(*((s, str(c), "x", side[s, c]) for s in range(3) for c in range(12))) for side in scores]
    test = paired(*sides, "dice")
    ours, theirs = scores.mean(1)
    assert test.p == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (test.low, test.high, test.n) == pytest.approx((low, high, 12))


def test_only_cases_of_both_sides_count():
    ours = rows_of((0, "a", "x", 0.5), (0, "b", "x", 0.7), (0, "c", "x", 0.9))
    theirs = rows_of((0, "b", "x", 0.2), (0, "a", "x", 0.1), (0, "d", "x", 0.1))
    test = paired(ours, theirs, "dice")
    assert test.mean == pytest.approx(0.45) and test.n == 2


def test_inside_of_a_case_only_what_both_sides_have_counts():
    """Case a has one pair (0.5 and 0.3); its 0.9 of seed 1 and its 0.8 of structure y have no counterpart."""
    ours = rows_of((0, "a", "x", 0.5), (1, "a", "x", 0.9), (0, "b", "x", 0.4), (0, "b", "y", 0.6))
    theirs = rows_of((0, "a", "x", 0.3), (0, "a", "y", 0.8), (0, "b", "x", 0.3), (0, "b", "y", 0.3))
    test = paired(ours, theirs, "dice", ["seed"])
    assert test.mean == pytest.approx((0.2 + (0.1 + 0.3) / 2) / 2) and test.n == 2


def test_structures_of_a_case_count_alike():
    """Case a: 0.2 in x from two seeds, 0.8 in y from one; case b has x alone. By rows a would have 0.4."""
    ours = rows_of((0, "a", "x", 0.5), (1, "a", "x", 0.7), (0, "a", "y", 0.9), (0, "b", "x", 0.4))
    theirs = rows_of((0, "a", "x", 0.3), (1, "a", "x", 0.5), (0, "a", "y", 0.1), (0, "b", "x", 0.3))
    test = paired(ours, theirs, "dice", ["seed"])
    assert test.mean == pytest.approx(((0.2 + 0.8) / 2 + 0.1) / 2) and test.n == 2


def test_without_a_difference_one_test_in_twenty_is_significant():
    """Patients differ in what they gain, 0 in the mean, and the three structures of one gain about the same."""
    rng, draws = np.random.default_rng(0), 1000
    rejected = 0
    for gains in rng.normal(size=(draws, 12, 1)) + 0.3 * rng.normal(size=(draws, 12, 3)):
        sides = [rows_of(*((0, case, structure, side * gain) for case, own in enumerate(gains.tolist())
                           for structure, gain in enumerate(own))) for side in (1, 0)]  # fmt: skip
        rejected += paired(*sides, "dice", ["seed"]).p < 0.05
    assert 0.03 * draws <= rejected <= 0.06 * draws


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pairs_give_no_interval(n):
    rows = rows_of(*[(0, "a", "x", 0.5)][:n])
    test = paired(rows, rows, "dice")
    assert test.n == n and math.isnan(test.p) and math.isnan(test.low) and math.isnan(test.mean) == (n == 0)


def test_equal_sides_are_not_significant():
    rows = rows_of(*((0, str(i), "x", 0.1 * i) for i in range(6)))
    test = paired(rows, rows, "dice")
    assert (test.mean, test.low, test.high, test.p, test.n) == (0, 0, 0, 1, 6)


def test_rounding_errors_make_no_spread():
    theirs = rows_of(*((0, str(i), "x", 0.1 * i) for i in range(6)))
    ours = [row | {"dice": row["dice"] + 0.1} for row in theirs]
    assert len({ours[i]["dice"] - theirs[i]["dice"] for i in range(6)}) > 1
    test = paired(ours, theirs, "dice")
    assert test.mean == test.low == test.high and test.p == pytest.approx(2 / 64)
