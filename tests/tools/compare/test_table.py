import math

from tools.compare.table import format_tables, make_tables

SETTINGS = {"variants": {"ours": {}, "theirs": {}}, "columns": ["protocol", "structure"], "measure": "dice",
            "floor": {"name": "copied mask", "measure": "copy_dice"}}  # fmt: skip


def rows_of(protocols=("parts3", "ep2")):
    """ours 60 and 80 % (seeds) in the liver, 20 and 30 in the spleen; theirs 10 less; ep2 half of it; one is absent."""
    rows = []
    for protocol, factor in zip(protocols, (1, 0.5), strict=False):
        for variant, less in (("ours", 0), ("theirs", 0.1)):
            for structure, scores in (("liver", (0.6, 0.8)), ("spleen", (0.2, 0.3))):
                for seed, score in enumerate(scores):
                    row = {"variant": variant, "protocol": protocol, "structure": structure, "seed": seed,
                           "dice": (score - less) * factor, "copy_dice": 0.5 * factor}
                    rows += [row | {"case": case} for case in ("a", "b")]
            rows.append(rows[-1] | {"case": "absent", "dice": math.nan, "copy_dice": math.nan})
    return rows


def test_tables_by_hand():
    """The floor's ranks are 1.5, 1.5 up and 3.5, 3.5 down: 4 of 16 sign patterns have 3 or less up, p is twice that.

    Its interval: differences 20, 20, -25, -25, mean -2.5, deviation 25.98, 3.182 * 25.98 / 2 = 41.3.
    """
    assert format_tables(make_tables(rows_of(), SETTINGS), "ours").split("\n\n")[:3] == ["""\
| parts3 (%)  | liver       | spleen     | mean        |
| ----------- | ----------- | ---------- | ----------- |
| ours        | 70.0 ± 14.1 | 25.0 ± 7.1 | 47.5 ± 10.6 |
| theirs      | 60.0 ± 14.1 | 15.0 ± 7.1 | 37.5 ± 10.6 |
| copied mask | 50.0        | 50.0       | 50.0        |""", """\
| ours minus  | difference | 95 % interval  | p     | n |
| ----------- | ---------- | -------------- | ----- | - |
| theirs      | +10.0      | +10.0 to +10.0 | 0.125 | 4 |
| copied mask | -2.5       | -43.8 to +38.8 | 0.500 | 4 |""", """\
| ep2 (%)     | liver      | spleen     | mean       |
| ----------- | ---------- | ---------- | ---------- |
| ours        | 35.0 ± 7.1 | 12.5 ± 3.5 | 23.8 ± 5.3 |
| theirs      | 30.0 ± 7.1 | 7.5 ± 3.5  | 18.8 ± 5.3 |
| copied mask | 25.0       | 25.0       | 25.0       |"""]


def test_one_column_and_no_floor_make_one_table_without_a_name():
    tables = make_tables(rows_of(["parts3"]), SETTINGS | {"columns": ["structure"], "floor": {}})
    assert format_tables(tables, "ours").splitlines()[0] == "| (%)    | liver       | spleen     | mean        |"
    assert list(tables[0].lines) == ["ours", "theirs"] and list(tables[0].tests) == ["theirs"]


def test_a_variant_without_a_structure_shows_a_dash():
    rows = [row for row in rows_of(["parts3"]) if (row["variant"], row["structure"]) != ("theirs", "spleen")]
    lines = format_tables(make_tables(rows, SETTINGS), "ours").splitlines()
    assert lines[3].split("|")[3].strip() == "-" and "60.0 ± 14.1" in lines[3].split("|")[4]
