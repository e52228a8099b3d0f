"""The same case or image in two parts of a data set that must not share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from common.data.errors import DataError


class Seen(Protocol):
    """What the check saw of an image (:class:`common.data.check.CaseFacts`)."""

    image: str
    shape: tuple[int, ...]
    digest: str


def copies(parts: Mapping[str, Sequence[Mapping[str, str]]], facts: Iterable[Seen]) -> list[str]:
    """One line for each image of a part whose voxels are those of an image of another part, under whatever name.

    Args:
        parts: items by the name of their part: what trains, what validates ...
        facts: of the images; an image without any is passed over, as it has a problem already.
    """
    known = {one.image: one for one in facts}
    first: dict[tuple, tuple[str, Mapping[str, str]]] = {}
    problems = []
    for part, items in parts.items():
        for item in (item for item in items if item["image"] in known):
            seen = known[item["image"]]
            other_part, other = first.setdefault((seen.shape, seen.digest), (part, item))
            if other_part != part and other["case"] != item["case"]:  # of one case: see `repeated_cases`
                problems.append(f"{item['case']}, {item['image']}: expected an image that is in one split only, found "
                                f"the same voxels in {other['case']}, {other['image']} ({part} and {other_part}); "
                                "remove one of them")  # fmt: skip
    return problems


def repeated_cases(parts: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """One line for every case that stands in more than one part."""
    found: dict[str, list[str]] = {}
    for part, items in parts.items():
        for case in dict.fromkeys(item["case"] for item in items):
            found.setdefault(case, []).append(part)
    return [f"{case}: expected in one split, found in {' and '.join(names)}; keep it in one of them"
            for case, names in found.items() if len(names) > 1]  # fmt: skip


def refuse_shared(
    parts: Mapping[str, Sequence[Mapping[str, str]]], facts: Mapping[str, Sequence[Seen]], directory: Path
) -> None:
    """No case and no image both trains and is scored.

    Args:
        parts: items by what the bundle does with them, where that is not what dataset.json's splits say.
        facts: what the check saw, by split.
        directory: of the data set.

    Raises:
        DataError: with one line for each.
    """
    problems = repeated_cases(parts) + copies(parts, (one for seen in facts.values() for one in seen))
    if problems:
        raise DataError.of(problems, str(directory / "dataset.json"))
