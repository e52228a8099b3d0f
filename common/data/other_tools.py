"""What other tools write into a dataset.json: used, or said not to be read, never passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.data.items import KEYS, shown

LISTED = 5  # names in one line


def test_of(content: dict[str, Any], notes: list[str], problems: list[str]) -> dict[str, Any]:
    """The content with ``testing`` (MONAI's Auto3DSeg) under our name, ``test``."""
    if "testing" not in content:
        return content
    if "test" in content:
        problems.append("`testing`: expected `test` or `testing`, found both; keep one")
    notes.append("`testing` is used as `test`")
    rest = {key: value for key, value in content.items() if key != "testing"}
    return {"test": content["testing"]} | rest


def folds_of(
    content: Mapping[str, Any], items: Sequence[dict | None], notes: list[str], problems: list[str]
) -> list[list[str]]:
    """Case ids by ``fold`` of the items of ``training`` (MONAI's Auto3DSeg); one without is of no fold.

    Args:
        items: those of ``training`` as read, None for a broken one.
        notes: gets a line where the folds are those of ``folds``, or where other splits have a ``fold``.
    """
    raw = content["training"] if isinstance(content.get("training"), list) else []
    given = [(i, entry["fold"]) for i, entry in enumerate(raw) if isinstance(entry, dict) and "fold" in entry]
    wrong = [f"training[{i}]: expected a whole number from 0 on for fold, found {shown(fold)}; correct it"
             for i, fold in given if type(fold) is not int or fold < 0]  # fmt: skip
    problems += wrong
    if wrong or not given:
        return []
    if content.get("folds"):
        notes.append("`fold` of the items is not read, as there are `folds`")
        return []
    numbers = sorted({fold for _, fold in given})
    if numbers != list(range(len(numbers))):
        problems.append(f"`fold` of the items of `training`: expected numbers from 0 on without gaps, found {numbers}; "
                        "renumber them")  # fmt: skip
        return []
    cases = [(items[i]["case"], fold) for i, fold in given if i < len(items) and items[i]]
    return [list(dict.fromkeys(case for case, of in cases if of == number)) for number in numbers]


def unread(content: Mapping[str, Any], splits: Sequence[str], known: Sequence[str]) -> list[str]:
    """One line for what nobody reads: lists and objects of unknown keys, and unknown keys of items.

    A text or a number under another key describes the data set.
    """
    lines = [f"`{key}` is not read" for key, value in content.items()
             if key not in known and isinstance(value, (list, dict))]  # fmt: skip
    for split in splits:
        entry = content.get(split)
        items = [item for item in entry if isinstance(item, dict)] if isinstance(entry, list) else []
        read = KEYS if split == "training" else [key for key in KEYS if key != "fold"]
        others = list(dict.fromkeys(key for item in items for key in item if key not in read))
        if others:
            more = f" and {len(others) - LISTED} more" if len(others) > LISTED else ""
            lines.append(f"`{'`, `'.join(others[:LISTED])}`{more} of the items of `{split}`: not read")
    return lines


def count_doubts(content: Mapping[str, Any], splits: Mapping[str, Sequence[Any]]) -> list[str]:
    """One line for each of ``numTraining`` and ``numTest`` (Decathlon, nnU-Net) that is not the number of cases."""
    return [f"`{key}` is {content[key]}, found {len(splits[split])} items of `{split}`: is the list whole?"
            for key, split in (("numTraining", "training"), ("numTest", "test"))
            if isinstance(content.get(key), int) and content[key] != len(splits[split])]  # fmt: skip
