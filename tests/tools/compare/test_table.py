import math

from tools.compare.table import format_tables, make_tables


def entry(measure, *columns, less_is_better=False, title=""):
    return {"measure": measure, "columns": list(columns), "less_is_better": less_is_better, "title": title}


SETTINGS = {"variants": {"ours": {}, "theirs": {}}, "grid": {"seed": [0, 1]},
            "tables": [entry("dice", "protocol", "structure")],
            "floor": {"name": "copied mask", "measures": {"dice": "copy_dice"}}}  # fmt: skip


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
    """Each case is 20 above the floor in the liver, 25 below in the spleen. Two cases have 4 sign patterns: p 0.5."""
    assert format_tables(make_tables(rows_of(), SETTINGS), "ours").split("\n\n")[:3] == ["""\
| parts3 (%)  | liver       | spleen     | mean        |
| ----------- | ----------- | ---------- | ----------- |
| ours        | 70.0 ± 14.1 | 25.0 ± 7.1 | 47.5 ± 10.6 |
| theirs      | 60.0 ± 14.1 | 15.0 ± 7.1 | 37.5 ± 10.6 |
| copied mask | 50.0        | 50.0       | 50.0        |""", """\
| ours minus  | difference | 95 % interval  | p     | n |
| ----------- | ---------- | -------------- | ----- | - |
| theirs      | +10.0      | +10.0 to +10.0 | 0.500 | 2 |
| copied mask | -2.5       | -2.5 to -2.5   | 0.500 | 2 |""", """\
| ep2 (%)     | liver      | spleen     | mean       |
| ----------- | ---------- | ---------- | ---------- |
| ours        | 35.0 ± 7.1 | 12.5 ± 3.5 | 23.8 ± 5.3 |
| theirs      | 30.0 ± 7.1 | 7.5 ± 3.5  | 18.8 ± 5.3 |
| copied mask | 25.0       | 25.0       | 25.0       |"""]


def test_one_column_and_no_floor_make_one_table_without_a_name():
    tables = make_tables(rows_of(["parts3"]), SETTINGS | {"tables": [entry("dice", "structure")], "floor": {}})
    assert format_tables(tables, "ours").splitlines()[0] == "| Dice (%) | liver       | spleen     | mean        |"
    assert list(tables[0].lines) == ["ours", "theirs"] and list(tables[0].tests) == ["theirs"]


def test_a_variant_without_a_structure_shows_a_dash():
    rows = [row for row in rows_of(["parts3"]) if (row["variant"], row["structure"]) != ("theirs", "spleen")]
    lines = format_tables(make_tables(rows, SETTINGS), "ours").splitlines()
    assert lines[3].split("|")[3].strip() == "-" and "60.0 ± 14.1" in lines[3].split("|")[4]


def test_raw_measures_beside_shares():
    """asd_mm of a row is 20 times what its Dice lacks: ours 8 and 4 (seeds) in the liver, 16 and 14 in the spleen."""
    rows = [row | {"asd_mm": 20 * (1 - row["dice"])} for row in rows_of(["parts3"])]
    entries = [entry("dice", "protocol", "structure"), entry("asd_mm", "protocol", "structure", less_is_better=True),
               entry("asd_mm", "structure", title="Distance")]  # fmt: skip
    tables = make_tables(rows, SETTINGS | {"tables": entries})
    assert [table.head for table in tables] == ["parts3: Dice (%)", "parts3: ASD (mm), less is better", "Distance (mm)"]
    assert [list(table.lines) for table in tables] == [["ours", "theirs", "copied mask"], *[["ours", "theirs"]] * 2]
    assert format_tables(tables[1:2], "ours") == """\
| parts3: ASD (mm), less is better | liver     | spleen     | mean       |
| -------------------------------- | --------- | ---------- | ---------- |
| ours                             | 6.0 ± 2.8 | 15.0 ± 1.4 | 10.5 ± 2.1 |
| theirs                           | 8.0 ± 2.8 | 17.0 ± 1.4 | 12.5 ± 2.1 |

| ours minus | difference | 95 % interval | p     | n |
| ---------- | ---------- | ------------- | ----- | - |
| theirs     | -2.0       | -2.0 to -2.0  | 0.500 | 2 |"""


def test_one_measure_is_named_by_its_unit_where_a_table_has_a_name():
    rows = [row | {"asd_mm": row["dice"]} for row in rows_of(["parts3"])]
    for entries, head in (
        ([entry("asd_mm", "protocol", "structure", less_is_better=True)], "parts3 (mm), less is better"),
        ([entry("asd_mm", "protocol", "structure", title="Distance")], "parts3: Distance (mm)"),
        ([entry("dice", "protocol", "structure"), entry("dice", "protocol", "case")], "parts3 (%)"),
    ):
        assert make_tables(rows, SETTINGS | {"tables": entries})[0].head == head


