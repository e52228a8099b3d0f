"""`models/model.json`: all that rebuilds the model beside it; the one place that says what a trained model is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
from common.description import describe, differences

from .checkpoint import write_atomic

NEEDED = ("release", "selection", "network", "preprocessing", "labels")
SELECTIONS = {
    "last": "that of the last iteration (selection: last)",
    "validation": "the best on the validation cases (selection: validation)",
}
OPTIMISTIC = ("The checkpoint was chosen by the validation cases of its training: figures of those are optimistic. "
              "`--selection last` in the training gives honest ones.")  # fmt: skip


class ModelRecord(dict):
    """The content of a ``model.json``: plain data, of which nothing is evaluated."""

    def __init__(self, content: Mapping[str, Any], file: Path) -> None:
        super().__init__(content)
        self.file = file

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.file}: expected `{key}` of the model, found none; train the model again.")


def record_file(model_file: str | Path) -> Path:
    """Where the record of a model lies: ``model.json`` beside ``model.pt``."""
    return Path(model_file).with_suffix(".json")


def write_model_record(model_file: str | Path, model: Mapping[str, Any], selection: str) -> None:
    """Write what a model is, beside its weights.

    Args:
        model: the section ``model`` of train.json: ``network``, ``preprocessing``, ``labels`` and what else inference
            and evaluation share; objects of described classes, or plain data.
        selection: how the weights were chosen, ``last`` or ``validation``.
    """
    content = {"release": common.__version__, "selection": selection, **describe(model)}
    write_atomic(record_file(model_file), lambda file: file.write(json.dumps(content, indent=4).encode()))


def read_model(model_file: str | Path) -> ModelRecord:
    """What :func:`write_model_record` wrote; the ids of ``labels`` are numbers again.

    Raises:
        FileNotFoundError: there is no model, or none of these facts beside it.
        ValueError: the file is damaged, or no such record.
    """
    model, file = Path(model_file), record_file(model_file)
    if not file.is_file():
        if not model.is_file():
            raise FileNotFoundError(f"{model}: expected a trained model, found no such file; train first, or give the "
                                    "folder of a training as ckpt_dir.")  # fmt: skip
        raise FileNotFoundError(
            f"{file}: expected what the training wrote of its model (network, preprocessing, labels), found no such "
            f"file. Copy it there from the training's folder, or train again: {model.name} alone does not say what it "
            "is, and is not run on defaults."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        if missing := [key for key in NEEDED if key not in content]:
            raise ValueError(f"no {', '.join(missing)}")
        if content["selection"] not in list(SELECTIONS):
            raise ValueError(f"the selection {content['selection']!r}")
        labels = {int(label): str(name) for label, name in content["labels"].items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: expected the record of a training ({', '.join(NEEDED)}), found {error}; copy it "
                         "from the training's folder again, or train again.") from error  # fmt: skip
    return ModelRecord(content | {"labels": labels}, file)


def say_differences(record: ModelRecord, model: Mapping[str, Any]) -> str:
    """One line on what a run uses in another way than ``model.json`` says; empty where nothing differs.

    Args:
        model: what is used, as for :func:`write_model_record`.
    """
    used = describe(model)
    found = differences({key: value for key, value in describe(record).items() if key in used}, used)
    return "; ".join(f"{place} {_short(now)} (there {_short(then)})" for place, then, now in found)


def describe_selection(record: Mapping[str, Any], split: str) -> list[str]:
    """What a report says of the checkpoint that it scores on a split: how it was chosen, and a warning if by that one.

    Args:
        record: as :func:`read_model` gives it.
        split: ``validation`` where the cases scored are those that a selection by validation looks at.
    """
    line = f"Checkpoint: {SELECTIONS[record['selection']]}."
    return [line, OPTIMISTIC] if record["selection"] == split else [line]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
