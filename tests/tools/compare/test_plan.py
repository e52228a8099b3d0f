import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.compare.plan import check_overrides, choose_variants, make_runs, read_grid, read_settings

DATASET = SimpleNamespace(labels={2: "spleen", 1: "liver"}, folds=[["a"], ["b"], ["c"]])
GRID = {"seed": [0, 1], "fold": "each fold", "novel_labels": "each label"}


def test_settings_have_the_chosen_group_as_variants(bundles):
    settings = read_settings(bundles / "toy_bundle" / "configs" / "compare.json", "pair")
    assert list(settings["variants"]) == ["ours", "theirs"] and settings["measure"] == "dice"


def test_the_floor_may_be_missing(tmp_path):
    file = tmp_path / "compare.json"
    file.write_text('{"variants": {"a": {}}, "overrides": {}, "grid": {}, "columns": ["x"], "measure": "dice"}')
    assert read_settings(file, "variants")["floor"] == {}


def test_every_problem_of_the_settings_is_listed(tmp_path):
    file = tmp_path / "compare.json"
    file.write_text(json.dumps({"variants": {"a": {}}, "gird": {"seed": [0]}, "columns": "structure", "measure": "dice",
                                "overrides": {}}))
    with pytest.raises(SystemExit) as caught:
        read_settings(file, "ablation")
    text = caught.value.code
    assert "`grid`: expected a dict, found null" in text and '`columns`: expected a list, found "structure"' in text
    assert "`gird`: expected a group of variants" in text and "group: expected one of variants, gird" in text


@pytest.mark.parametrize("content, message", [(None, "no such file"), ("{", "expected JSON")])
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


def test_grid_of_the_data_set():
    assert read_grid(GRID, {}, DATASET) == {"seed": [0, 1], "fold": [0, 1, 2], "novel_labels": [[1], [2]]}
    assert read_grid(GRID, {}, SimpleNamespace(labels={1: "a"}, folds=[]))["fold"] == [0]


def test_grid_asked_for():
    axes = {"seeds": [4], "folds": [2, 0], "labels": [2]}
    assert read_grid(GRID, axes, DATASET) == {"seed": [4], "fold": [2, 0], "novel_labels": [[2]]}


@pytest.mark.parametrize("grid, axes, message", [
    (GRID, {"labels": [1, 7]}, r"--labels: expected some of .*, found \[7\]"),
    ({"seed": [0]}, {"labels": [1]}, "--labels: this comparison has no such axis; its grid is over seed"),
    ({"seed": [0]}, {"folds": [1]}, "--folds: this comparison has no such axis"),
    ({"seed": "each seed"}, {}, 'expected a list, "each label" or "each fold" for `seed`, found "each seed"'),
    ({"seed": []}, {}, "expected a list"),
])  # fmt: skip
def test_refused_grids(grid, axes, message):
    with pytest.raises(SystemExit, match=message):
        read_grid(grid, axes, DATASET)


def test_runs_of_a_grid_point_are_neighbours():
    grid = {"seed": [0, 1], "novel_labels": [[1], [2]]}
    runs = make_runs(Path("c"), {"A": {}, "B": {}}, grid, {}, Path("/out"))
    assert [(run.variant, *run.point.values()) for run in runs] == [
        ("A", 0, [1]), ("B", 0, [1]), ("A", 0, [2]), ("B", 0, [2]),
        ("A", 1, [1]), ("B", 1, [1]), ("A", 1, [2]), ("B", 1, [2]),
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == 8 and all(run.folder.is_relative_to("/out/runs") for run in runs)


def test_a_run_has_shared_own_and_grid_overrides():
    variants = {"A+ (x)": {"config": "paper.json", "k": None, "n": 2}}
    shared = {"n": 1, "cache": "{output}/cache", "deep": {"list": ["{output}"]}}
    [run] = make_runs(Path("c"), variants, {"seed": [3]}, shared, Path("/out"))
    assert run.config_files == ["c/train.json", "c/paper.json"]
    assert run.overrides == {"n": 2, "cache": "/out/cache", "deep": {"list": ["/out"]}, "k": None, "seed": 3}
    assert run.folder == Path("/out/runs/seed_3/A+_x_") and run.name == "A+ (x), seed 3"


@pytest.mark.parametrize("key", ["seed", "ckpt_dir", "resume"])
def test_overrides_without_effect_are_refused(key):
    check_overrides({"max_epochs": 3}, GRID)
    with pytest.raises(SystemExit, match=f"sets {key} of each run"):
        check_overrides({"max_epochs": 3, key: 1}, GRID)
