"""BraTS: the whole tumour in MRI of the brain, as NIfTI, in the editions of 2019, 2020 and 2021.

Source: Brain Tumor Segmentation Challenge, on registration: the training data of 2019
(``MICCAI_BraTS_2019_Data_Training``, with ``HGG`` and ``LGG``), 2020 (``MICCAI_BraTS2020_TrainingData``) or 2021. What
lies below a folder with ``validation`` in its name comes without masks and is left out.
Licence: for research as far as known; read the terms that come with the download.
Splits: of the 335 scans of 2019, 250 to train on, 25 of them labelled (option ``labelled``) and the others unlabelled,
25 for validation and 60 for the test; of other counts the same shares. The papers' 250 and 25 stand in their lists:
give these as ``train`` and ``validation`` (text files, one id a line); the first scans of ``train`` are the labelled
ones, and what neither names is the test. Without a list, scans are drawn: in the order of the SHA-256 of their ids,
which is the same everywhere, the first validate, the next are the test, and the others train.
Checks: one edition only, as they share patients; 335, 369 or 1251 scans (another count warns); every one has its mask
on its grid; the image holds whole numbers, and a brain; only the labels 0, 1, 2 and 4 occur, and a tumour. Masks of
unlabelled scans have to be there, but are not opened. Warns of another shape than 240 x 240 x 155, and of a tumour
where there is no brain.
Preprocessing: FLAIR, or the option ``modality``; labels 1, 2 and 4 become 1, the whole tumour; cut to the box around
the brain, the intensities above 0, which needs no label. Intensities, 1 mm and axes stay as they are.
Departures: the drawn splits are not the papers', which are random too. Stored as 16 bits, as in the download.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import SpatialCrop

from common.data.dataset import DataError
from common.data.visible import visible
from tools.prepare.crop import box_around
from tools.prepare.recipe import Bad, Recipe, Scan, nifti, read_nifti
from tools.prepare.splits import read_list, split_up

__all__ = ["RECIPE", "configure"]

MODALITIES = {"flair": "FLAIR MRI", "t1": "T1 MRI", "t1ce": "T1 MRI with contrast agent", "t2": "T2 MRI"}
COUNTS = {"BraTS19": 335, "BraTS20": 369, "BraTS2021": 1251}
ID = r"(BraTS19_\w+_\d+|BraTS20_Training_\d+|BraTS2021_\d+)"
VALIDATION, TEST = 25 / 335, 60 / 335  # shares of the scans
SHAPE = (240, 240, 155)
STRAY = 0.01  # share of the tumour that may lie where the image is 0


def configure(labelled: int = 25, train: str | None = None, validation: str | None = None,
              modality: str = "flair") -> Recipe:
    """The recipe with its options: how many scans keep their labels, files with the scans of two splits, the image.

    Raises:
        DataError: there is no such ``modality``.
    """
    if modality not in MODALITIES:
        raise DataError(f"modality: expected one of {', '.join(MODALITIES)}, found {modality}; correct --modality")
    told = [f"{split}: " + (f"as listed in {Path(file).name}" if file else "drawn")
            for split, file in (("training", train), ("validation", validation))]
    text = "; ".join([RECIPE.about["description"], f"{labelled} labelled", *told])
    return replace(RECIPE, modality={"0": MODALITIES[modality]}, about=RECIPE.about | {"description": text},
                   find=partial(find, labelled=labelled, train=train, validation=validation, modality=modality))


def find(source: Path, labelled: int = 25, train: str | None = None, validation: str | None = None,
         modality: str = "flair") -> tuple[list[Scan], list[str]]:
    """The scans with their masks, and one line for everything that is missing."""
    problems: list[str] = []
    folders = _folders(source, problems)
    if not folders:
        return [], problems
    chosen, held = (read_list(file, ID, folders, problems) if file else None for file in (train, validation))
    drawn = [name for name in sorted(folders, key=_lot) if name not in {*(chosen or ()), *(held or ())}]
    if held is None:
        count = round(VALIDATION * len(folders))
        held, drawn = drawn[:count], drawn[count:]
    if chosen is None:
        count = round(TEST * len(folders))
        drawn, chosen = drawn[:count], drawn[count:]
    splits = split_up(chosen, labelled, held, drawn, problems)
    files = {name: _pair(folder, modality, problems) for name, folder in folders.items()}
    return [Scan(name, files[name][0], None if split == "unlabeled" else files[name][1], split)
            for name, split in splits.items() if all(file.is_file() for file in files[name])], problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Read the pair, with the parts of the tumour merged, and see that there are a brain and a tumour.

    Raises:
        Bad: a file cannot be read or does not hold what it should, or the two lie on different grids.
    """
    image, label, affine = read_nifti(scan, {1: 1, 2: 1, 4: 1})
    low, high, lines = float(image.min()), float(image.max()), []
    if low < -(2**15) or high >= 2**15 or not np.array_equal(image, np.rint(image)):
        lines.append(f"{scan.image}: expected whole numbers of 16 bits, found others ({low:g} to {high:g}); is it the "
                     "original file?")
    elif high <= 0:
        lines.append(f"{scan.image}: expected a brain, found no intensity above 0; is it the original file?")
    if label is not None and not label.any():
        lines.append(f"{scan.label}: expected a tumour (1, 2 or 4), found background only; is it the original file?")
    if lines:
        raise Bad(lines)
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor | None) -> tuple[MetaTensor, MetaTensor | None]:
    """Cut both to the box around the brain."""
    cut = SpatialCrop(roi_slices=list(box_around(image[0].numpy() > 0, margin=0)))
    return cut(image), None if label is None else cut(label)


