"""nnU-Net's own folder (``imagesTr/X_0000.nii.gz``, ``labelsTr/X.nii.gz``), read as it is."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.data.errors import DataError
from common.data.items import MERGE, file_stem, shown
from common.data.visible import visible

CHANNEL = re.compile(r"(.+)_(\d{4})")
ENDINGS = (".nii.gz", ".nii", ".png")
SHOWN = 5  # cases in one line


def in_our_form(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A dataset.json of nnU-Net (it has ``channel_names``) as ours; another as it comes.

    Its scans of ``imagesTr`` with a label in ``labelsTr`` are ``training``, those without are ``unlabeled``; those of
    ``imagesTs`` are ``test``, with their labels in ``labelsTs``, where they are. Lists of its own, where it has any
    (the Decathlon's `training`), stay as they are.

    Raises:
        DataError: what we cannot read: channels in files of their own, regions, voxels to ignore, other file formats.
    """
    if "channel_names" not in content:
        return content
    problems: list[str] = []
    channels = content["channel_names"]
    if not isinstance(channels, dict) or not channels:
        problems.append(f'`channel_names`: expected {{"0": "MRI"}}, found {shown(channels)}; correct it')
        channels = {}
    labels = _labels(content.get("labels"), problems)
    ending = content.get("file_ending", ENDINGS[0])
    if not isinstance(ending, str) or ending.lower() not in ENDINGS:
        problems.append(f"`file_ending`: expected {' or '.join(ENDINGS)}, found {shown(ending)}; convert the files")
        ending = ENDINGS[0]
    made = {"name": directory.name, "modality": channels} | content | {"labels": labels}
    if "training" not in content:
        made |= _splits(content, directory, ending.lower(), len(channels), problems)
    if problems:
        raise DataError.of(problems, str(directory / "dataset.json"))
    return {key: value for key, value in made.items() if key not in ("channel_names", "dataset")}


def with_its_file(item: dict[str, str], problems: list[str]) -> dict[str, str]:
    """An item whose ``image`` is a file; nnU-Net's first version leaves ``_0000`` of its names out of its list."""
    file = Path(item["image"])
    stem = file_stem(file.name)
    single, second = (file.with_name(f"{stem}_000{number}{file.name[len(stem):]}") for number in (0, 1))
    if os.path.isfile(file) or not os.path.isfile(single):
        return item
    if os.path.isfile(second):
        problems.append(_several(f"{item['case']}: ", [single.name, second.name]))
    return item | {"image": str(single)}


def case_of(file: Path) -> str:
    """The case of an image or a label: its name without the suffix and the number of a channel."""
    match = CHANNEL.fullmatch(file_stem(file.name))
    return match[1] if match and file.parent.name in ("imagesTr", "imagesTs") else file_stem(file.name)


def channels_apart(files: Sequence[Path]) -> list[str]:
    """One line for each case of a listed folder whose channels are files of their own, ``X_0000`` and ``X_0001``.

    In ``imagesTr`` and ``imagesTs`` these numbers are channels; elsewhere scans may be numbered so, and they are taken
    for channels where they are the same from 0000 on in two cases or more.
    """
    cases: dict[str, dict[str, Path]] = {}
    for file in files:
        if match := CHANNEL.fullmatch(file_stem(file.name)):
            cases.setdefault(match[1], {})[match[2]] = file
    several = {case: own for case, own in cases.items() if len(own) > 1 and "0000" in own}
    alike = Counter(tuple(own) for own in several.values())
    todo = "; scans of their own are taken where `images` is the list of their files"
    return [_several(f"{case}: ", [file.name for file in own.values()]) + todo for case, own in several.items()
            if alike[tuple(own)] > 1 or next(iter(own.values())).parent.name in ("imagesTr", "imagesTs")]  # fmt: skip


