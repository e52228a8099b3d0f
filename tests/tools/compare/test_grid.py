from pathlib import Path
from types import SimpleNamespace

import pytest

from tools.compare.grid import read_grid

ITEMS = [{"domain": "rim_one"}, {"domain": "drishti"}, {}, {"domain": "rim_one"}]
DATASET = SimpleNamespace(labels={2: "spleen", 1: "liver"}, folds=[["a"], ["b"], ["c"]], training=ITEMS,
                          directory=Path("/data"))  # fmt: skip
GRID = {"seed": [0, 1], "fold": "each fold", "novel_labels": "each label"}
DOMAINS = {"target": "each domain", "seed": [0]}


def test_grid_of_the_data_set():
    assert read_grid(GRID, {}, DATASET) == {"seed": [0, 1], "fold": [0, 1, 2], "novel_labels": [[1], [2]]}
    assert read_grid(GRID, {}, SimpleNamespace(labels={1: "a"}, folds=[]))["fold"] == [0]
    assert read_grid(DOMAINS, {}, DATASET) == {"target": ["drishti", "rim_one"], "seed": [0]}
    sites = SimpleNamespace(training=[{"domain": site} for site in "FADCEB"])
    assert read_grid(DOMAINS, {}, sites)["target"] == list("ABCDEF")


def test_grid_asked_for():
    axes = {"seeds": [4], "folds": [2, 0], "labels": [2], "domains": None}
    assert read_grid(GRID, axes, DATASET) == {"seed": [4], "fold": [2, 0], "novel_labels": [[2]]}
    assert read_grid(DOMAINS, {"domains": ["rim_one"]}, DATASET) == {"target": ["rim_one"], "seed": [0]}


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