def doubts(image: np.ndarray, label: np.ndarray | None) -> list[str]:
    """What says that the image is not as published, or that the mask is not of this image."""
    lines = []
    if image.shape != SHAPE:
        wanted, found = (" x ".join(map(str, shape)) for shape in (SHAPE, image.shape))
        lines.append(f"expected {wanted} voxels, found {found}; is it the original file?")
    stray = 0.0 if label is None else float((image[label > 0] <= 0).mean())
    if stray > STRAY:
        lines.append(f"expected the tumour within the brain, found {stray:.0%} of it where the image is 0; look at it")
    return lines


def _folders(source: Path, problems: list[str]) -> dict[str, Path]:
    """The folder of each scan by its name; all of one edition, or it is a problem."""
    folders: dict[str, Path] = {}
    for folder in visible(source, "**/BraTS*"):
        aside = any("validation" in part.lower() for part in folder.relative_to(source).parts)
        if not re.fullmatch(ID, folder.name) or aside or not folder.is_dir():
            continue
        other = folders.setdefault(folder.name, folder)
        if other != folder:
            problems.append(f"{folder}: expected once, found {other} too; remove one of them")
    editions = sorted({name.split("_")[0] for name in folders})
    if len(editions) > 1:
        problems.append(f"expected one edition, found {' and '.join(editions)}, which share patients; give the folder "
                        "of one as --source")
    elif editions and len(folders) != COUNTS[editions[0]]:
        warnings.warn(f"{source}: expected {COUNTS[editions[0]]} scans, found {len(folders)}; is the download whole?",
                      stacklevel=2)
    return folders


def _pair(folder: Path, modality: str, problems: list[str]) -> tuple[Path, Path]:
    """Image and mask of a scan, compressed or not."""
    pair = []
    for end in (modality, "seg"):
        pair.append(nifti(folder, f"{folder.name}_{end}"))
        if not pair[-1].is_file():
            # a public copy of 2020 has the mask of one scan under another name
            found = ", ".join(file.name for file in visible(folder) if ".nii" in file.name.lower()) or "no NIfTI file"
            problems.append(f"{pair[-1]}: expected this file, or without .gz, found {found}; copy or rename it")
    return pair[0], pair[1]


def _lot(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


RECIPE = Recipe(
    name="brats",
    modality={"0": MODALITIES["flair"]},
    labels={1: "whole tumour"},
    scans={},
    about={
        "description": "whole tumours of the Brain Tumor Segmentation Challenge, training data, cut to the brain",
        "reference": "Menze et al., The multimodal brain tumor image segmentation benchmark (BRATS), IEEE TMI 34 "
                     "(2015); Bakas et al., Advancing The Cancer Genome Atlas glioma MRI collections, Scientific Data "
                     "4 (2017)",
        "licence": "for research, on registration, as far as known; see the terms of the download",
    },
    layout="folders <name> with <name>_flair.nii.gz and <name>_seg.nii.gz in them, such as BraTS19_2013_0_1",
    find=find,
    read=read,
    preprocess=preprocess,
    doubts=doubts,
    folds=False,
    dtype=np.int16,
)  # fmt: skip
