import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.data import DataError
from tools.bundles import home_of
from tools.compare.grid import folds_made_by, read_grid

ITEMS = [{"domain": "rim_one"}, {"domain": "drishti"}, {}, {"domain": "rim_one"}]
DATASET = SimpleNamespace(labels={2: "spleen", 1: "liver"}, folds=[["a"], ["b"], ["c"]], training=ITEMS, validation=[],
                          directory=Path("/data"))  # fmt: skip
GRID = {"seed": [0, 1], "fold": "each fold", "novel_labels": "each label"}
DOMAINS = {"target": "each domain", "seed": [0]}


def test_grid_of_the_data_set():
    assert read_grid(GRID, {}, DATASET) == {"seed": [0, 1], "fold": [0, 1, 2], "novel_labels": [[1], [2]]}
    assert read_grid(DOMAINS, {}, DATASET) == {"target": ["drishti", "rim_one"], "seed": [0]}
    sites = SimpleNamespace(training=[{"domain": site} for site in "FADCEB"])
    assert read_grid(DOMAINS, {}, sites)["target"] == list("ABCDEF")


def test_grid_asked_for():
    axes = {"seeds": [4], "folds": [2, 0], "labels": [2], "domains": None}
    assert read_grid(GRID, axes, DATASET) == {"seed": [4], "fold": [2, 0], "novel_labels": [[2]]}
    assert read_grid(DOMAINS, {"domains": ["rim_one"]}, DATASET) == {"target": ["rim_one"], "seed": [0]}


@pytest.mark.parametrize("cases, folds", [(12, [0, 1, 2, 3, 4]), (3, [0, 1, 2])])
def test_folds_that_the_training_makes(cases, folds):
    """Where dataset.json lists none; where it names queries there are no folds."""
    made = folds_made_by(home_of("apscl_fewshot"))
    scans = [{"image": f"{i}.nii.gz", "case": f"case_{i}"} for i in range(cases)]
    dataset = SimpleNamespace(labels={1: "a"}, folds=[], training=scans, validation=[], directory=Path("/data"))
    assert read_grid(GRID, {}, dataset, made)["fold"] == folds
    assert read_grid(GRID, {"folds": [1]}, dataset, made)["fold"] == [1]
    data = importlib.import_module("apscl_fewshot.data")
    data.split_scans(dataset, folds[-1], "first")
    with pytest.raises(DataError, match=f"asked for fold {len(folds)}"):
        data.split_scans(dataset, len(folds), "first")
    queries = SimpleNamespace(labels={1: "a"}, folds=[["a"], ["b"]], training=scans, validation=scans[:1])
    assert read_grid(GRID, {}, queries, made)["fold"] == [0]
    assert folds_made_by(home_of("sgcg_dg")) == folds_made_by(Path("/elsewhere")) == 1


def test_any_key_may_have_a_list():
    grid = {"target": ["elsewhere"], "width": [8, 16]}
    assert read_grid(grid, {}, DATASET) == grid


@pytest.mark.parametrize("grid, axes, message", [
    (GRID, {"labels": [1, 7]}, r"--labels: expected some of 1 \(liver\), 2 \(spleen\), found 7"),
    (GRID, {"folds": [1, 3]}, "--folds: expected some of 0, 1, 2, found 3"),
    (DOMAINS, {"domains": ["rim_one", "refuge"]}, "--domains: expected some of drishti, rim_one, found refuge"),
    ({"seed": [0]}, {"labels": [1]}, "--labels: this comparison has no such axis; its grid is over seed"),
    ({"seed": [0]}, {"folds": [1]}, "--folds: this comparison has no such axis"),
    (GRID, {"domains": ["a"]}, "--domains: this comparison has no such axis; its grid is over seed, fold"),
    ({"seed": "each seed"}, {}, '"each fold" or "each domain" for `seed`, found "each seed"'),
    ({"seed": []}, {}, "expected a list"),
])  # fmt: skip
def test_refused_grids(grid, axes, message):
    with pytest.raises(SystemExit, match=message):
        read_grid(grid, axes, DATASET)


def test_data_without_domains_names_its_file():
    dataset = SimpleNamespace(training=[{}], directory=Path("/data"))
    with pytest.raises(SystemExit, match="^/data/dataset.json: `target` takes each domain of `training`"):
        read_grid(DOMAINS, {}, dataset)


@pytest.mark.parametrize("name", ["$1 + 1", "@seed", "%train.json"])
def test_domains_that_a_config_would_evaluate_are_refused(name):
    dataset = SimpleNamespace(training=[{"domain": "a"}, {"domain": name}], directory=Path("/data"))
    with pytest.raises(SystemExit) as caught:
        read_grid(DOMAINS, {}, dataset)
    assert caught.value.code.endswith(f"found {name}; rename them")
