"""The house rules that a reader relies on: which way imports run, how long files are, how checkpoints are loaded."""

import ast
import json
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


@pytest.mark.parametrize("name", BUNDLES)
def test_default_network_is_the_same_in_training_and_inference(name):
    """A saved model must fit the network that deploys it: shared parts and numbers are equal."""
    train, inference = (
        json.loads((ROOT / "bundles" / name / "configs" / file).read_text())
        for file in ("train.json", "inference.json")
    )
    trained = {}
    for key, value in inference.items():
        if isinstance(value, str) and value.startswith("$@trained.get("):
            trained[key], inference[key] = ast.literal_eval(value.removeprefix("$@trained.get"))
    assert all(name == key for key, name in trained.items())
    savers = [handler for handler in train["train"]["handlers"] if handler["_target_"].endswith("BestModelSaver")]
    (settings,) = (handler["settings"] for handler in savers)
    # of the data, for evaluation alone
    others = {"fold", "support", "support_shots", "novel_labels", "target_domain", "source_domains", "single_source",
              "allow_missing", "trained_domains", "inference_network"}  # fmt: skip
    assert settings.keys() - others == trained.keys()
    numbers = {key for key, value in inference.items() if isinstance(value, (int, float, str, list)) or key in trained}
    numbers &= train.keys()
    varying = {"labels", "imports", "amp", "num_workers", "run", "initialize", "finalize", "support", "network"}
    assert {key: train[key] for key in numbers - varying} == {key: inference[key] for key in numbers - varying}
    shared = train["network_def"].keys() & inference["network_def"].keys() - {"_target_"}
    network = train["network_def"]
    network.get("encoder", {}).pop("weights", None)  # deployed weights come from the model file
    assert shared and {key: network[key] for key in shared} == {key: inference["network_def"][key] for key in shared}


@pytest.mark.parametrize("name", BUNDLES)
def test_the_schedule_is_as_long_as_the_trainer_runs(name):
    """MONAI Label sets the trainer's own number of epochs."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(ROOT / "bundles" / name / "configs" / "train.json")
    parser["train::trainer::max_epochs"] = 50
    assert parser.get_parsed_content("schedule_epochs") == 50


@pytest.mark.parametrize("name", BUNDLES)
def test_evaluation_takes_all_options_that_the_training_left(name):
    train, evaluate = (json.loads((ROOT / "bundles" / name / "configs" / file).read_text())
                       for file in ("train.json", "evaluate.json"))  # fmt: skip
    savers = [handler for handler in train["train"]["handlers"] if handler["_target_"].endswith("BestModelSaver")]
    (settings,) = (handler["settings"] for handler in savers)
    options = {key: f"$@trained['{key}']" for key in settings.keys() & train.keys() - {"labels", "inference_network"}}
    alone = {"base": "supervised", "inference_network": "student"}  # with the network itself, without unlabelled images
    options |= {key: value for key, value in alone.items() if key in train}
    assert {key: value for key, value in evaluate.items() if key not in ("trained", "run")} == options
