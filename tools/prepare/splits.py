"""Who is labelled, unlabelled, for validation and for the test: from published lists, or by a rule."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["read_list", "split_up"]


def read_list(file: str, pattern: str, known: Collection[str], problems: list[str]) -> list[str]:
    """The ids that a list names, each once, in the order of the lines.

    Args:
        file: a text with one scan, slice or file name a line, as the public lists have it; empty lines are left out.
        pattern: what an id looks like; its first group is the id.
        known: the ids of the download.
        problems: gets a line for everything in the list that is not there, and for a list that cannot be read.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{file}: expected a text file with one id a line, found {type(error).__name__}; correct the "
                        "path")
        return []
    found: dict[str, None] = {}
    for i, line in enumerate(lines, start=1):
        match = re.search(pattern, line)
        if match and match.group(1) in known:
            found[match.group(1)] = None
        elif line.strip():
            problems.append(f"{file}, line {i}: expected an id of the download, found {line.strip()}; correct the "
                            "list, or copy that scan to the others")
    return list(found)


def split_up(order: Sequence[str], labelled: int, validation: Sequence[str], test: Sequence[str],
             problems: list[str]) -> dict[str, str]:
    """The split of each id, those of the labelled ones first.

    Args:
        order: the ids to train on, the first to be labelled first; ids of the other two lists are left out of it.
        labelled: how many of them keep their labels; the others are unlabelled.
        validation: ids to choose a model by.
        test: ids kept for the end.
        problems: gets a line for each id of two lists, and one when so many cannot be labelled.
    """
    problems += [f"{one}: expected in one list, found for validation and for the test; take it out of one, or "
                 "give both lists"
                 for one in validation if one in set(test)]
    pool = [one for one in order if one not in {*validation, *test}]
    if type(labelled) is not int or not 1 <= labelled <= len(pool):
        problems.append(f"labelled: expected 1 to {len(pool)}, as many as there are to train on, found {labelled}; "
                        "correct --labelled")
        labelled = len(pool)
    splits = {"training": pool[:labelled], "unlabeled": pool[labelled:], "validation": validation, "test": test}
    return {one: split for split, ids in splits.items() for one in ids}
