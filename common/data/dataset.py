"""A data set: a folder with a ``dataset.json`` in the Medical Segmentation Decathlon manner."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from common.data import nnunet, other_tools
from common.data.copies import repeated_cases
from common.data.errors import DataError
from common.data.items import read_item, repeated_in_a_split
from common.data.json_file import read_json
from common.data.label_names import name_problems
from common.data.paths import as_path
from common.data.photograph import is_photograph
from common.data.visible import visible

logger = logging.getLogger(__name__)
SPLITS = ("training", "validation", "test", "unlabeled")
REQUIRED = {"name": str, "modality": dict, "labels": dict, "training": list}
OPTIONAL = {"validation": list, "test": list, "unlabeled": list, "folds": list}
TYPE_NAMES = {str: "a text", dict: "an object {...}", list: "a list [...]"}


@dataclass(frozen=True)
class Dataset:
    """What ``dataset.json`` says, with absolute paths.

    Items are ``{"image", "label", "case"}`` and, where given, ``"domain"``; those of ``unlabeled`` never hold a
    label, those of ``test`` may lack it.
    ``labels`` leaves out the background (0). ``folds`` lists case ids of ``training``, or is empty. ``notes`` say what
    of other tools' keys is used or not read.
    """

    directory: Path
    name: str
    modality: dict
    labels: dict[int, str]
    training: list[dict]
    validation: list[dict]
    test: list[dict]
    unlabeled: list[dict]
    folds: list[list[str]]
    notes: tuple[str, ...] = ()

    @property
    def channels(self) -> int | None:
        """Channels of an image, for the data check: several are named in ``modality``; one entry is grey or colour."""
        return len(self.modality) if len(self.modality) > 1 else None

    @property
    def images(self) -> list[str]:
        """The files of all splits."""
        return [item["image"] for split in SPLITS for item in getattr(self, split)]


def read_dataset(dataset_dir: str | Path) -> Dataset:
    """Read ``dataset.json`` of a folder; opens no image and no label.

    ``case`` defaults to the image's file name without its suffix. Several images of a split may share a case (two time
    points of one patient) when each of them says so by its own ``case``. Cases of ``test`` may lack a label. nnU-Net's
    folder and the lists of MONAI's Auto3DSeg (``fold``, ``testing``) are read as they are.

    Args:
        dataset_dir: the folder; paths in its ``dataset.json`` are relative to it, or absolute.

    Raises:
        DataError: with every problem of ``dataset.json`` at once.
    """
    directory = as_path(dataset_dir, "dataset_dir").absolute()
    problems: list[str] = []
    notes: list[str] = []
    content = nnunet.in_our_form(_load(directory / "dataset.json"), directory)
    content = other_tools.test_of(content, notes, problems)
    problems += _misspelt_or_missing(content)
    # an entry of the wrong type is a problem already: read on as if it were empty
    entries = {k: content[k] if isinstance(content.get(k), t) else t() for k, t in (REQUIRED | OPTIONAL).items()}
    labels = _read_labels(content["labels"], problems) if isinstance(content.get("labels"), dict) else {}
    splits: dict[str, list[dict]] = {}
    for split in SPLITS:
        items = [read_item(x, split, i, directory, problems) for i, x in enumerate(entries[split])]
        problems += repeated_in_a_split(split, entries[split], items)
        if split == "training":
            entries["folds"] = other_tools.folds_of(content, items, notes, problems) or entries["folds"]
        splits[split] = [nnunet.with_its_file(item, problems) for item in items if item]
    problems += repeated_cases(splits)
    # a broken item of `training` has no case yet: its fold is no second problem
    whole = isinstance(content.get("training"), list) and len(splits["training"]) == len(content["training"])
    folds = _read_folds(entries["folds"], {item["case"] for item in splits["training"]} if whole else None, problems)
    if problems:
        raise DataError.of(problems, str(directory / "dataset.json"))
    notes += other_tools.count_doubts(content, splits) + other_tools.unread(content, SPLITS, [*REQUIRED, *OPTIONAL])
    return Dataset(directory, entries["name"], entries["modality"], labels, **splits, folds=folds, notes=tuple(notes))


KINDS = {"photographs": "photographs (PNG, JPEG)", "scans": "scans (NIfTI)"}


def image_names(**splits: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of the images of some splits: what a resumed run must find again, wherever the folder lies."""
    return {split: [Path(str(item["image"])).name for item in items] for split, items in splits.items()}


def refuse_other_kinds(images: Sequence[str], kinds: Sequence[str]) -> None:
    """Photographs and scans are prepared in different ways; which ones an image is of, its name tells.

    Args:
        kinds: those that the preprocessing takes, of ``photographs`` and ``scans``.

    Raises:
        DataError: there are images of another kind.
    """
    wrong = [image for image in images if ("photographs" if is_photograph(image) else "scans") not in kinds]
    if wrong:
        raise DataError(
            f"{len(wrong)} images, such as {wrong[0]}: expected {' or '.join(KINDS[kind] for kind in kinds)}, as the "
            "preprocessing of this model or config takes (`kinds`); use a config, and a model trained with it, for the "
            "other kind, where the bundle has one."
        )


