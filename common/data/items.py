"""An item of a list of cases in dataset.json: its files, its case, its domain, its fold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.data.paths import as_path

LABELLED = ("training", "validation")  # a label is needed here, allowed in `test`, and never read in `unlabeled`
KEYS = ("image", "label", "case", "domain", "fold")
MERGE = 'nibabel.concat_images([FIRST, SECOND, ...]).to_filename("NAME.nii.gz")'
WIDTH = 120  # letters of an item in an error


def file_stem(path: str | Path) -> str:
    """The name of a file without ``.nii``, ``.nii.gz``, ``.png`` ...: the case, where nothing else is said."""
    text = str(path)
    return Path(text[:-3] if text.lower().endswith(".gz") else text).stem


def read_item(item: Any, split: str, i: int, directory: Path, problems: list[str]) -> dict | None:
    """``{"image", "label", "case"}`` and ``"domain"``, where given, with absolute paths; None where there is a problem.

    Args:
        item: what dataset.json says: an object, or of a split without labels the path of an image.
        i: its place in the split.
    """
    where, labelled, raw = f"{split}[{i}]", split in LABELLED, item
    if isinstance(item, str) and not labelled:
        item = {"image": item}
    form = '{"image": "...", "label": "..."}' if labelled else '{"image": "..."} or the path of an image'
    if not isinstance(item, dict):
        problems.append(f"{where}: expected {form}, found {shown(item)}; correct it")
        return None
    paths = ["image"] + ["label"] * (labelled or split == "test" and "label" in item)
    before = len(problems)
    for key in paths:
        if not (isinstance(item.get(key), list) or _is_text(item.get(key))):
            todo = ", or move it to `unlabeled` if it has no label" if key == "label" and labelled else ""
            problems.append(f"{where}: expected {form}, found {shown(raw)}; correct {key}{todo}")
            break
        found = _path_problem(item[key], key, directory)
        if found is None and key == "label" and item[key] == item["image"]:
            found = f"expected another file for label than the image, found {item[key]} for both; correct it"
        problems += [f"{where}: {found}"] if found else []
    wrong = [key for key in ("case", "domain") if key in item and not _is_text(item[key])]
    if wrong:
        found = ", ".join(f'"{key}": {shown(item[key])}' for key in wrong)
        problems.append(f"{where}: expected a text for {' and '.join(wrong)}, found {found}; put it in quotes")
    for key in item:
        near = get_close_matches(key.lower(), [one for one in KEYS if one not in item], n=1, cutoff=0.75)
        if key not in KEYS and near:
            problems.append(f"{where}: expected the key `{near[0]}`, found this spelling, `{key}`; rename it")
    if len(problems) > before:
        return None
    files = {key: str(directory / item[key]) for key in paths}
    return {"case": file_stem(item["image"])} | files | {key: item[key] for key in ("case", "domain") if key in item}


def repeated_in_a_split(split: str, entry: Sequence[Any], items: Sequence[dict | None]) -> list[str]:
    """One line for each image that stands twice in a split, and for each case that several images share unsaid."""
    problems, images, cases = [], {}, {}
    for i, (raw, item) in enumerate(zip(entry, items, strict=True)):
        if item is None:
            continue
        case, image, place = item["case"], item["image"], f"{split}[{i}]"
        said = isinstance(raw, dict) and "case" in raw
        other, other_image, other_said = cases.setdefault(case, (place, image, said))
        if image in images:
            problems.append(f"{case}, {image}: expected once, found twice in {split} ({images[image]} and {place}); "
                            "remove one")  # fmt: skip
        elif other != place and not (said and other_said):
            problems.append(f"{case}, {image}: expected one image of this name in {split}, found {other_image} too "
                            f'({other} and {place}); give each of them its own "case"')  # fmt: skip
        images.setdefault(image, place)
    return problems


def shown(value: Any) -> str:
    """A value of JSON as an error shows it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDTH else text[:WIDTH] + "..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _path_problem(value: Any, key: str, directory: Path) -> str | None:
    if isinstance(value, list):
        todo = "with one id a voxel", "write such a file"
        if key == "image":
            todo = "with its channels on the fourth axis", f"merge them, as {MERGE}, and name that file"
        return f"expected one file for {key}, {todo[0]}, found a list of {len(value)}: {shown(value)}; {todo[1]}"
    if "\0" in value:
        return f"expected a path for {key}, found one with a zero byte, {shown(value)}; correct it"
    try:
        as_path(str(directory / value), key)
    except ValueError as error:
        return str(error)
    return None
