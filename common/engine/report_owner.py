"""A folder holds the report of one model: that of another is refused there and not replaced."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from common.data.temporary import replaced

OWNER = ".report.json"  # in the folder of a report: which model it is of
REPORT = "cases.csv"


def refuse_another_report(folder: str | Path, model_file: str | Path) -> None:
    """See to it that the report in a folder, if there is one, is of this model.

    The same is a model at the same place, as it may be trained on or anew, and one of the same weights, as it may be
    copied. A folder that was moved with its model knows it still.

    Args:
        folder: where a report is to go.
        model_file: its model, which a training may not have written yet.

    Raises:
        ValueError: the folder holds the report of another model.
    """
    folder = Path(folder)
    owner = _read(folder / OWNER)
    if owner is None or not (folder / REPORT).is_file():
        return
    same_weights = owner["weights"] == _digest(Path(model_file)) != ""
    if owner["model"] != _place(folder, model_file) and not same_weights:
        raise ValueError(
            f"{folder / REPORT}: expected no report there, or one of {model_file}, found that of another model, "
            f"{os.path.normpath(folder.resolve() / owner['model'])}. Give this report a folder of its own "
            "(--output_dir), or delete that file if you need the other report no more."
        )


def claim_report(folder: Path, model_file: str | Path) -> None:
    """Note which model the report of a folder is of."""
    content = {"model": _place(folder, model_file), "weights": _digest(Path(model_file))}
    with replaced(folder / OWNER) as part:
        part.write_text(json.dumps(content), encoding="utf-8")


def _read(file: Path) -> dict[str, str] | None:
    """What :func:`claim_report` wrote; None where that is missing or damaged, hence nobody's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"model", "weights"} <= content.keys() else None


def _place(folder: Path, model_file: str | Path) -> str:
    model = Path(model_file).resolve()
    try:
        return Path(os.path.relpath(model, folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return model.as_posix()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
