"""Synapse multi-organ abdomen (BTCV, "SABS"): CT with 13 organs, as NIfTI.

Source: Multi-Atlas Labeling Beyond the Cranial Vault (https://www.synapse.org, syn3193805), ``Abdomen/RawData``, on
registration.
Licence: the data agreement of Synapse: research only, no redistribution.
Splits: the 30 labelled scans are ``training``, with ``folds``: sorted by number, five contiguous blocks of six. The
test scans have no public masks and are left out.
Checks: 30 scans (another count warns); every one has a mask on the same grid; only the labels 0 to 13 occur; slices are
512 x 512.
Preprocessing (as SSL-ALPNet): intensities clipped to -125..275 HU; 32 voxels cut from each border in the plane; the
remaining 448 x 448 resampled to 256 x 256; slices left as they are.
Departures: stored as 8 bits; axes left, front, head in every scan.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCrop, Orientation, ScaleIntensityRange

from common.data.visible import visible
from tools.prepare.recipe import Bad, Recipe, Scan, onto_grid, read_nifti

__all__ = ["RECIPE"]

NATIVE, BORDER, SIZE = 512, 32, 256
LABELS = dict(enumerate(("spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach",
                         "aorta", "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland",
                         "left adrenal gland"), start=1))


def find(source: Path) -> tuple[list[Scan], list[str]]:
    """The labelled scans, and one line for every file without its partner."""
    images, masks = _by_number(source, "img"), _by_number(source, "label")
    problems = [f"{images[n]}: expected label{n:04d}.nii.gz in Training/label, found none; copy it there"
                for n in sorted(set(images) - set(masks))]
    problems += [f"{masks[n]}: expected img{n:04d}.nii.gz in Training/img, found none; copy it there"
                 for n in sorted(set(masks) - set(images))]
    numbers = sorted(set(images) & set(masks))
    return [Scan(f"synapse_{n:02d}", images[n], masks[n]) for n in numbers], problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the pair and see that the slices have the size that the cut borders are meant for."""
    image, label, affine = read_nifti(scan, {number: number for number in LABELS})
    if image.shape[:2] != (NATIVE, NATIVE):
        found = f"{image.shape[0]} x {image.shape[1]}"
        raise Bad([f"{scan.image}: expected slices of {NATIVE} x {NATIVE}, found {found}; is it the original file?"])
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    """Window the intensities, turn to left-front-head, cut the borders, resample in the plane."""
    image = ScaleIntensityRange(a_min=-125, a_max=275, b_min=0, b_max=255, clip=True)(image)
    turn, cut = Orientation(axcodes="LAS", labels=None), CenterSpatialCrop((NATIVE - 2 * BORDER,) * 2 + (-1,))
    image, label = cut(turn(image)), cut(turn(label))
    coarser = (NATIVE - 2 * BORDER) / SIZE
    x, y, z = image.pixdim.tolist()
    return onto_grid(image, label, len(LABELS), (x * coarser, y * coarser, z), SIZE)


def _by_number(source: Path, kind: str) -> dict[int, Path]:
    """The training files of a kind by number; those of the test scans lie beside them in a folder Testing."""
    pattern = re.compile(kind + r"(\d+)\.nii(\.gz)?", re.IGNORECASE)
    matches = ((pattern.fullmatch(file.name), file) for file in visible(source, f"**/{kind}*"))
    return {int(match.group(1)): file for match, file in matches if match and "Testing" not in file.parts}


RECIPE = Recipe(
    name="synapse",
    modality={"0": "CT"},
    labels=LABELS,
    scans={(None, "training"): 30},
    about={
        "description": "Synapse abdominal CT (BTCV); folds: five contiguous blocks in the order of the numbers",
        "reference": "Landman et al., Multi-Atlas Labeling Beyond the Cranial Vault, MICCAI 2015; Synapse syn3193805",
        "licence": "data agreement of Synapse: research only, no redistribution",
    },
    layout="files Training/img/img<number>.nii.gz and Training/label/label<number>.nii.gz",
    find=find,
    read=read,
    preprocess=preprocess,
)
