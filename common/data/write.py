"""Write a data set: ``images/``, ``labels/`` and ``dataset.json`` in the Medical Segmentation Decathlon manner."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.data.dataset import SPLITS
from common.data.items import file_stem
from common.data.output_dir import check_output_dir
from common.data.photograph import write_png
from common.data.temporary import remove_leftovers, temporary_path, writing

__all__ = ["Case", "atomic_folder", "write_dataset"]

COUNTS = {"numTraining": "training", "numTest": "test"}


@dataclass(frozen=True)
class Case:
    """One scan or photograph to write.

    A case whose label is 2-D is a photograph; without a label, one whose image is 2-D, or ``(H, W, 3)`` and uint8.

    Args:
        name: the file name, also the case id where ``case`` gives no other.
        image: intensities, ``(*spatial)`` or ``(*spatial, C)``; of a photograph ``(H, W)`` or ``(H, W, 3)``.
        label: class numbers ``(*spatial)``; ``None`` for a case without one.
        affine: 4 x 4, voxel index to millimetres in RAS+ (the NIfTI convention); not for photographs.
        domain: where the scan comes from (scanner, centre, protocol), if that matters.
        case: case id that several scans share, such as two time points of one patient.
    """

    name: str
    image: np.ndarray
    label: np.ndarray | None = None
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    domain: str | None = None
    case: str | None = None

    @property
    def is_photograph(self) -> bool:
        if self.label is not None:
            return self.label.ndim == 2
        return self.image.ndim == 2 or self.image.shape[2:] == (3,) and self.image.dtype == np.uint8


@contextmanager
def atomic_folder(directory: str | os.PathLike) -> Iterator[Path]:
    """Give a path to build a folder at, and move it to ``directory`` in one step when the block ends without an error.

    The folder is built beside its destination, on the same file system, so that it appears whole or not at all. What a
    killed run leaves there, the next one removes.

    Raises:
        FileExistsError: ``directory`` exists already and is not an empty folder.
        OSError: see :func:`.check_output_dir` and :func:`.writing`.
    """
    target = Path(directory).absolute()
    _refuse_occupied(target)
    remove_leftovers(check_output_dir(target.parent))
    staging = temporary_path(target)
    staging.mkdir()
    try:
        with writing(target):
            yield staging / target.name
            _refuse_occupied(target)
            if target.is_dir():
                target.rmdir()
            os.rename(staging / target.name, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_dataset(
    directory: str | os.PathLike,
    name: str,
    modality: Mapping[str, str],
    labels: Mapping[int, str],
    *,
    training: Iterable[Case] = (),
    validation: Iterable[Case] = (),
    test: Iterable[Case] = (),
    unlabeled: Iterable[Case] = (),
    folds: Sequence[Sequence[str]] = (),
    extra: Mapping[str, Any] | None = None,
    dtype: type = np.uint8,
) -> Path:
    """Write a data set, whole or not at all, and return its folder.

    Files are ``images/<case>.nii.gz`` and ``labels/<case>.nii.gz``, for photographs ``.png``; the same input gives the
    same bytes. A set holds volumes or photographs. The splits may be generators: one case is held in memory at a time.

    Args:
        directory: folder to create; it must not exist or be empty.
        name: name of the data set.
        modality: channel number to name, e.g. ``{"0": "T2-SPIR MRI"}``.
        labels: class number to name, without the background.
        training: labelled cases to learn from.
        validation: labelled cases to choose a model by.
        test: cases kept for the end; with or without a label.
        unlabeled: cases whose label, if any, is never read.
        folds: groups of case ids of ``training`` for cross-validation.
        extra: further top-level entries of dataset.json, e.g. ``description``, ``reference``, ``licence``.
        dtype: type of the stored intensities, which are rounded when it is an integer type; of photographs uint8.

    Raises:
        FileExistsError: ``directory`` is there already.
        ValueError: something does not fit; every bad case is listed and nothing is written.
    """
    header = {
        "name": name,
        "modality": {str(key): value for key, value in modality.items()},
        "labels": {"0": "background", **{str(key): value for key, value in sorted(labels.items())}},
        "tensorImageSize": "3D",
    }
    problems = _extra_problems(extra or {}, header)
    with atomic_folder(directory) as root:
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True)
        lists, found, flat = _write_cases(root, (training, validation, test, unlabeled), labels, dtype)
        problems += found + _fold_problems(folds, lists["training"])
        header["tensorImageSize"] = "2D" if flat else "3D"
        if problems:
            raise ValueError(f"{name}: {len(problems)} problem(s), nothing was written:\n  " + "\n  ".join(problems))
        index = {**header, **(extra or {}), **{key: len(lists[split]) for key, split in COUNTS.items()}, **lists}
        if folds:
            index["folds"] = [list(fold) for fold in folds]
        (root / "dataset.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return Path(directory)


def _write_cases(
    root: Path, splits: Sequence[Iterable[Case]], labels: Mapping[int, str], dtype: type
) -> tuple[dict[str, list[dict[str, str]]], list[str], bool]:
    """Write the good cases of all splits.

    Returns:
        their items by split, a line for everything wrong with the others, and whether they are photographs.
    """
    lists: dict[str, list[dict[str, str]]] = {}
    problems: list[str] = []
    seen: set[str] = set()
    flat: bool | None = None  # as the first case is
    for split, cases in zip(SPLITS, splits, strict=True):
        lists[split] = []
        for case in cases:
            flat = case.is_photograph if flat is None else flat
            found = _problems(case, split, labels, dtype, seen, flat)
            problems += found
            seen.add(case.name)
            if not found:
                lists[split].append(_write_case(root, case, split, dtype))
    return lists, problems, bool(flat)


def _refuse_occupied(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        raise FileExistsError(f"{target} exists already: delete it or choose another folder")


def _problems(
    case: Case, split: str, labels: Mapping[int, str], dtype: type, seen: set[str], flat: bool
) -> list[str]:
    found = _picture_problems(case, dtype, flat)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", case.name):
        found.append("its name is not letters, digits, '_', '-' and '.' only, so it cannot be a file name")
    if case.name in seen:
        found.append("there are two cases of this name; give each its own")
    if not np.isfinite(case.image).all():
        found.append(f"{np.size(case.image) - np.isfinite(case.image).sum()} voxels are NaN or infinite")
    elif np.issubdtype(dtype, np.integer):
        low, high, info = float(case.image.min()), float(case.image.max()), np.iinfo(dtype)
        if np.rint(low) < info.min or np.rint(high) > info.max:
            found.append(f"intensities {low:g}..{high:g} do not fit {info.dtype} ({info.min}..{info.max}); scale them")
    if case.label is not None:
        if case.label.shape != case.image.shape[: case.label.ndim]:
            found.append(f"its label has the shape {case.label.shape}, its image {case.image.shape}")
        unknown = sorted(set(np.unique(case.label).tolist()) - {0, *labels})
        if unknown:
            found.append(f"label values {unknown} are not among 0 and {sorted(labels)}; map them")
    elif split in ("training", "validation"):
        found.append("it has no label; a case without one belongs to `unlabeled` or `test`")
    return [f"{case.name} ({split}): {text}" for text in found]


def _picture_problems(case: Case, dtype: type, flat: bool) -> list[str]:
    kinds = ("a volume", "a photograph")
    if case.is_photograph != flat:
        return [f"it is {kinds[case.is_photograph]} and the first case {kinds[flat]}; write two data sets (without a "
                "label, a photograph is (H, W), or (H, W, 3) and uint8)"]
    if not flat:
        return []
    found = []
    if case.image.ndim != 2 and case.image.shape[2:] != (3,):
        found.append(f"its image has the shape {case.image.shape}; a photograph has (H, W) or (H, W, 3)")
    if dtype != np.uint8:
        found.append(f"it is a photograph, which PNG keeps as uint8, not {np.dtype(dtype)}; scale it to 0..255")
    if not np.array_equal(case.affine, np.eye(4)):
        found.append("it is a photograph, and PNG keeps no affine; leave it out, or write it as a volume of one slice")
    return found


def _fold_problems(folds: Sequence[Sequence[str]], training: list[dict[str, str]]) -> list[str]:
    names = {item.get("case", file_stem(item["image"])) for item in training}
    listed = [case for fold in folds for case in fold]
    unknown = [f"folds: {case} is no case of `training`" for case in listed if case not in names]
    return unknown + [f"folds: {case} is listed twice" for case in sorted({c for c in listed if listed.count(c) > 1})]


def _extra_problems(extra: Mapping[str, Any], header: Mapping[str, Any]) -> list[str]:
    own = {*header, *SPLITS, *COUNTS, "folds"}
    return [f"extra: '{key}' is an entry that write_dataset fills in itself" for key in extra if key in own]


def _write_case(root: Path, case: Case, split: str, dtype: type) -> dict[str, str]:
    image = np.rint(case.image) if np.issubdtype(dtype, np.integer) else case.image
    item = {"image": _write_file(root, "images", case, image.astype(dtype))}
    if case.label is not None and split != "unlabeled":
        item["label"] = _write_file(root, "labels", case, case.label.astype(np.uint8))
    return item | {key: text for key in ("case", "domain") if (text := getattr(case, key)) is not None}


def _write_file(root: Path, folder: str, case: Case, array: np.ndarray) -> str:
    relative = f"{folder}/{case.name}{'.png' if case.is_photograph else '.nii.gz'}"
    if case.is_photograph:
        write_png(root / relative, array)
    else:
        (root / relative).write_bytes(_nifti(case, array))
    return relative


def _nifti(case: Case, array: np.ndarray) -> bytes:
    image = nib.Nifti1Image(array, case.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(case.affine, code=1)
    image.set_qform(case.affine, code=1)
    # mtime=0: the time of writing would make two equal files differ
    return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)
