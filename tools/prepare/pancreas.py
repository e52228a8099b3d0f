"""Pancreas-NIH: abdominal CT with the pancreas, as DICOM slices or NIfTI, with NIfTI masks.

Source: Pancreas-CT of The Cancer Imaging Archive (doi 10.7937/K9/TCIA.2016.tNB1kqBU): the images as DICOM in folders
``PANCREAS_0001`` to ``PANCREAS_0082``, or converted to NIfTI (``PANCREAS_0001.nii.gz`` or ``image0001.nii.gz``), and
the manual masks (``label0001.nii.gz``).
Licence: CC BY 3.0.
Splits: 62 scans to train on, 12 of them labelled (option ``labelled``) and the others unlabelled, and 18 for the test.
The papers' 62 stand in their lists: give the train list as ``train`` (a text file, one id or file name a line); its
first scans are the labelled ones, and what it does not name is the test. Without it, the first 62 by number train.
There is no published validation split: ``validation``, a file too, takes its scans out of the others. 25 and 70 are
duplicates, which the official release dropped: they are left out, and ignored where a list names them.
Checks: 1 to 82 without the duplicates are there, each with its mask, of the same size and spacing when both are turned
alike; only the labels 0 and 1 occur, and a pancreas. Warns of a mask that fits the soft tissue better when flipped.
Preprocessing: intensities clipped to -125..275 HU; axes left, front, head in every scan; 1 mm in each direction; with
``crop`` as ``label``, the default, cut to the box around the pancreas, 25 voxels more on each side. This cut needs the
labels of all scans, of unlabelled and test scans too: scans of new patients have to be cut otherwise, or trained and
tested on whole (``crop`` as ``none``, which opens no label of an unlabelled scan).
Departures: stored as 8 bits. Voxels of scan and mask correspond one to one, whatever origins their headers have.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation, ScaleIntensityRange, SpatialCrop

from common.data.visible import visible
from tools.prepare.crop import box_around, check_crop
from tools.prepare.dicom import need_pydicom, read_slice, stack_order
from tools.prepare.recipe import Bad, Recipe, Scan, class_numbers, load_nifti, onto_grid, together
from tools.prepare.splits import read_list, split_up

__all__ = ["RECIPE", "configure"]

DUPLICATES = ("0025", "0070")
NUMBERS = [f"{number:04d}" for number in range(1, 83)]
TRAINING, MARGIN = 62, 25
TISSUE, BETTER = (0, 200), 0.1  # HU of a pancreas with contrast agent; share of the mask that a flip brings into it
ID = r"(\d{4})(?!.*/)"  # the first four digits of the file name


def configure(labelled: int = 12, train: str | None = None, validation: str | None = None,
              crop: str = "label") -> Recipe:
    """The recipe with its options: how many scans keep their labels, files with the scans of two splits, the cut.

    Raises:
        DataError: ``crop`` is neither ``label`` nor ``none``.
    """
    check_crop(crop)
    told = f"{labelled} labelled; training: " + (f"as listed in {Path(train).name}" if train else "by number")
    text = "; ".join([RECIPE.about["description"], told, f"crop: {crop}"])
    return replace(RECIPE, about=RECIPE.about | {"description": text}, preprocess=partial(preprocess, crop=crop),
                   find=partial(find, labelled=labelled, train=train, validation=validation, crop=crop))


def find(source: Path, labelled: int = 12, train: str | None = None, validation: str | None = None,
         crop: str = "label") -> tuple[list[Scan], list[str]]:
    """The scans with their masks, and one line for everything that is missing."""
    problems: list[str] = []
    images = _by_number(source, r"(?:PANCREAS_|image)(\d{4})(?:\.nii(?:\.gz)?)?", problems)
    labels = _by_number(source, r"label(\d{4})\.nii(?:\.gz)?", problems)
    if not images and not labels:
        return [], problems
    if any(image.is_dir() for image in images.values()):
        need_pydicom("the DICOM slices of Pancreas-CT")
    wanted = [number for number in NUMBERS if number not in DUPLICATES]
    missing = [number for number in wanted if number not in images and number not in labels]
    if missing:
        problems.append(f"expected the scans {NUMBERS[0]} to {NUMBERS[-1]} but for {' and '.join(DUPLICATES)}, found "
                        f"none of {', '.join(missing)}; unpack the download again")
    problems += [f"{images[n]}: expected label{n}.nii.gz below {source}, found none; copy it there"
                 for n in wanted if n in images and n not in labels]
    problems += [f"{labels[n]}: expected PANCREAS_{n} below {source}, found none; copy it there"
                 for n in wanted if n in labels and n not in images]
    there = [n for n in wanted if n in images and n in labels]
    order, held = ([n for n in read_list(file, ID, {*images, *DUPLICATES}, problems) if n in there] if file else default
                   for file, default in ((train, there[:TRAINING]), (validation, [])))
    splits = split_up(order, labelled, held, [n for n in there if n not in {*order, *held}], problems)
    return [Scan(f"pancreas_{n}", images[n], None if (split, crop) == ("unlabeled", "none") else labels[n], split)
            for n, split in splits.items()], problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Read the scan and its mask, turned to the axes of the scan.

    Raises:
        Bad: a file cannot be read or does not hold what it should, or the two are not of one scan.
    """
    (image, affine), (label, own) = together(lambda file: _series(file) if file.is_dir() else load_nifti(file),
                                             (scan.image, scan.label))
    if label is None:
        return image, None, affine
    turn = nib.orientations.ornt_transform(*(nib.orientations.io_orientation(grid) for grid in (own, affine)))
    spacing = nib.affines.voxel_sizes(own @ nib.orientations.inv_ornt_aff(turn, label.shape))
    label = nib.orientations.apply_orientation(label, turn)
    if label.shape != image.shape or not np.allclose(spacing, nib.affines.voxel_sizes(affine), rtol=0.01):
        wanted, found = (f"{array.shape} at {np.round(size, 3).tolist()} mm" for array, size in
                         ((image, nib.affines.voxel_sizes(affine)), (label, spacing)))
        raise Bad([f"{scan.label}: expected the size {wanted} of {scan.image.name}, found {found}; they are not of one "
                   "scan, or slices are missing"])
    label = class_numbers(label, {1: 1}, scan.label)
    if not label.any():
        raise Bad([f"{scan.label}: expected a pancreas, found background only; is it the original file?"])
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor | None,
               crop: str = "label") -> tuple[MetaTensor, MetaTensor | None]:
    """Window the intensities, turn to left-front-head, resample to 1 mm, and cut."""
    image = ScaleIntensityRange(a_min=-125, a_max=275, b_min=0, b_max=255, clip=True)(image)
    turn = Orientation(axcodes="LAS", labels=None)
    image, label = onto_grid(turn(image), None if label is None else turn(label), 1, (1.0, 1.0, 1.0))
    if crop == "label":
        cut = SpatialCrop(roi_slices=list(box_around(label[0].numpy(), MARGIN)))
        image, label = cut(image), cut(label)
    return image, label


