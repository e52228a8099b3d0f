"""Prostate in T2 MRI of six sites, as NIfTI.

Source: the multi-site set of SAML (https://liuquande.github.io/SAML): NCI-ISBI 2013 (RUNMC, BMC), I2CVB, and PROMISE12
(UCL, BIDMC, HK), collected by its authors.
Licence: the terms of the three: NCI-ISBI 2013 CC BY 3.0, I2CVB and PROMISE12 research only, as far as known.
Splits: all scans are ``training``, each with its site as the domain: the papers train on all scans of the other sites
and test on all scans of the site left out.
Checks: counts of each site (another count warns); every scan has its mask on the same grid; only the labels 0, 1 and 2
occur, and a prostate. Warns of slices that are not 384 x 384.
Preprocessing: labels 1 and 2 (zones in some sites) become 1; the top 0.5 % of the intensities clipped; grid and slices,
those without prostate too, stay as they are.
Departures: stored as 8 bits, and therefore clipped: RAM-DSIR scales each scan by its greatest intensity, of which 8
bits would leave the tissue few steps.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRangePercentiles

from common.data.visible import visible
from tools.prepare.recipe import Bad, Recipe, Scan, read_nifti

__all__ = ["RECIPE"]

SITES = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}
VALUES = {1: 1, 2: 1}
SIZE = 384


def find(source: Path) -> tuple[list[Scan], list[str]]:
    """The scans of all sites, and one line for every file without its partner or there twice."""
    scans: list[Scan] = []
    problems: list[str] = []
    everything = [folder for folder in visible(source, "**/*") if folder.is_dir()]
    for site in SITES:
        folders = [folder for folder in everything if folder.name.upper() == site]
        images, masks = (_by_number(folders, rf"case(\d+){end}\.nii(\.gz)?", problems) for end in ("", "_segmentation"))
        problems += [f"{images[n]}: expected its mask Case{n:02d}_segmentation.nii.gz beside it, found none; copy it "
                     "there" for n in sorted(set(images) - set(masks))]
        problems += [f"{masks[n]}: expected its scan Case{n:02d}.nii.gz beside it, found none; copy it there"
                     for n in sorted(set(masks) - set(images))]
        scans += [Scan(f"prostate_{site}_{n:02d}", images[n], masks[n], domain=site)
                  for n in sorted(set(images) & set(masks))]
    return scans, problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the pair, zones merged, and see that there is a prostate."""
    image, label, affine = read_nifti(scan, VALUES)
    if not label.any():
        raise Bad([f"{scan.label}: expected a prostate (1 or 2), found background only; is it the original file?"])
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    """Clip and scale on the whole scan."""
    return ScaleIntensityRangePercentiles(lower=0, upper=99.5, b_min=0, b_max=255, clip=True)(image), label


def doubts(image: np.ndarray, label: np.ndarray) -> list[str]:
    """What says that the slices are not those of the collection, or do not lie along the third axis."""
    rows, columns = label.shape[:2]
    return [] if (rows, columns) == (SIZE, SIZE) else [
        f"expected slices of {SIZE} x {SIZE} along the third axis, found {rows} x {columns}; is it the original file?"]


def _by_number(folders: list[Path], pattern: str, problems: list[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for file in (file for folder in folders for file in visible(folder)):
        match = re.fullmatch(pattern, file.name, re.IGNORECASE)
        if match and found.setdefault(int(match.group(1)), file) != file:
            problems.append(f"{file}: expected once, found {found[int(match.group(1))]} too; remove one of them")
    return found


RECIPE = Recipe(
    name="prostate",
    modality={"0": "T2 MRI"},
    labels={1: "prostate"},
    scans={(site, "training"): count for site, count in SITES.items()},
    about={
        "description": "prostate T2 MRI of six sites (NCI-ISBI 2013, I2CVB, PROMISE12), zones merged",
        "reference": "Liu et al., Shape-aware meta-learning for generalizing prostate MRI segmentation to unseen "
                     "domains, MICCAI 2020",
        "licence": "NCI-ISBI 2013: CC BY 3.0; I2CVB and PROMISE12: research only, as far as known",
    },
    layout="folders RUNMC, BMC, I2CVB, UCL, BIDMC, HK with Case<number>.nii.gz and Case<number>_segmentation.nii.gz",
    find=find,
    read=read,
    preprocess=preprocess,
    doubts=doubts,
)  # fmt: skip