def _labels(labels: Any, problems: list[str]) -> dict[str, Any]:
    """Ids to names; nnU-Net has names to ids, or to lists of ids where regions overlap."""
    if not isinstance(labels, Mapping) or not labels:
        problems.append(f'`labels`: expected {{"background": 0, "liver": 1}}, found {shown(labels)}; correct it')
        return {}
    if all(isinstance(name, str) for name in labels.values()):
        return dict(labels)
    ids = {name: one[0] if isinstance(one, list) and len(one) == 1 else one for name, one in labels.items()}
    if "ignore" in ids:
        problems.append(f"`labels`: expected labels of structures, found ignore ({shown(ids.pop('ignore'))}), whose "
                        "voxels would be left out of training: no bundle does so; give them a label, or leave out "
                        "the cases and that entry")  # fmt: skip
    regions = {name: one for name, one in ids.items() if isinstance(one, list)}
    if regions:
        problems.append(f"`labels`: expected one id a name, found regions of several ids: {shown(regions)}; name each "
                        'id of the files once, as {"edema": 1, "core": 2}: of these, sgcg_dg then takes overlapping '
                        "regions by its key `regions`")  # fmt: skip
        return {}
    wrong = {name: one for name, one in ids.items() if type(one) is not int or one < 0}
    twice = {name: one for name, one in ids.items() if list(ids.values()).count(one) > 1 and name not in wrong}
    if wrong:
        problems.append(f"`labels`: expected a whole number from 0 on for each name, found {shown(wrong)}; correct it")
    if twice:
        problems.append(f"`labels`: expected an id of its own for each name, found {shown(twice)}; correct it")
    return {} if wrong or twice else {str(one): name for name, one in ids.items()}


def _splits(
    content: Mapping[str, Any], directory: Path, ending: str, channels: int, problems: list[str]
) -> dict[str, list[dict]]:
    train, test = (_images(directory, folder, ending, channels, problems) for folder in ("imagesTr", "imagesTs"))
    labels, test_labels = (_labels_in(directory, folder, ending) for folder in ("labelsTr", "labelsTs"))
    if isinstance(content.get("dataset"), Mapping):
        train, labels = _listed(content["dataset"], problems)
    elif not train and not problems:
        problems.append(f"{directory / 'imagesTr'}: expected scans such as case_0000{ending}, found none; copy them "
                        "there, or name the scans in `training`")  # fmt: skip
    alone = [labels[case] for case in labels if case not in train]
    if alone and not problems:
        problems.append(f"{', '.join(alone[:SHOWN])}: expected the scan of this label in imagesTr, found none "
                        f"({len(alone)} of such labels); copy it there")  # fmt: skip
    return {
        "training": [{"case": case, "image": train[case], "label": labels[case]} for case in train if case in labels],
        "unlabeled": [{"case": case, "image": train[case]} for case in train if case not in labels],
        "test": [{"case": case, "image": image} | ({"label": test_labels[case]} if case in test_labels else {})
                 for case, image in test.items()],
    }  # fmt: skip


def _images(directory: Path, folder: str, ending: str, channels: int, problems: list[str]) -> dict[str, str]:
    """The image of each case, one file; ``X_0000`` where the scans have one channel, ``X`` with all of them else."""
    found: dict[str, list[str]] = {}
    for file in visible(directory / folder, "*"):
        if file.name.lower().endswith(ending):
            found.setdefault(case_of(file), []).append(file.name)
    # one PNG holds all the channels of a photograph
    merged = channels == 1 or ending == ".png"
    split = {case: files for case, files in found.items()
             if len(files) > 1 or not merged and CHANNEL.fullmatch(file_stem(files[0]))}  # fmt: skip
    if split:
        case, files = next(iter(split.items()))
        problems.append(_several(f"{folder}, {len(split)} cases such as {case}: ", files))
    return {case: f"{folder}/{files[0]}" for case, files in found.items()}


def _labels_in(directory: Path, folder: str, ending: str) -> dict[str, str]:
    return {file_stem(file.name): f"{folder}/{file.name}" for file in visible(directory / folder, "*")
            if file.name.lower().endswith(ending)}  # fmt: skip


def _listed(listed: Mapping[str, Any], problems: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Images and labels of nnU-Net's ``dataset`` key, which names the files of each case."""
    images, labels = {}, {}
    for case, entry in listed.items():
        files = entry.get("images") if isinstance(entry, Mapping) else None
        if not isinstance(files, list) or not files or not isinstance(entry.get("label"), str):
            problems.append(f'`dataset`, {case}: expected {{"images": ["..."], "label": "..."}}, found {shown(entry)}; '
                            "correct it")  # fmt: skip
        elif len(files) > 1:
            problems.append(_several(f"`dataset`, {case}: ", files))
        else:
            images[case], labels[case] = files[0], entry["label"]
    return images, labels


def _several(where: str, files: list[str]) -> str:
    found = ", ".join(map(str, files))
    return (f"{where}expected one file a scan, with its channels on the fourth axis, found {found}; "
            f"merge them, as {MERGE}, and put that in their place (without _0000)")  # fmt: skip
