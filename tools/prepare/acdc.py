"""ACDC: short-axis cardiac cine MRI with right ventricle, myocardium and left ventricle, as NIfTI.

Source: Automated Cardiac Diagnosis Challenge 2017 (https://www.creatis.insa-lyon.fr/Challenge/acdc), on registration:
the 100 patients of ``training``. The later release has them too, with 50 more in ``testing``.
Licence: CC BY-NC-SA 4.0 as far as known; read the text that comes with the download.
Splits: by patient, two scans each (end of diastole and of systole): 7 labelled patients (option ``labelled``), 10 for
validation, 20 for the test, the others unlabelled. Labelled are 038, 050, 099, then 021, 049, 058, 100, as in the
semi-supervised papers; beyond seven, the others by number. The papers' validation and test patients stand in their
lists: give these as ``validation`` and ``test`` (text files, one patient or scan a line). Without them, the ten
patients whose number ends in 5 validate and the twenty whose number ends in 2 or 7 test, as many of each of the five
diagnoses, which come in blocks of twenty. A patient above 100 takes part only where a list names it.
Checks: patients 1 to 100 are there, each with ``Info.cfg`` and the two frames and masks that it names; masks lie on the
grid of their scan, only the labels 0 to 3 occur, and a heart; the slices are the third axis. Masks of unlabelled scans
have to be there, but are not opened.
Preprocessing: the top 0.1 % of the intensities clipped, and scaled from the least to the greatest of each scan (as the
papers do, which clip nothing); grid and slices stay as they are.
Departures: stored as 8 bits, and therefore clipped. The axes stay as they are: short-axis slices are oblique.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentiles

from common.data.visible import visible
from tools.prepare.recipe import Bad, Recipe, Scan, nifti, read_nifti
from tools.prepare.splits import read_list, split_up

__all__ = ["RECIPE", "configure"]

LABELS = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
PATIENTS = [f"patient{number:03d}" for number in range(1, 101)]
LABELLED = [f"patient{number:03d}" for number in (38, 50, 99, 21, 49, 58, 100)]
VALIDATION, TEST = "5", "27"  # the last digits of their numbers, where no list is given
PHASES = ("ED", "ES")


def configure(labelled: int = 7, validation: str | None = None, test: str | None = None) -> Recipe:
    """The recipe with its options: how many patients keep their labels, and files with the patients of two splits."""
    told = [f"{split}: " + (f"as listed in {Path(file).name}" if file else f"numbers that end in {' or '.join(digits)}")
            for split, file, digits in (("validation", validation, VALIDATION), ("test", test, TEST))]
    text = "; ".join([RECIPE.about["description"], f"{labelled} labelled", *told])
    return replace(RECIPE, about=RECIPE.about | {"description": text},
                   find=partial(find, labelled=labelled, validation=validation, test=test))


def find(source: Path, labelled: int = 7, validation: str | None = None,
         test: str | None = None) -> tuple[list[Scan], list[str]]:
    """Two scans of each patient, and one line for everything that is missing."""
    problems: list[str] = []
    folders: dict[str, Path] = {}
    for folder in visible(source, "**/patient*"):
        if folder.is_dir() and re.fullmatch(r"patient\d{3}", folder.name):
            other = folders.setdefault(folder.name, folder)
            if other != folder:
                problems.append(f"{folder}: expected once, found {other} too; remove one of them")
    if not folders:
        return [], problems
    missing = [name for name in PATIENTS if name not in folders]
    if missing:
        problems.append(f"expected {PATIENTS[0]} to {PATIENTS[-1]}, found none of {', '.join(missing)}; unpack the "
                        "download again")
    chosen = [read_list(file, r"(patient\d{3})", folders, problems) if file else
              [name for name in PATIENTS if name in folders and name[-1] in digits]
              for file, digits in ((validation, VALIDATION), (test, TEST))]
    order = dict.fromkeys(name for name in [*LABELLED, *PATIENTS] if name in folders)
    splits = split_up(list(order), labelled, *chosen, problems)
    return [scan for name, split in splits.items() for scan in _frames(folders[name], split, problems)], problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Read the pair, see that there is a heart, and that the third axis, the coarsest, is that of the slices."""
    image, label, affine = read_nifti(scan, {number: number for number in LABELS})
    spacing, lines = nib.affines.voxel_sizes(affine), []
    if spacing.argmax() != 2:
        found = f"the spacing {spacing.round(2).tolist()}"
        lines.append(f"{scan.image}: expected thick slices along the third axis, found {found}; is it the original?")
    if label is not None and not label.any():
        lines.append(f"{scan.label}: expected a heart (1, 2 or 3), found background only; is it the original file?")
    if lines:
        raise Bad(lines)
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor | None) -> tuple[MetaTensor, MetaTensor | None]:
    """Clip and scale on the whole scan."""
    return ScaleIntensityRangePercentiles(lower=0, upper=99.9, b_min=0, b_max=255, clip=True)(image), label


def _frames(folder: Path, split: str, problems: list[str]) -> list[Scan]:
    """The scans of one patient at the two times that ``Info.cfg`` names, as ``ED: 1``."""
    info = folder / "Info.cfg"
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    frames = dict(re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    scans = []
    for phase in PHASES:
        if phase not in frames:
            problems.append(f"{info}: expected the frame of {phase}, such as `{phase}: 1`, found none; copy it again")
            continue
        name = f"{folder.name}_frame{int(frames[phase]):02d}"
        image, label = (nifti(folder, stem) for stem in (name, f"{name}_gt"))
        problems += [f"{file}: expected this file ({phase} in Info.cfg), found none; copy it there"
                     for file in (image, label) if not file.is_file()]
        if image.is_file() and label.is_file():
            scans.append(Scan(name, image, None if split == "unlabeled" else label, split, case=folder.name))
    return scans


RECIPE = Recipe(
    name="acdc",
    modality={"0": "cine bSSFP MRI"},
    labels=LABELS,
    scans={},
    about={
        "description": "ACDC short-axis cine MRI at the ends of diastole and systole, split by patient",
        "reference": "Bernard et al., Deep learning techniques for automatic MRI cardiac multi-structures segmentation "
                     "and diagnosis: is the problem solved?, IEEE TMI 37 (2018)",
        "licence": "CC BY-NC-SA 4.0 as far as known; see the text of the download",
    },
    layout="folders patient<number> with Info.cfg, patient<number>_frame<number>.nii.gz and ..._gt.nii.gz in them",
    find=find,
    read=read,
    preprocess=preprocess,
    folds=False,
)  # fmt: skip
