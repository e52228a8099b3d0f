"""The house rules that a reader relies on: which way imports run, how long files are, how checkpoints are loaded."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLES = sorted(folder.name for folder in (ROOT / "bundles").iterdir() if folder.is_dir())
SOURCES = [
    *(ROOT / "common").rglob("*.py"),
    *(ROOT / "tools").rglob("*.py"),
    *(file for name in BUNDLES for file in (ROOT / "bundles" / name / name).rglob("*.py")),
]


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_from_bundle_to_common_to_libraries(file):
    place = file.relative_to(ROOT).parts
    forbidden = {"tests"}
    if place[0] == "common":
        forbidden |= {*BUNDLES, "tools"}
    elif place[0] == "bundles":
        forbidden |= {"tools", *(name for name in BUNDLES if name != place[1])}
    assert not forbidden & set(imports(file))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_short_and_named_for_an_idea(file):
    assert len(file.read_text().splitlines()) <= 400
    assert file.stem not in {"utils", "helpers", "misc", "scripts"}


@pytest.mark.parametrize("config", ["inference", "evaluate"])
@pytest.mark.parametrize("name", BUNDLES)
def test_what_a_model_is_comes_from_its_file_alone(name, config):
    """No second place with a default of its own: network and preprocessing are rebuilt, options are read."""
    train, content = (
        json.loads((ROOT / "bundles" / name / "configs" / f"{file}.json").read_text()) for file in ("train", config)
    )
    network = content.get("trained_network", content["network_def"])  # few-shot inference adds annotated scans
    for made, part in ((network, "network"), (content["preprocessing_def"], "preprocessing")):
        assert made["_target_"] == "common.description.rebuild"
        assert made["description"] == f"$@trained['{part}']"
        assert all(value == f"@{key}" for key, value in made.items() if key not in ("_target_", "description"))
    keys = list(train)
    options = keys[keys.index("distance_unit") + 1 : keys.index("datalist")]
    read = {key: value for key, value in content.items() if key in options}
    assert read and all(re.match(r"\$.*@(trained|source_domains)\b", value) for value in read.values())


@pytest.mark.parametrize("name", BUNDLES)
def test_all_that_a_model_file_holds_is_read(name):
    configs = ROOT / "bundles" / name / "configs"
    model = json.loads((configs / "train.json").read_text())["model"]
    texts = "".join((configs / f"{file}.json").read_text() for file in ("inference", "evaluate"))
    code = "".join(file.read_text() for file in (ROOT / "common" / "report").glob("*.py"))  # the labels are compared
    assert {key for key in model if f"@trained['{key}']" not in texts and f'record["{key}"]' not in code} == set()


@pytest.mark.parametrize("name", BUNDLES)
def test_the_schedule_is_as_long_as_the_trainer_runs(name):
    """MONAI Label sets the trainer's own number of epochs."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / name / "configs" / "train.json")
    parser["train::trainer::max_epochs"] = 50
    assert parser.get_parsed_content("schedule_epochs") == 50