def say_that_folds_are_not_read(dataset: Dataset) -> None:
    """For a bundle that has no folds: a line of the log where dataset.json has some."""
    if dataset.folds:
        logger.warning("%s: its %d folds (`folds`, or `fold` of the items) are not read here, where `validation` says "
                       "what is validated on.", dataset.directory / "dataset.json", len(dataset.folds))  # fmt: skip


def _load(file: Path) -> dict:
    if not file.parent.is_dir():
        raise DataError(f"{file.parent}: expected the folder of a data set, found no such folder; correct dataset_dir")
    if not file.is_file():
        raise DataError(f"{file}: expected a file, found none. Save this text under that name, with the true names of "
                        "the labels, and move the cases to validate on to `validation`:\n" + _suggestion(file.parent))
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected an object {{...}}, found {_kind(content)}; see the form in the README")
    return content


def _misspelt_or_missing(content: dict) -> list[str]:
    problems = []
    unknown = [key for key in content if key not in REQUIRED | OPTIONAL]
    for key, kind in (REQUIRED | OPTIONAL).items():
        # 0.75 finds `unlabelled` and `train` but leaves Decathlon's own `numTraining` alone
        near = get_close_matches(key, unknown, n=1, cutoff=0.75)
        if key in content:
            if not isinstance(content[key], kind):
                problems.append(f"`{key}`: expected {TYPE_NAMES[kind]}, found {_kind(content[key])}; correct it")
        elif near:
            problems.append(f"`{near[0]}`: expected the key `{key}`, found this spelling; rename it")
        elif key in REQUIRED:
            problems.append(f"`{key}`: expected {TYPE_NAMES[kind]}, found no such key; add it")
    if content.get("modality") == {}:
        problems.append('`modality`: expected one entry a channel, found none; write {"0": "MRI"}')
    return problems


def _read_labels(entry: dict, problems: list[str]) -> dict[int, str]:
    labels = {}
    for key, name in entry.items():
        if not (key.isascii() and key.isdecimal() and isinstance(name, str)):
            problems.append(f'`labels`: expected entries such as "1": "liver", found "{key}": {json.dumps(name)}; '
                            "write the id first, then the name")
        elif int(key) in labels:
            problems.append(f'`labels`: expected each id once, found {int(key)} again as "{key}"; remove one')
        elif int(key) > 255:
            problems.append(f'`labels`: expected ids up to 255, found "{key}": {json.dumps(name)}; renumber it, in the '
                            "label files too")
        else:
            labels[int(key)] = name
    problems += name_problems([(str(label), name) for label, name in labels.items()], "labels")
    background = labels.pop(0, None)
    if not labels and (not entry or background is not None):
        problems.append('`labels`: expected a label besides the background, found none; add {"1": "its name"}')
    return labels


def _read_folds(entry: list, known: set[str] | None, problems: list[str]) -> list[list[str]]:
    seen: dict[str, int] = {}
    for i, fold in enumerate(entry):
        if not isinstance(fold, list) or not all(isinstance(case, str) for case in fold):
            problems.append(f"folds[{i}]: expected a list of case ids, found {json.dumps(fold)}; correct it")
            continue
        for case in fold:
            if known is not None and case not in known:
                problems.append(f"folds[{i}]: expected cases of `training`, found {case}; correct or remove it")
            elif case in seen:
                problems.append(f"folds[{i}]: expected each case in one fold, found {case} in folds[{seen[case]}] too; "
                                "remove one")
            seen.setdefault(case, i)
    return entry


def _suggestion(directory: Path) -> str:
    """A minimal ``dataset.json`` with the pairs under ``images/`` and ``labels/``, one item a line.

    Without them, under ``imagesTr/`` and ``labelsTr/``, as the Decathlon and nnU-Net have.
    """
    end = "" if (directory / "images").is_dir() or not (directory / "imagesTr").is_dir() else "Tr"
    found = []
    for folder in (f"images{end}", f"labels{end}"):
        files = [p.relative_to(directory) for p in visible(directory / folder, "**/*") if p.is_file()]
        found.append({p.relative_to(folder).parent / nnunet.case_of(p): p.as_posix() for p in files})
    images, labels = found
    names = [key.name for key in images]
    # files of one name in several folders are cases of their own
    items = {key: {"image": file} | ({"case": "_".join(key.parts)} if names.count(key.name) > 1 else {})
             for key, file in images.items()}
    training = [item | {"label": labels[key]} for key, item in items.items() if key in labels]
    unlabeled = [item for key, item in items.items() if key not in labels]
    modality = "photograph" if any(map(is_photograph, images.values())) else "MRI"
    if not images:
        training = [{"image": "images/case_01.nii.gz", "label": "labels/case_01.nii.gz"}]
    head = {"name": directory.name, "modality": {"0": modality}, "labels": {"0": "background", "1": "name of label 1"}}
    lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items()]
    for split, items in (("training", training), ("validation", []), ("unlabeled", unlabeled)):
        lines.append(f' "{split}": [' + ",".join(f"\n  {json.dumps(item)}" for item in items) + "]")
    return "{\n" + ",\n".join(lines) + "\n}"


def _kind(value: Any) -> str:
    return TYPE_NAMES.get(type(value), json.dumps(value))
