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
from monai.utils import optional_import
from PIL import Image

from common.data.dataset import DataError
from tools.prepare.recipe import Bad, Recipe, Scan, class_numbers, onto_grid

__all__ = ["RECIPE"]

pydicom, HAS_PYDICOM = optional_import("pydicom")

SPACING, SIZE = (1.25, 1.25, 7.70), 256
LABELS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
VALUES = {63: 1, 126: 2, 189: 3, 252: 4}


def find(source: Path) -> tuple[list[Scan], list[str]]:
    """The labelled T2-SPIR scans, and one line for every folder that lacks its slices or masks."""
    if not HAS_PYDICOM:
        raise DataError("reading CHAOS needs the package pydicom, which is not installed: pip install pydicom")
    scans, problems = [], []
    for folder in source.rglob("T2SPIR"):
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
            slices.append(_read_slice(files[number], masks[number]))
        except Bad as error:
            lines += error.lines
    if not lines and len(slices) < 2:
        lines.append(f"{scan.image}: expected the slices of a volume, found {len(slices)}; unpack the download again")
    if lines:
        raise Bad(lines)
    return _stack(scan, slices)


def preprocess(image: MetaTensor, label: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
    """Clip and scale on the whole scan, turn to left-front-head, resample, and crop or pad."""
    image = ScaleIntensityRangePercentiles(lower=0, upper=99.5, b_min=0, b_max=255, clip=True)(image)
    turn = Orientation(axcodes="LAS", labels=None)
    return onto_grid(turn(image), turn(label), len(LABELS), SPACING, SIZE)


def _numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Files by the number at the end of their name, e.g. IMG-0004-00012.dcm: 12."""
    found = {}
    for file in folder.iterdir():
        number = re.search(r"(\d+)$", file.stem)
        if file.suffix.lower() == suffix and number:
            found[int(number.group(1))] = file
    return found


def _read_slice(file: Path, mask_file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, mask, position of the first pixel, and the steps to the next column and row (DICOM's LPS millimetres)."""
    try:
        data = pydicom.dcmread(file)
        pixels = data.pixel_array * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        position = np.array(data.ImagePositionPatient, dtype=float)
        along_row, along_column = np.array(data.ImageOrientationPatient, dtype=float).reshape(2, 3)
        # PixelSpacing is (between rows, between columns)
        steps = np.stack([along_row * float(data.PixelSpacing[1]), along_column * float(data.PixelSpacing[0])], axis=1)
    except (pydicom.errors.InvalidDicomError, AttributeError, OSError, EOFError, ValueError, RuntimeError) as error:
        raise Bad([f"{file}: expected a DICOM slice, found {type(error).__name__}: {error}; copy it again"]) from error
    try:
        mask = np.array(Image.open(mask_file))
    except (OSError, SyntaxError) as error:
        found = f"{type(error).__name__}: {error}"
        raise Bad([f"{mask_file}: expected a PNG mask, found {found}; copy it again"]) from error
    if mask.shape != pixels.shape:
        found = f"{mask.shape}; copy it again"
        raise Bad([f"{mask_file}: expected the rows and columns {pixels.shape} of {file.name}, found {found}"])
    return pixels, class_numbers(mask, VALUES, mask_file), position, steps


def _stack(scan: Scan, slices: list[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = slices[0][3]
    normal = np.cross(steps[:, 0], steps[:, 1])
    normal /= np.linalg.norm(normal)
    slices = sorted(slices, key=lambda one: float(one[2] @ normal))
    heights = np.array([one[2] @ normal for one in slices])
    gaps = np.diff(heights)
    if any(one[0].shape != slices[0][0].shape or not np.allclose(one[3], steps, atol=1e-4) for one in slices):
        raise Bad([f"{scan.image}: expected slices of one size, spacing and direction, found several; remove what does "
                   "not belong to the scan"])
    if gaps.min() < 0.01 or gaps.max() - gaps.min() > 0.1 * gaps.mean():
        found = f"{gaps.min():.2f} to {gaps.max():.2f} mm"
        raise Bad([f"{scan.image}: expected slices at even distances, found {found}; one is missing or there twice"])
    affine = np.eye(4)
    affine[:3, :2] = steps
    affine[:3, 2] = (slices[-1][2] - slices[0][2]) / (len(slices) - 1)
    affine[:3, 3] = slices[0][2]
    image, label = (np.stack([one[part].T for one in slices], axis=-1) for part in (0, 1))
    return image, label, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS


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
