import math

import numpy as np
import pytest
from scipy import ndimage

from common.report import case_rows, format_table, score_structure, summarise

SPACING = (1.0, 2.0, 5.0)


def box(start, stop, shape=(12, 10, 6)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def directed(source, target, spacing):
    """Distances from each surface voxel of one mask to the surface of the other, by scipy."""
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (source, target)]
    return ndimage.distance_transform_edt(~surfaces[1], sampling=spacing)[surfaces[0]]


def test_distances_worked_by_hand():
    # two single voxels, 3 apart along x (1 mm), 2 along y (2 mm), 1 along z (5 mm)
    row = score_structure(box((2, 2, 2), (3, 3, 3)), box((5, 4, 3), (6, 5, 4)), SPACING)
    distance = math.sqrt(3**2 + 4**2 + 5**2)
    assert row["status"] == "ok" and row["dice"] == 0
    assert row["hd95_mm"] == pytest.approx(distance) and row["asd_mm"] == pytest.approx(distance)
    assert (row["truth_voxels"], row["prediction_voxels"], row["truth_ml"]) == (1, 1, pytest.approx(0.01))


def test_dice_and_volumes_worked_by_hand():
    row = score_structure(box((0, 0, 0), (4, 4, 4)), box((2, 0, 0), (6, 4, 4)), SPACING)
    assert row["dice"] == pytest.approx(0.5)  # 64 voxels each, half of them shared
    assert row["jaccard"] == pytest.approx(32 / 96)
    assert row["truth_ml"] == row["prediction_ml"] == pytest.approx(64 * 10 / 1000)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 4.0), (2.0, 0.5)])
def test_distances_equal_scipy(seed, spacing):
    noise = np.random.default_rng(seed).normal(size=(2, 16, 14, 9)[: len(spacing) + 1])
    truth, prediction = (ndimage.gaussian_filter(field, 2) for field in noise)
    truth, prediction = truth > np.quantile(truth, 0.7), prediction > np.quantile(prediction, 0.8)  # touch the border
    there, back = directed(prediction, truth, spacing), directed(truth, prediction, spacing)
    row = score_structure(prediction, truth, spacing)
    assert row["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert row["asd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert row["hd95_mm_found_only"] == row["hd95_mm"] and row["asd_mm_found_only"] == row["asd_mm"]


@pytest.mark.parametrize("seed", range(3))
def test_jaccard_is_intersection_over_union(seed):
    truth, prediction = np.random.default_rng(seed).random((2, 9, 8, 7)) > 0.6
    row = score_structure(prediction, truth, SPACING, distances=False)
    assert row["jaccard"] == pytest.approx((truth & prediction).sum() / (truth | prediction).sum())
    assert list(row)[:3] == ["status", "dice", "jaccard"] and math.isnan(row["hd95_mm"])


def test_missed_structure_counts_with_the_diagonal_of_the_volume():
    row = score_structure(box((0, 0, 0), (0, 0, 0)), box((1, 1, 1), (3, 3, 3)), SPACING)
    diagonal = math.sqrt(12**2 + 20**2 + 30**2)
    assert (row["status"], row["dice"], row["hd95_mm"], row["asd_mm"]) == ("missed", 0, diagonal, diagonal)
    assert row["jaccard"] == 0
    assert math.isnan(row["hd95_mm_found_only"]) and math.isnan(row["asd_mm_found_only"])


def test_false_positive_costs_dice_and_shows_its_volume():
    row = score_structure(box((1, 1, 1), (3, 3, 3)), box((0, 0, 0), (0, 0, 0)), SPACING)
    assert (row["status"], row["dice"], row["prediction_ml"]) == ("false_positive", 0, pytest.approx(0.08))
    assert row["jaccard"] == 0
    assert math.isnan(row["hd95_mm"]) and math.isnan(row["asd_mm"])


def test_absent_structure_is_not_scored():
    row = score_structure(box((0, 0, 0), (0, 0, 0)), box((0, 0, 0), (0, 0, 0)), SPACING)
    assert row["status"] == "absent" and math.isnan(row["dice"]) and math.isnan(row["hd95_mm"])
    assert math.isnan(row["jaccard"])


def test_volumes_have_no_meaning_in_2d():
    row = score_structure(np.eye(4), np.eye(4), (1, 1))
    assert row["dice"] == 1 and math.isnan(row["truth_ml"])


def test_pixels_stand_in_the_names_of_the_columns():
    millimetres = score_structure(box((2, 2), (3, 3), (12, 10)), box((5, 6), (6, 7), (12, 10)), (1, 1))
    pixels = score_structure(box((2, 2), (3, 3), (12, 10)), box((5, 6), (6, 7), (12, 10)), (1, 1), unit="px")
    assert pixels["hd95_px"] == pixels["asd_px"] == pixels["asd_px_found_only"] == pytest.approx(5)
    assert [key.replace("_px", "_mm") for key in pixels] == list(millimetres)
    assert not any("_mm" in key for key in pixels) and not any("_px" in key for key in millimetres)
    missed = score_structure(box((0, 0), (0, 0), (3, 4)), box((1, 1), (2, 2), (3, 4)), (1, 1), unit="px")
    assert missed["hd95_px"] == missed["asd_px"] == 5 and math.isnan(missed["hd95_px_found_only"])
    volume = score_structure(np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1, 1, 1), unit="px")
    assert volume["truth_voxels"] == 8 and math.isnan(volume["truth_ml"])
    with pytest.raises(ValueError, match="unit: expected one of mm, px, found cm"):
        score_structure(np.eye(3), np.eye(3), (1, 1), unit="cm")


