"""What `model.json` says of a model, and what is said of files that do not."""

import json

import pytest

import common
from common.data import Preprocessing
from common.description import rebuild
from common.engine import describe_selection, read_model, write_model_record
from common.engine.model_record import say_differences
from common.engine.readable_errors import _report
from common.networks import VNet

MODEL = {"network": VNet(2, 1, 3, width=2), "preprocessing": Preprocessing(zoom=(0.5, 1.0)),
         "labels": {1: "wall", 12: "$cavity"}, "patch_size": (16, 8)}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    write_model_record(tmp_path / "model.pt", MODEL, "last")
    return tmp_path / "model.json"


def test_all_that_was_written_is_read_back(file):
    record = read_model(file.with_suffix(".pt"))
    assert (record["release"], record["selection"]) == (common.__version__, "last")
    assert record["labels"] == {1: "wall", 12: "$cavity"} and list(record["labels"]) == [1, 12]
    assert record["patch_size"] == [16, 8] and record.file == file
    network, preprocessing = rebuild(record["network"]), rebuild(record["preprocessing"])
    assert type(network) is VNet and network.classifier.out_channels == 3 and preprocessing.zoom == [0.5, 1.0]
    assert [path.name for path in file.parent.iterdir()] == ["model.json"]


def test_a_key_that_is_not_there_is_refused_where_it_is_asked_for(file):
    with pytest.raises(ValueError, match=r"model.json: expected `cleanup` of the model, found none; train the model"):
        read_model(file)["cleanup"]


def refused(path):
    """The text of the error, which is the last that a user reads, and no advice of anybody else."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read_model(path)
    return str(error.value)


def test_no_model_at_all(tmp_path):
    text = refused(tmp_path / "model.pt")
    assert text.startswith(f"{tmp_path / 'model.pt'}: expected a trained model, found no such file; train first, or")


def test_weights_alone_are_not_run_on_defaults(tmp_path):
    (tmp_path / "model.pt").touch()
    text = refused(tmp_path / "model.pt")
    assert text.startswith(f"{tmp_path / 'model.json'}: expected what the training wrote of its model")
    assert "found no such file. Copy it there from the training's folder, or train again: model.pt alone" in text


GOOD = {"release": "1", "selection": "last", "network": {}, "preprocessing": {}, "labels": {"1": "a"}}
DAMAGED = {
    "empty": (b"", "Expecting value"),
    "cut off": (json.dumps(GOOD).encode()[:40], "line 1"),
    "no text": (b"\xff\xfe\x00garbage", "can't decode"),
    "deep": (b"[" * 100_000, "recursion"),
    "a list": (b"[]", "a list"),
    "nothing in it": (b"{}", "no release, selection, network, preprocessing, labels"),
    "of an old release": (b'{"selection": "last", "settings": {}}', "no release, network"),
    "another selection": (json.dumps(GOOD | {"selection": "test"}).encode(), "the selection 'test'"),
    "a selection of another type": (json.dumps(GOOD | {"selection": ["last"]}).encode(), r"the selection \['last'\]"),
    "labels by name": (json.dumps(GOOD | {"labels": {"a": "1"}}).encode(), "invalid literal"),
    "labels in a list": (json.dumps(GOOD | {"labels": ["a"]}).encode(), "'list' object"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "found"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused_in_our_words(tmp_path, content, found, capsys):
    file = tmp_path / "model.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: expected the record of a .*labels\), found .*{found}") as error:
        read_model(tmp_path / "model.pt")
    _report(type(error.value), error.value, error.value.__traceback__)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ValueError: {file}: expected")
    assert last.endswith("; copy it from the training's folder again, or train again.")


def test_one_line_tells_all_differences(file):
    record = read_model(file)
    assert say_differences(record, MODEL) == "" == say_differences(record, {"labels": MODEL["labels"]})
    other = MODEL | {"network": VNet(2, 1, 3, width=4), "labels": {1: "wall"}, "patch_size": [16] * 30, "more": 1}
    assert say_differences(record, other) == (
        'network.width 4 (there 2); labels.12 null (there "$cavity"); patch_size [16, 16, 16, 16, 16, 16, 16, 16, 16, '
        "16, 16, 16, 16, 16, ... (there [16, 8]); more 1 (there null)")


def test_what_a_report_says_of_the_selection(tmp_path):
    told = {}
    for selection in ("last", "validation"):
        write_model_record(tmp_path / "model.pt", MODEL, selection)
        told[selection] = describe_selection(read_model(tmp_path / "model.pt"), "validation")
    assert told["last"] == ["Checkpoint: that of the last iteration (selection: last)."]
    assert told["validation"][0] == "Checkpoint: the best on the validation cases (selection: validation)."
    assert len(told["validation"]) == 2 and "optimistic" in told["validation"][1]
    assert describe_selection({"selection": "validation"}, "test") == told["validation"][:1]