def doubts(image: np.ndarray, label: np.ndarray | None) -> list[str]:
    """What says that scan and mask are turned differently: less soft tissue under the mask than under a flipped one."""
    if label is None:
        return []
    inside, shape, shares = np.argwhere(label), np.array(image.shape), {}
    for flips in product((False, True), repeat=3):
        values = image[tuple(np.where(flips, shape - 1 - inside, inside).T)]
        shares[flips] = float(((values >= TISSUE[0]) & (values <= TISSUE[1])).mean())
    own, best = shares[False, False, False], max(shares, key=shares.get)
    if shares[best] <= own + BETTER:
        return []
    axes = " and ".join(str(axis + 1) for axis in range(3) if best[axis])
    return [f"expected the mask on soft tissue ({TISSUE[0]} to {TISSUE[1]} HU), found {own:.0%} of it there, and "
            f"{shares[best]:.0%} when flipped along axis {axes}; look at it"]


def _series(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (column, row, slice) and affine of the one series below a folder."""
    files = _slices(folder)
    places = sorted({str(file.parent) for file in files})
    if len(places) > 1:
        raise Bad([f"{folder}: expected one series of DICOM slices, found {' and '.join(places)}; remove all but one"])
    slices, lines = [], []
    for file in files:
        try:
            slices.append(read_slice(file))
        except Bad as error:
            lines += error.lines
    if lines:
        raise Bad(lines)
    order, affine = stack_order(folder, slices)
    return np.stack([slices[i][0].T for i in order], axis=-1).astype(np.float32), affine


def _slices(folder: Path) -> list[Path]:
    return [file for file in visible(folder, "**/*") if file.suffix.lower() == ".dcm"]


def _by_number(source: Path, pattern: str, problems: list[str]) -> dict[str, Path]:
    """Files, and folders with DICOM slices in them, by the number in their name."""
    found: dict[str, Path] = {}
    for path in visible(source, "**/*"):
        match = re.fullmatch(pattern, path.name, re.IGNORECASE)
        if match and path.is_dir() and not _slices(path):
            continue
        if match and found.setdefault(match.group(1), path) != path:
            problems.append(f"{path}: expected once, found {found[match.group(1)]} too; remove one of them")
    return found


RECIPE = Recipe(
    name="pancreas",
    modality={"0": "CT"},
    labels={1: "pancreas"},
    scans={},
    about={
        "description": "Pancreas-NIH abdominal CT without the duplicates 25 and 70, 1 mm",
        "reference": "Roth et al., DeepOrgan: multi-level deep convolutional networks for automated pancreas "
                     "segmentation, MICCAI 2015; doi 10.7937/K9/TCIA.2016.tNB1kqBU",
        "licence": "CC BY 3.0",
    },
    layout="folders PANCREAS_<number> with DICOM slices in them, or NIfTI of that name, and label<number>.nii.gz",
    find=find,
    read=read,
    preprocess=preprocess,
    doubts=doubts,
    folds=False,
)  # fmt: skip