def test_distances_in_voxels_know_no_spacing():
    masks = box((2, 2, 2), (3, 3, 3)), box((5, 6, 2), (6, 7, 3))
    row = score_structure(*masks, (2, 0.5, 3), distance_unit="voxels")
    assert row["hd95_voxels"] == row["asd_voxels"] == row["asd_voxels_found_only"] == pytest.approx(5)
    assert not any("_mm" in key for key in row)
    assert row["truth_ml"] == pytest.approx(0.003)
    missed = score_structure(np.zeros((2, 3, 6)), np.ones((2, 3, 6)), (9, 9, 9), distance_unit="voxels")
    assert missed["hd95_voxels"] == missed["asd_voxels"] == 7
    photograph = score_structure(np.zeros((3, 4)), np.ones((3, 4)), (1, 1), unit="px", distance_unit="voxels")
    assert photograph["hd95_voxels"] == 5
    assert "HD95 voxels" in format_table(summarise([{"structure": "x", **row}, {"structure": "x", **missed}]))
    same = score_structure(*masks, (2, 0.5, 3), distance_unit="mm")
    assert same == score_structure(*masks, (2, 0.5, 3)) and same["hd95_mm"] == pytest.approx(math.hypot(6, 2))
    left_out = score_structure(*masks, (1, 1, 1), distances=False, distance_unit="voxels")
    assert math.isnan(left_out["hd95_voxels"]) and left_out["dice"] == 0
    with pytest.raises(ValueError, match="distance_unit: expected one of mm, voxels, found px"):
        score_structure(*masks, (1, 1, 1), distance_unit="px")


@pytest.mark.parametrize("seed", range(3))
def test_directed_distance_goes_from_the_prediction_to_the_truth(seed):
    noise = np.random.default_rng(seed).normal(size=(2, 20, 24))
    truth, prediction = (ndimage.gaussian_filter(field, 2) > 0.02 for field in noise)
    there, back = directed(prediction, truth, (1, 1)), directed(truth, prediction, (1, 1))
    assert abs(there.mean() - back.mean()) > 0.01  # otherwise the test says nothing
    row = score_structure(prediction, truth, (1, 1), unit="px", symmetric=False)
    assert row["asd_px"] == pytest.approx(there.mean(), rel=1e-5)
    # the larger of the two directions, as ever
    assert row["hd95_px"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)
    assert row["asd_px_found_only"] == row["asd_px"]
    assert row["dice"] == score_structure(prediction, truth, (1, 1), unit="px")["dice"]


@pytest.mark.parametrize(("shape", "spacing"), [((3, 3), (1, 1, 1)), ((3, 3, 3), (1, 1)), ((3, 3, 3), (1, 0, 1))])
def test_bad_input_is_refused(shape, spacing):
    with pytest.raises(ValueError, match="one shape and a positive spacing"):
        score_structure(np.zeros(shape), np.zeros((3, 3, 3)), spacing)


