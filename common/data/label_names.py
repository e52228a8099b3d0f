"""Names of structures that a report can tell apart."""

from __future__ import annotations

import json
from collections.abc import Iterable
from unicodedata import normalize

POOLED = ("all", "mean")  # the tables' own lines and columns, over all structures


def name_problems(names: Iterable[tuple[str, str]], key: str) -> list[str]:
    """One line for each name that is empty, is that of a mean, or differs from another by capitals and spaces alone.

    Scores go by names: two structures of one name would share a line, with the mean of both.

    Args:
        names: what is named (a label's id, say), and its name.
        key: where to correct it.
    """
    problems, first = [], {}
    for what, name in names:
        same = "".join(normalize("NFC", name).casefold().split())
        found = f"found {json.dumps(name, ensure_ascii=False)} for {what}"
        if not same or same in POOLED:
            tables = f" other than {' and '.join(POOLED)}, which the tables call their means" if same else ""
            problems.append(f"`{key}`: expected a name{tables}, {found}; rename it")
        elif same in first:
            problems.append(f"`{key}`: expected names that differ by more than capitals and spaces, {found}, and "
                            f"{json.dumps(first[same][1], ensure_ascii=False)} for {first[same][0]}; rename one")
        first.setdefault(same, (what, name))
    return problems
