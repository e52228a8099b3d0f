"""CHAOS, T2-SPIR: abdominal MRI with four organs, as DICOM slices with PNG masks.

Source: CHAOS challenge (https://chaos.grand-challenge.org), ``CHAOS_Train_Sets.zip`` of doi 10.5281/zenodo.3362844.
Licence: CC BY-NC-SA 4.0 as far as known; read the text that comes with the download.
Splits: all 20 labelled scans are ``training``, with ``folds``: sorted by number, five contiguous blocks of four. The
test scans of the challenge have no public masks and are left out.
Checks: 20 scans (another count warns); every slice has its mask, and every mask its slice; only the published grey
values occur (a mask saved with smoothed edges is refused); slices lie at even distances.
Preprocessing (as SSL-ALPNet): the top 0.5 % of the intensities clipped; 1.25 x 1.25 x 7.70 mm; 256 x 256 in the plane.
Departures: stored as 8 bits; axes left, front, head in every scan; grey values mapped one by one, not by sorted order,
which goes wrong where an organ is missing.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation, ScaleIntensityRangePercentiles
from PIL import Image

from common.data.visible import visible
from tools.prepare.dicom import need_pydicom, read_slice, stack_order
from tools.prepare.recipe import Bad, Recipe, Scan, class_numbers, onto_grid

__all__ = ["RECIPE"]

SPACING, SIZE = (1.25, 1.25, 7.70), 256
LABELS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
VALUES = {63: 1, 126: 2, 189: 3, 252: 4}


def find(source: Path) -> tuple[list[Scan], list[str]]:
    """The labelled T2-SPIR scans, and one line for every folder that lacks its slices or masks."""
    need_pydicom("CHAOS")
    scans, problems = [], []
    for folder in visible(source, "**/T2SPIR"):
        if "Test_Sets" in folder.parts or not folder.parent.name.isdecimal():
            continue
        missing = [part for part in ("DICOM_anon", "Ground") if not (folder / part).is_dir()]
        problems += [f"{folder}: expected the folder {part}, found none; unpack the download again" for part in missing]
        if not missing:
            name = f"chaos_t2_{int(folder.parent.name):02d}"
            scans.append(Scan(name, folder / "DICOM_anon", folder / "Ground"))
    return sorted(scans, key=lambda scan: scan.name), problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the slices and their masks.

    A mask belongs to the slice with the same number at the end of its name, and has the same rows and columns; both
    are put in order by the slice's position in the patient. The arrays are indexed column, row, slice.

    Raises:
        Bad: a file is missing or cannot be read, or the slices do not form a volume.
    """
    slices, lines = [], []
    files, masks = _numbered(scan.image, ".dcm"), _numbered(scan.label, ".png")
    lines += [f"{files[number]}: expected a mask with the number {number} in {scan.label}, found none; copy it again"
              for number in sorted(set(files) - set(masks))]
    lines += [f"{masks[number]}: expected a slice with the number {number} in {scan.image}, found none; copy it again"
              for number in sorted(set(masks) - set(files))]
    for number in sorted(set(files) & set(masks)):
        try:
            one = read_slice(files[number])
            slices.append((*one, _read_mask(masks[number], one[0].shape, files[number].name)))
        except Bad as error:
            lines += error.lines
    if lines:
        raise Bad(lines)
    order, affine = stack_order(scan.image, [one[:3] for one in slices])
    image, label = (np.stack([slices[i][part].T for i in order], axis=-1) for part in (0, 3))
    return image, label, affine


def preprocess(image: MetaTensor, label: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    """Clip and scale on the whole scan, turn to left-front-head, resample, and crop or pad."""
    image = ScaleIntensityRangePercentiles(lower=0, upper=99.5, b_min=0, b_max=255, clip=True)(image)
    turn = Orientation(axcodes="LAS", labels=None)
    return onto_grid(turn(image), turn(label), len(LABELS), SPACING, SIZE)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files by the number at the end of their name, e.g. IMG-0004-00012.dcm: 12."""
    found = {}
    for file in visible(folder):
        number = re.search(r"(\d+)$", file.stem)
        if file.suffix.lower() == suffix and number:
            found[int(number.group(1))] = file
    return found


def _read_mask(file: Path, shape: tuple[int, ...], slice_name: str) -> np.ndarray:
    try:
        mask = np.array(Image.open(file))
    except (OSError, SyntaxError) as error:
        raise Bad([f"{file}: expected a PNG mask, found {type(error).__name__}: {error}; copy it again"]) from error
    if mask.shape != shape:
        raise Bad([f"{file}: expected the rows and columns {shape} of {slice_name}, found {mask.shape}; copy it again"])
    return class_numbers(mask, VALUES, file)


RECIPE = Recipe(
    name="chaos_t2",
    modality={"0": "T2-SPIR MRI"},
    labels=LABELS,
    scans={(None, "training"): 20},
    about={
        "description": "CHAOS T2-SPIR abdominal MRI; folds: five contiguous blocks in the order of the numbers",
        "reference": "Kavur et al., CHAOS Challenge, Medical Image Analysis 69 (2021); doi 10.5281/zenodo.3362844",
        "licence": "CC BY-NC-SA 4.0 as far as known; see the text of the download",
    },
    layout="folders Train_Sets/MR/<number>/T2SPIR with DICOM_anon and Ground in them",
    find=find,
    read=read,
    preprocess=preprocess,
)
