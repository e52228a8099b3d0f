from pathlib import Path

import pytest

from tools.compare.plan import check_overrides, make_runs

GRID = {"seed": [0, 1], "fold": "each fold", "novel_labels": "each label"}


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


def test_overlays_are_laid_over_train_json_in_order():
    variants = {"A": {}, "B": {"config": "b.json"}, "C": {"config": ["c.json", "b.json"], "k": 1}}
    runs = make_runs(Path("c"), variants, {"seed": [0]}, {}, Path("/out"))
    assert [[Path(file).name for file in run.config_files] for run in runs] == [
        ["train.json"], ["train.json", "b.json"], ["train.json", "c.json", "b.json"]]
    assert runs[2].overrides == {"k": 1, "seed": 0}


@pytest.mark.parametrize("key", ["seed", "ckpt_dir", "resume"])
def test_overrides_without_effect_are_refused(key):
    check_overrides({"max_epochs": 3}, GRID)
    with pytest.raises(SystemExit, match=f"sets {key} of each run"):
        check_overrides({"max_epochs": 3, key: 1}, GRID)


def test_folders_of_two_domains_and_runs_that_would_share_one():
    runs = make_runs(Path("c"), {"A": {}}, {"seed": [0], "target": ["rim one", "refuge"]}, {}, Path("/out"))
    assert [run.folder.parent.name for run in runs] == ["seed_0_target_rim_one", "seed_0_target_refuge"]
    assert [run.overrides["target"] for run in runs] == ["rim one", "refuge"]
    with pytest.raises(SystemExit) as caught:
        make_runs(Path("c"), {"A": {}}, {"target": ["rim one", "rim/one", "refuge"]}, {}, Path("/out"))
    assert caught.value.code.splitlines()[1:] == [
        "  /out/runs/target_rim_one/A: A, target rim one", "  /out/runs/target_rim_one/A: A, target rim/one"]
