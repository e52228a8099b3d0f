import json
from pathlib import Path

import pytest

from tools.compare.settings import choose_variants, read_settings

ROOT = Path(__file__).resolve().parents[3]
TABLE = {"measure": "dice", "columns": ["x"]}
SETTINGS = {"variants": {"a": {}}, "overrides": {}, "grid": {}, "tables": [TABLE]}


@pytest.fixture
def read(tmp_path):
    def call(content, group="variants"):
        (tmp_path / "compare.json").write_text(json.dumps(content))
        return read_settings(tmp_path / "compare.json", group)

    return call


def test_settings_have_the_chosen_group_as_variants(bundles):
    settings = read_settings(bundles / "toy_bundle" / "configs" / "compare.json", "pair")
    assert list(settings["variants"]) == ["ours", "theirs"]
    assert settings["floor"] == {"name": "copy", "measures": {"dice": "copy_dice"}}


def test_what_may_be_missing(read):
    settings = read(SETTINGS)
    assert settings["floor"] == {} and settings["tables"] == [TABLE | {"less_is_better": False, "title": ""}]


@pytest.mark.parametrize("file", sorted(ROOT.glob("bundles/*/configs/compare*.json")), ids=lambda file: file.parts[-3])
def test_the_bundles_settings_are_read(file):
    groups = [key for key in json.loads(file.read_text()) if key not in ("overrides", "grid", "tables", "floor")]
    assert groups and all(read_settings(file, group)["variants"] for group in groups)


def test_every_problem_of_the_settings_is_listed(read):
    with pytest.raises(SystemExit) as caught:
        read({"variants": {"a": {}}, "gird": {"seed": [0]}, "tables": "dice", "overrides": {}}, "ablation")
    text = caught.value.code
    assert "`grid`: expected a dict, found null" in text and '`tables`: expected a list, found "dice"' in text
    assert "`gird`: expected a group of variants" in text and "group: expected one of variants, gird" in text


@pytest.mark.parametrize("config", ["a.json", ["a.json", "b.json"]])
def test_a_variant_names_one_overlay_or_several(read, config):
    assert read(SETTINGS | {"variants": {"a": {"config": config}}})["variants"]["a"]["config"] == config


@pytest.mark.parametrize("config", [3, None, {"a.json": 1}, ["a.json", 1]])
def test_overlays_that_are_no_names_are_refused_in_any_group(read, config):
    with pytest.raises(SystemExit) as caught:
        read(SETTINGS | {"ablation": {"a": {"config": "a.json"}, "b": {"config": config}}})
    assert caught.value.code.splitlines()[1:] == [
        f"  `ablation`: expected a file's name or a list of them as `config` of b, found {json.dumps(config)}"]


def test_every_problem_of_the_tables_is_listed(read):
    tables = [TABLE, TABLE | {"colums": ["y"], "less_is_better": 1}, {"columns": ["x", "y", "z"]}, "dice",
              TABLE | {"columns": [3]}, TABLE | {"columns": []}]  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        read(SETTINGS | {"tables": tables})
    assert caught.value.code.splitlines()[1:] == [
        "  `tables[1]`: expected measure, columns, less_is_better, title, found colums",
        "  `tables[1]`: expected a bool as `less_is_better`, found 1",
        "  `tables[2]`: expected a str as `measure`, found null",
        '  `tables[2]`: expected the names of one or two `columns`, found ["x", "y", "z"]',
        '  `tables[3]`: expected an object, found "dice"',
        "  `tables[4]`: expected the names of one or two `columns`, found [3]",
        "  `tables[5]`: expected the names of one or two `columns`, found []",
    ]
    with pytest.raises(SystemExit, match="at least once, found none"):
        read(SETTINGS | {"tables": []})


@pytest.mark.parametrize("floor, message", [
    ({"name": "copy", "measures": {"dise": "copy_dice"}}, r"some `measures` of the tables \(dice\), found .*dise"),
    ({"name": "copy", "measures": {"dice": 1}}, r"some `measures` of the tables \(dice\)"),
    ({"name": "copy", "measures": {}}, r"some `measures` of the tables \(dice\)"),
    ({"name": "copy", "measure": "copy_dice"}, '`floor`: expected {"name": "...", "measures": {...}}, found'),
    ({"measures": {"dice": "copy_dice"}}, "`floor`: expected"),
])  # fmt: skip
def test_refused_floors(read, floor, message):
    with pytest.raises(SystemExit, match=message):
        read(SETTINGS | {"floor": floor})


@pytest.mark.parametrize("content, message", [(None, "no such file"), ("{", "expected JSON"),
                                              ('{"grid": {}, "grid": {}}', "`grid`: expected once in an object")])
def test_missing_or_broken_settings(tmp_path, content, message):
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    with pytest.raises(SystemExit, match=message):
        read_settings(tmp_path / "compare.json", "variants")


def test_chosen_variants_keep_the_order_asked_for():
    variants = {"a": {"x": 1}, "b": {}, "c": {}}
    assert list(choose_variants(variants, ["c", "a"])) == ["c", "a"] and choose_variants(variants, None) == variants
    with pytest.raises(SystemExit, match="expected some of a, b, c, found d"):
        choose_variants(variants, ["a", "d"])
