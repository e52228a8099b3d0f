"""MS-CMRSeg 2019, bSSFP ("C0"): short-axis cardiac MRI with myocardium, left and right ventricle, as NIfTI.

Source: Multi-sequence Cardiac MR Segmentation Challenge 2019 (https://zmiclab.github.io/zxh/0/mscmrseg19), on
registration.
Licence: the challenge's data agreement: research only, no redistribution.
Splits: the 35 patients with a mask are ``training``, with ``folds``: sorted by number, five contiguous blocks of seven.
Checks: 35 scans (another count warns); every one has a mask on the same grid; only the published label values occur;
the slices are the third axis.
Preprocessing (as GMRD and Q-Net): the top 0.5 % of the intensities clipped; 1.25 x 1.25 x 7.99 mm; 256 x 256 in the
plane.
Departures: stored as 8 bits. The axes stay as they are: short-axis slices are oblique, and turning them to the body's
axes would take the slices for something else.
"""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentiles

from common.data.visible import visible
from tools.prepare.recipe import Bad, Recipe, Scan, onto_grid, read_nifti

__all__ = ["RECIPE"]

SPACING, SIZE, PATIENTS = (1.25, 1.25, 7.99), 256, 35
LABELS = {1: "myocardium", 2: "left ventricle", 3: "right ventricle"}
VALUES = {200: 1, 500: 2, 600: 3}


def find(source: Path) -> tuple[list[Scan], list[str]]:
    """The labelled scans, and one line for every file without its partner."""
    images, masks = (_by_number(source, rf"patient(\d+)_C0{end}\.nii(\.gz)?") for end in ("", "_manual"))
    problems = [f"{images[n]}: expected patient{n}_C0_manual.nii.gz below {source}, found none; copy it there"
                for n in sorted(set(images) - set(masks)) if n <= PATIENTS]
    problems += [f"{masks[n]}: expected patient{n}_C0.nii.gz below {source}, found none; copy it there"
                 for n in sorted(set(masks) - set(images))]
    numbers = sorted(set(images) & set(masks))
    return [Scan(f"mscmr_c0_{n:02d}", images[n], masks[n]) for n in numbers], problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the pair and see that its third axis, the coarsest, is that of the slices."""
    image, label, affine = read_nifti(scan, VALUES)
    spacing = nib.affines.voxel_sizes(affine)
    if spacing.argmax() != 2:
        found = f"the spacing {spacing.round(2).tolist()}"
        raise Bad([f"{scan.image}: expected thick slices along the third axis, found {found}; is it the original?"])
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    """Clip and scale on the whole scan, resample, and crop or pad."""
    image = ScaleIntensityRangePercentiles(lower=0, upper=99.5, b_min=0, b_max=255, clip=True)(image)
    return onto_grid(image, label, len(LABELS), SPACING, SIZE)


def _by_number(source: Path, pattern: str) -> dict[int, Path]:
    matches = ((re.fullmatch(pattern, file.name, re.IGNORECASE), file) for file in visible(source, "**/patient*"))
    return {int(match.group(1)): file for match, file in matches if match}


RECIPE = Recipe(
    name="mscmr_c0",
    modality={"0": "bSSFP MRI"},
    labels=LABELS,
    scans={(None, "training"): PATIENTS},
    about={
        "description": "MS-CMRSeg 2019 short-axis bSSFP MRI; folds: five contiguous blocks in the order of the numbers",
        "reference": "Zhuang, Multivariate mixture model for myocardial segmentation, IEEE TPAMI 41 (2019)",
        "licence": "data agreement of the challenge: research only, no redistribution",
    },
    layout="files patient<number>_C0.nii.gz with patient<number>_C0_manual.nii.gz, in any folders",
    find=find,
    read=read,
    preprocess=preprocess,
)
