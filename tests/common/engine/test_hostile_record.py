"""A model.json is data from elsewhere: whatever it holds, nothing of it is evaluated, imported or called."""

import copy
import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser
from torch import nn

from common.data import Preprocessing
from common.description import described
from common.engine import write_model_record

REAL = Path(__file__).resolve().parents[3] / "bundles" / "transmedseg_ssl" / "configs" / "inference.json"
CONFIG = {
    "ckpt_dir": "",
    "trained": {"_target_": "common.engine.read_model", "model_file": "$@ckpt_dir + '/model.pt'"},
    "patch_size": "$@trained['patch_size']",
    "cleanup": "$@trained['cleanup']",
    "labels": "$@trained['labels']",
    "preprocessing_def": {"_target_": "common.description.rebuild", "description": "$@trained['preprocessing']"},
    "network_def": {"_target_": "common.description.rebuild", "description": "$@trained['network']"},
    "model": {"network": "@network_def", "preprocessing": "@preprocessing_def", "labels": "@labels"},
    "preprocessing": "$@preprocessing_def.inference()",
    "copies": {"_target_": "builtins.dict", "labels": "@labels", "sizes": ["@patch_size", {"cleanup": "@cleanup"}]},
}
PARTS = ("network_def", "preprocessing", "inferer", "postprocessing", "handlers", "output_ext")  # of a bundle's config


@described()
class Network(nn.Module):
    """Takes whatever it is given."""

    def __init__(self, width=1, layers=()) -> None:
        super().__init__()
        self.arguments = {"width": width, "layers": layers}


def payloads(canary):
    """What leaves the file when a config holds it; then what does not even there."""
    evil, path = f"open({str(canary)!r}, 'w')", {"path": str(canary)}
    live = {
        "expression": f"$__import__('pathlib').Path({str(canary)!r}).touch()",
        "expression with a reference": f"$@ckpt_dir and {evil}",
        "import": f"$import {canary.stem}",
        "macro": f"%{canary.parent / 'evil.json'}::evil",
        "component": {"_target_": "os.mknod"} | path,
        "component of a mode": {"_target_": "os.mknod", "_mode_": "default"} | path,
        "condition": {"_target_": "builtins.dict", "_disabled_": f"${evil}"},
        "requirement": {"_target_": "builtins.dict", "_requires_": f"${evil}"},
        "argument": {"_target_": "builtins.dict", "x": [f"${evil}"]},
    }
    other = {
        "callable": {"_target_": "os.mknod", "_mode_": "callable"} | path,
        "reference": "@evil",
        "expression behind a space": f" ${evil}",
        "described": {"class": "os.mknod"} | path,
        "described by a component": {"class": live["component"]},
    }
    return live, other


NAMES, OTHERS = (list(some) for some in payloads(Path("/canary_of_a_test")))
NESTED = {"bare": lambda x: x, "in a list": lambda x: [x, 1], "in an object": lambda x: {"a": [{"b": x}], "c": x}}
PLACES = [
    ("network", "width"), ("network", "layers"), ("network", "class"), ("network", "_target_"), ("network",),
    ("preprocessing", "channels"), ("preprocessing", "kinds"), ("preprocessing", "orientation"),
    ("preprocessing", "zoom"), ("preprocessing", "image_size"), ("preprocessing", "_mode_"), ("preprocessing",),
    ("labels", "1"), ("labels",), ("patch_size",), ("cleanup",), ("release",), ("selection",), ("evil",),
]  # fmt: skip


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that any of the payloads would leave."""
    canary = tmp_path / "canary_of_a_test"
    (tmp_path / "evil.json").write_text(json.dumps({"evil": f"$open({str(canary)!r}, 'w')"}))
    (tmp_path / "canary_of_a_test.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    return canary


@pytest.fixture(scope="module")
def parsers():
    """Of the small config and of the bundle's; to make one takes much longer than to resolve it."""
    return ConfigParser(CONFIG), ConfigParser(ConfigParser.load_config_file(REAL))


def honest(folder):
    """The content of a good model.json."""
    model = {"network": Network(), "preprocessing": Preprocessing(zoom=0.5), "labels": {1: "wall"}}
    write_model_record(folder / "model.pt", model | {"patch_size": [16, 16], "cleanup": ["largest"]}, "last")
    return json.loads((folder / "model.json").read_text())


def records(good, payload):
    """The place of the payload, and the record with it there."""
    for *above, key in PLACES:
        record = copy.deepcopy(good)
        (record[above[0]] if above else record)[key] = payload
        yield [*above, key], record


def resolve(parser, folder, keys):
    """The content of each key as the parser makes it of the record in the folder, an error where it refuses."""
    parser["ckpt_dir"], found = str(folder), {}
    for key in keys:
        try:
            found[key] = parser.get_parsed_content(key)
        except Exception as error:
            found[key] = error
    return found


@pytest.mark.parametrize("name", NAMES)
def test_in_a_config_the_payloads_are_live(name, canary, tmp_path):
    """Otherwise the tests below would say nothing."""
    resolve(ConfigParser({"evil": payloads(canary)[0][name]}), tmp_path, ["evil"])
    assert canary.exists()


def test_an_honest_record_is_taken(parsers, tmp_path):
    honest(tmp_path)
    for parser, keys in zip(parsers, (CONFIG, PARTS), strict=True):
        found = resolve(parser, tmp_path, keys)
        assert not [value for value in found.values() if isinstance(value, Exception)]


@pytest.mark.parametrize("nested", NESTED)
@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_what_is_not_refused_stays_what_the_file_says(name, nested, parsers, canary, tmp_path):
    live, other = payloads(canary)
    for place, record in records(honest(tmp_path), NESTED[nested]((live | other)[name])):
        (tmp_path / "model.json").write_text(json.dumps(record))
        found = resolve(parsers[0], tmp_path, CONFIG)
        assert not canary.exists(), place
        taken = {key: value for key, value in found.items() if not isinstance(value, Exception)}
        assert place[0] != "selection" or "trained" not in taken
        if "trained" in taken:
            labels = {int(label): str(text) for label, text in record["labels"].items()}
            assert taken["trained"] == record | {"labels": labels}, place
            sizes = [record["patch_size"], {"cleanup": record["cleanup"]}]
            assert taken["copies"] == {"labels": labels, "sizes": sizes}, place
        if "network_def" in taken:
            assert {"class": f"{__name__}.Network"} | taken["network_def"].arguments == record["network"], place
        assert "preprocessing_def" not in taken or place[-1] not in ("kinds", "_mode_", "preprocessing"), place


@pytest.mark.parametrize("name", ["expression", "macro", "component", "condition", "described"])
def test_nothing_comes_to_life_in_the_config_of_a_bundle(name, parsers, canary, tmp_path):
    live, other = payloads(canary)
    for place, record in records(honest(tmp_path), (live | other)[name]):
        (tmp_path / "model.json").write_text(json.dumps(record))
        found = resolve(parsers[1], tmp_path, PARTS)
        assert not canary.exists(), place
        refused = {key for key, value in found.items() if isinstance(value, Exception)}
        assert place[0] not in ("cleanup", "selection") or "postprocessing" in refused, place


@pytest.mark.parametrize("label", ["$1", "@trained", "%1", "1.0", "", "{}"])
def test_ids_of_labels_are_numbers_or_refused(label, parsers, tmp_path):
    good = honest(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(good | {"labels": {label: "wall"}}))
    assert isinstance(resolve(parsers[0], tmp_path, ["labels"])["labels"], RuntimeError)
