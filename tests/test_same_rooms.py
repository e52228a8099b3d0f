"""Knowing one bundle is knowing all: the same files, keys of one order, name, kind and meaning, the same headings."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(folder.name for folder in (ROOT / "bundles").iterdir() if folder.is_dir())
CONFIGS = ("train", "inference", "evaluate")
ROOMS = {"__init__", "network", "objective", "evaluator", "data", "inferer", "sample"}
OVERLAYS = {"paper", "evaluate", "multi_gpu_train", "compare"}
LEADING = {
    "train": [
        "imports", "bundle_root", "dataset_dir", "ckpt_dir", "output_dir", "device", "seed", "resume", "max_epochs",
        "val_interval", "batch_size", "learning_rate", "amp", "num_workers", "schedule_epochs", "iterations_per_epoch",
        "selection", "pictures", "distances", "distance_unit",
    ],
    "inference": [
        "imports", "bundle_root", "dataset_dir", "ckpt_dir", "output_dir", "device", "amp", "num_workers", "images",
        "overlay", "output_ext", "trained",
    ],
    "evaluate": ["trained"],
    "metadata": [
        "schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version",
        "required_packages_version", "supported_apps", "name", "task", "description",
    ],
}  # fmt: skip
UNCOUNTED = {"imports", "bundle_root", "dataset_dir", "ckpt_dir", "output_dir", "device"}
PARTS = {  # of a section, the same in all
    "train": ["preprocessing", "augmentation", "dataset", "dataloader", "inferer", "handlers", "trainer"],
    "validate": ["preprocessing", "dataset", "dataloader", "inferer", "handlers", "key_metric", "evaluator"],
}


def read(bundle, config):
    return json.loads((ROOT / "bundles" / bundle / "configs" / f"{config}.json").read_text())


def glossary():
    """Key to kind, in the order of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Keys of the configs")[2]
    return dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", text, flags=re.MULTILINE))


def kind_of(value):
    """As CONTRIBUTING.md names it; None where an expression or null does not show it."""
    if value is None or isinstance(value, str) and value[:1] in "$@":
        return None
    if isinstance(value, dict):
        return "part" if "_target_" in value else "table"
    return {bool: "true or false", int: "number", float: "number", str: "text", list: "list"}[type(value)]


@pytest.mark.parametrize("name", BUNDLES)
def test_files(name):
    folder = ROOT / "bundles" / name
    assert {file.stem for file in (folder / name).glob("*.py")} >= ROOMS
    assert {file.stem for file in (folder / "configs").glob("*.json")} >= OVERLAYS | {"train", "inference", "metadata"}
    loaded = (folder / name / "__init__.py").read_text().partition("# Loaded now")[2]
    # MONAI Label takes the path away, and a model.json finds its parts among what is loaded
    parts = {file.stem for file in (folder / name).glob("*.py") if "@described" in file.read_text()}
    assert {room for room in ROOMS | parts if not re.search(rf"\b{room}\b", loaded)} == {"__init__"}


@pytest.mark.parametrize("config", LEADING)
@pytest.mark.parametrize("name", BUNDLES)
def test_leading_keys(name, config):
    assert list(read(name, config))[: len(LEADING[config])] == LEADING[config]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", BUNDLES)
def test_keys_are_listed_and_have_their_order_and_kind(name, config):
    known = glossary()
    content = {key: value for key, value in read(name, config).items() if "::" not in key}
    assert set(content) <= set(known)
    assert list(content) == [key for key in known if key in content]
    kinds = {key: kind for key, value in content.items() if (kind := kind_of(value))}
    assert kinds == {key: known[key] for key in kinds}


@pytest.mark.parametrize("name", BUNDLES)
def test_sections(name):
    content = read(name, "train")
    for section, parts in PARTS.items():
        assert [key for key in content[section] if key in parts] == parts


@pytest.mark.parametrize("config", ["train", "inference", "evaluate", "multi_gpu_train"])
@pytest.mark.parametrize("name", BUNDLES)
def test_what_comes_first_loads_the_bundle_whatever_folders_are_given(name, config):
    """`common` and the classes of a model.json are found once the bundle's package is loaded."""
    content = read(name, config)
    first = content["run"][0]
    assert first["_target_"] == "common.engine.start"
    for part in [first, *([content["trained"]] if "trained" in content else [])]:
        assert part["_requires_"] == "@bundle_root"


@pytest.mark.parametrize("name", BUNDLES)
def test_train_json_is_short(name):
    lines = (ROOT / "bundles" / name / "configs" / "train.json").read_text().splitlines()
    keys = list(read(name, "train"))
    assert len(lines) <= 220
    assert len(set(keys[: keys.index("datalist")]) - UNCOUNTED) <= 25
    for file in (ROOT / "bundles" / name / "configs").glob("*.json"):
        if file.stem != "metadata":  # whose texts are MONAI's to form
            assert max(map(len, file.read_text().splitlines())) <= 140, file.name


@pytest.mark.parametrize("name", BUNDLES)
def test_no_key_is_read_by_nothing(name):
    """Each key of train.json is referred to in a config of the bundle, or belongs to the sections that MONAI reads."""
    content = read(name, "train")
    texts = " ".join(file.read_text() for file in (ROOT / "bundles" / name / "configs").glob("*.json"))
    ends = {"imports", "train", "validate", "initialize", "run", "finalize"}
    assert [key for key in content if key not in ends and not re.search(rf"@{key}\b", texts)] == []
    for section in ("train", "validate"):
        unread = [key for key in content[section] if not re.search(rf"@{section}::{key}\b", texts)]
        known = [key for key in unread if "_desc_" in content[section][key]]  # that says which library asks for it
        assert unread == known


def test_headings_of_the_readmes():
    headings = {
        name: re.findall(r"^## (.+)$", (ROOT / "bundles" / name / "docs" / "README.md").read_text(), flags=re.MULTILINE)
        for name in BUNDLES
    }
    first = headings[BUNDLES[0]]
    assert len(first) >= 6 and all(own == first for own in headings.values())