@pytest.fixture
def rows():
    """liver found, missed, absent, false positive in cases a..d; spleen found in all."""
    shape = (8, 8, 4)
    full, none = box((1, 1, 1), (4, 4, 3), shape) * 1, np.zeros(shape, dtype=int)
    spleen = box((5, 5, 1), (7, 7, 3), shape) * 2
    pairs = {"a": (full, full), "b": (none, full), "c": (none, none), "d": (full, none)}
    labels = {1: "liver", 2: "spleen"}
    return [
        row
        for case, (prediction, truth) in pairs.items()
        for row in case_rows(case, prediction + spleen, truth + spleen, labels, (1, 1, 1), protocol="x", seed=0)
    ]


def test_summary_counts_everything(rows):
    liver, spleen, pooled = summarise(rows)
    assert (liver["structure"], spleen["structure"], pooled["structure"]) == ("liver", "spleen", "all")
    assert [liver[key] for key in ("n", "n_absent", "n_missed", "n_false_positive")] == [4, 1, 1, 1]
    assert liver["dice_mean"] == pytest.approx(1 / 3)  # 1, 0 (missed), 0 (false positive)
    assert liver["dice_std"] == pytest.approx(math.sqrt(1 / 3))
    assert liver["hd95_mm_mean"] == pytest.approx(12 / 2)  # 0 and the diagonal of 8 x 8 x 4
    assert liver["hd95_mm_found_only_mean"] == 0 and math.isnan(liver["hd95_mm_found_only_std"])
    assert spleen["dice_mean"] == 1 and pooled["n"] == 8 and pooled["dice_mean"] == pytest.approx(5 / 7)
    assert pooled["jaccard_mean"] == pytest.approx(5 / 7) and liver["jaccard_std"] == pytest.approx(math.sqrt(1 / 3))


def test_distances_may_be_left_out_of_a_case():
    full = box((1, 1, 1), (4, 4, 3)) * 1
    [row] = case_rows("a", full, full, {1: "liver"}, (1, 1, 1), distances=False, scan="a_2")
    assert row["dice"] == 1 and math.isnan(row["asd_mm"]) and list(row)[:3] == ["case", "scan", "structure"]


def test_summary_by_an_extra_column(rows):
    rows = rows + [row | {"protocol": "y"} for row in rows[:2]]
    summary = summarise(rows, by=("protocol", "structure"))
    names = [(line["protocol"], line["structure"], line["n"]) for line in summary]
    assert names[:4] == [("x", "liver", 4), ("x", "spleen", 4), ("y", "liver", 1), ("y", "spleen", 1)]
    assert names[4:] == [("x", "all", 8), ("y", "all", 2)]


def test_table(rows):
    lines = format_table(summarise(rows, by=("protocol", "structure"))).splitlines()
    assert len({len(line) for line in lines}) == 1 and set(lines[1]) <= set("|- ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["protocol", "structure", "Dice", "Jaccard", "HD95 mm"] and cells[0][-3:] == [
        "absent",
        "missed",
        "false positive",
    ]
    assert cells[2][:4] == ["x", "liver", "0.333 ± 0.577", "0.333 ± 0.577"]
    assert cells[2][4:] == ["6.0 ± 8.5", "0.0", "6.0 ± 8.5", "4", "1", "1", "1"]


def test_table_of_a_structure_that_is_never_there_and_of_nothing():
    rows = case_rows("a", np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), {1: "liver"}, (1, 1, 1))
    assert "| liver     | -    | -       | -       |" in format_table(summarise(rows))
    assert summarise([]) == [] and format_table([]).startswith("| Dice")


def test_the_table_has_the_unit_of_the_rows(rows):
    maps = [np.zeros((8, 8), dtype=int) for _ in range(2)]
    maps[0][2, 2], maps[1][2, [5, 7]] = 1, 1
    photographs = case_rows("a", *maps, {1: "disc"}, (1, 1), unit="px", domain="east")
    summary = summarise(photographs, by=("domain", "structure"))
    assert summary[0]["asd_px_mean"] == pytest.approx((3 + 3 + 5) / 3) and photographs[0]["domain"] == "east"
    lines = format_table(summary).splitlines()
    assert "| HD95 px | HD95 px, found only | ASD px |" in lines[0] and "mm" not in lines[0]
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "east", "disc", "0.000", "0.000", "4.9", "4.9", "3.7", "1", "0", "0", "0"]
    with pytest.raises(ValueError, match="distances in one unit, found mm and px"):
        summarise([*rows, *photographs])