def test_rows_without_a_column_or_a_number_belong_to_no_table():
    """A run's own row: of no structure, with what is measured once a run."""
    rows = [row | {"scatter": math.nan} for row in rows_of()]
    rows += [{"variant": variant, "seed": seed, "case": "", "protocol": "parts3", "structure": "", "dice": math.nan,
              "copy_dice": math.nan, "scatter": scatter}
             for variant, scatters in (("ours", (0.1, 0.3)), ("theirs", (0.5, 0.7))) for seed, scatter in
             enumerate(scatters)]  # fmt: skip
    dice, again, scatter = make_tables(rows, SETTINGS | {"tables": [
        entry("dice", "protocol", "structure"), entry("scatter", "protocol", "seed")]})
    assert dice.columns == again.columns == ["liver", "spleen", "mean"]
    assert scatter.name == "parts3" and scatter.columns == ["0", "1", "mean"]  # there is no table of ep2
    assert "| theirs     | -0.400     | -             | - | 1 |" in format_tables([scatter], "ours")  # no case, no test
    assert [round(mean, 6) for mean, _ in scatter.lines["ours"]] == [0.1, 0.3, 0.2]


def test_cases_without_a_number_on_one_side_are_left_out_on_both():
    rows = rows_of(["parts3"])
    of = {("ours", "liver", 0, "a"): math.nan, ("theirs", "spleen", 1, "b"): math.nan, ("ours", "spleen", 0, "a"): 0.9}
    for row in rows:
        row["dice"] = of.get((row["variant"], row["structure"], row["seed"], row["case"]), row["dice"])
    test = make_tables(rows, SETTINGS | {"floor": {}})[0].tests["theirs"]
    # spleen of a: (0.9 - 0.1 + 0.1) / 2; the other three 0.1 as ever, liver of a from seed 1, spleen of b from seed 0
    assert test.n == 2 and round(test.mean, 6) == 100 * round(((0.45 + 0.1) / 2 + 0.1) / 2, 8)


def test_jaccard_is_a_share():
    rows = [row | {"jaccard": row["dice"] / 2} for row in rows_of(["parts3"])]
    tables = make_tables(rows, SETTINGS | {"tables": [entry("jaccard", "structure")], "floor": {}})
    assert format_tables(tables, "ours").splitlines()[:3] == [
        "| Jaccard (%) | liver      | spleen     | mean       |",
        "| ----------- | ---------- | ---------- | ---------- |",
        "| ours        | 35.0 ± 7.1 | 12.5 ± 3.5 | 23.8 ± 5.3 |"]


def test_a_case_is_one_unit_whatever_the_columns_are():
    """Organs from runs of their own, structures in columns, structures inside of a domain: the cases are counted."""
    gains = {"a": (0.1, 0.3), "b": (0.2, 0.2), "c": (0.3, 0.5)}  # liver, spleen
    rows = [{"variant": variant, "novel_labels": str([k]), "structure": structure, "domain": "BA"[case == "a"],
             "seed": seed, "support": support, "case": case, "dice": 0.1 + gains[case][k] * (variant == "ours")}
            for variant in ("ours", "theirs") for case in gains for k, structure in enumerate(("liver", "spleen"))
            for seed in (0, 1) for support in ("s", "t")]  # fmt: skip
    rows[0]["dice"] = math.nan  # of ours, with support s: theirs does not count there
    rows[len(rows) // 2]["dice"] = 0.9
    for column in ("structure", "domain", "seed"):
        settings = SETTINGS | {"tables": [entry("dice", column)], "floor": {}, "grid": {"seed": [], "novel_labels": []}}
        test = make_tables(rows, settings)[0].tests["theirs"]
        assert test.n == 3 and round(test.mean, 6) == round(100 * (0.2 + 0.2 + 0.4) / 3, 6)


def test_scans_of_a_case_are_paired_one_by_one_and_make_one_unit():
    """Two time points of each patient. One of patient a has no number on one side: the other's does not count there."""
    scores = {("a", "ed"): (0.8, 0.7), ("a", "es"): (0.2, math.nan), ("b", "ed"): (0.6, 0.4), ("b", "es"): (0.5, 0.1)}
    rows = [{"variant": variant, "structure": "liver", "seed": 0, "case": case, "scan": scan, "dice": pair[side]}
            for (case, scan), pair in scores.items() for side, variant in enumerate(("ours", "theirs"))]  # fmt: skip
    [table] = make_tables(rows, SETTINGS | {"tables": [entry("dice", "structure")], "floor": {}})
    assert round(table.lines["ours"][0][0], 6) == 52.5  # all four
    assert table.tests["theirs"].n == 2 and round(table.tests["theirs"].mean, 6) == (10 + (20 + 40) / 2) / 2
