"""LA: left atrium in late gadolinium-enhanced MRI, as NRRD, or as HDF5 in the form of UA-MT.

Source: 2018 Atrial Segmentation Challenge (http://atriaseg2018.cardiacatlas.org), ``Training Set`` with ``lgemri.nrrd``
and ``laendo.nrrd``; or ``2018LA_Seg_Training Set`` of https://github.com/yulequan/UA-MT with ``mri_norm2.h5``.
Licence: challenge data for research; neither source comes with a licence file.
Splits: 80 scans to train on, 8 of them labelled (option ``labelled``) and the others unlabelled, and 20 for the test.
The papers' 80 stand in their train list: give it as ``train`` (a text file, one id a line); its first scans are the
labelled ones, and what it does not name is the test. Without it, the first 80 ids in alphabetical order train, after
06SR5RBREL16DQ6M8LWS, which is the first of the published list. There is no published validation split: ``validation``,
a file too, takes its scans out of the others. Scans below a folder ``Testing Set`` are left out.
Checks: 100 scans (another count warns); every one has its mask, of the same shape; only the published label values
occur (0 and 255, in HDF5 0 and 1), and an atrium; the slices are the third axis, the shortest.
Preprocessing: label 255 becomes 1. With ``crop`` as ``label``, the default, NRRD scans are cut to the box around the
atrium, 15 voxels more on each side in the plane, and more where the box is below 112; all slices are kept. The papers
draw 10 to 20 voxels at random. HDF5 scans are cut already. This cut needs the labels of all scans, of unlabelled and
test scans too: scans of new patients have to be cut otherwise, or trained and tested on whole (``crop`` as ``none``,
which opens no label of an unlabelled scan). The steps of the intensities are kept, and the least is 0.
Departures: stored as 8 bits, which both sources fit into; not standardised before the cut, which training does after.
The header of the image places both; of that of the mask nothing is used. HDF5 has no header: 0.625 mm, no orientation.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NrrdReader
from monai.utils import optional_import

from common.data.dataset import DataError
from common.data.visible import visible
from tools.prepare.crop import box_around, check_crop
from tools.prepare.recipe import Bad, Recipe, Scan, class_numbers, together
from tools.prepare.splits import read_list, split_up

__all__ = ["RECIPE", "configure"]

nrrd, HAS_NRRD = optional_import("nrrd")
h5py, HAS_H5PY = optional_import("h5py")

FIRST, TRAINING = "06SR5RBREL16DQ6M8LWS", 80
MARGIN, LEAST = 15, 112  # voxels in the plane
SPACING = 0.625  # of HDF5, which does not say
# what pynrrd, MONAI and h5py raise on damaged files; StopIteration on an empty one
DAMAGED = (OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, StopIteration, zlib.error)
FILES = {"lgemri.nrrd": "laendo.nrrd", "mri_norm2.h5": "mri_norm2.h5"}


def configure(labelled: int = 8, train: str | None = None, validation: str | None = None,
              crop: str = "label") -> Recipe:
    """The recipe with its options: how many scans keep their labels, files with the scans of two splits, the cut.

    Raises:
        DataError: ``crop`` is neither ``label`` nor ``none``.
    """
    check_crop(crop)
    told = f"{labelled} labelled; training: " + (f"as listed in {Path(train).name}" if train else "in order of the ids")
    text = "; ".join([RECIPE.about["description"], told, f"crop: {crop}"])
    return replace(RECIPE, about=RECIPE.about | {"description": text}, read=partial(read, crop=crop),
                   find=partial(find, labelled=labelled, train=train, validation=validation, crop=crop))


def find(source: Path, labelled: int = 8, train: str | None = None, validation: str | None = None,
         crop: str = "label") -> tuple[list[Scan], list[str]]:
    """The scans of the training set, and one line for everything that is missing."""
    problems: list[str] = []
    pairs = _pairs(source, problems)
    forms = {image.suffix for image, _ in pairs.values()}
    for form, package, there in ((".nrrd", "pynrrd", HAS_NRRD), (".h5", "h5py", HAS_H5PY)):
        if form in forms and not there:
            raise DataError(f"reading {form} files needs the package {package}, which is not installed: "
                            f"pip install {package}")
    if len(forms) > 1:
        problems.append("expected the files of one source, found NRRD and HDF5; give the folder of one as --source")
    if crop == "none" and ".h5" in forms:
        problems.append("expected NRRD files for --crop none, found HDF5, which is cut already; leave --crop out")
    order = sorted(pairs, key=lambda name: (name != FIRST, name))[:TRAINING]
    if train and pairs:
        order = read_list(train, r"([0-9A-Z]{20})", pairs, problems)
    held = read_list(validation, r"([0-9A-Z]{20})", pairs, problems) if validation and pairs else []
    splits = split_up(order, labelled, held, sorted(set(pairs) - {*order, *held}), problems) if pairs else {}
    unopened = ("unlabeled", "none") if ".nrrd" in forms else ("unlabeled", crop)  # HDF5 is cut without its label
    return [Scan(name, pairs[name][0], None if (split, crop) == unopened else pairs[name][1], split)
            for name, split in splits.items()], problems


def read(scan: Scan, crop: str = "label") -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Read a scan, see that it is one, cut it if it comes as NRRD, and bring the intensities to 8 bits.

    Raises:
        Bad: a file cannot be read or does not hold what it should.
    """
    raw = scan.image.suffix == ".nrrd"
    image, label, affine = (_read_nrrd if raw else _read_hdf5)(scan)
    lines = []
    if image.ndim != 3 or image.shape[2] != min(image.shape):
        lines.append(f"{scan.image}: expected slices along the third axis, the shortest, found shape {image.shape}; is "
                     "it the original file?")
    elif not np.isfinite(image).all() or image.min() == image.max():
        lines.append(f"{scan.image}: expected an image of finite numbers, found NaN, Inf or one value; copy it again")
    if label is not None and label.shape != image.shape:
        lines.append(f"{scan.label}: expected the shape {image.shape} of its scan, found {label.shape}; they are not "
                     "of one scan")
    if lines:
        raise Bad(lines)
    if label is not None:
        label = class_numbers(label, {255: 1} if raw else {1: 1}, scan.label)
        if not label.any():
            raise Bad([f"{scan.label}: expected an atrium, found background only; is it the original file?"])
        if raw and crop == "label":
            box = (*box_around(label, MARGIN, LEAST)[:2], slice(None))
            affine = affine @ nib.affines.from_matvec(np.eye(3), [box[0].start, box[1].start, 0])
            image, label = image[box], label[box]
    return eight_bits(image), label, affine


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Whole numbers from 0, one for each of up to 256 even steps; intensities in finer steps are scaled to 255.

    A standardised 8-bit image has such steps, so this gives its own grey values back, but for the least of them.
    """
    values = np.unique(image).astype(float)
    step = max(np.diff(values).min(), (values[-1] - values[0]) / 255)
    return np.rint((image - values[0]) / step).astype(np.uint8)


def _pairs(source: Path, problems: list[str]) -> dict[str, tuple[Path, Path]]:
    """Image and mask by id, the name of their folder; in HDF5 they are one file."""
    pairs: dict[str, tuple[Path, Path]] = {}
    for kind, partner in FILES.items():
        for folder in sorted({file.parent for name in (kind, partner) for file in visible(source, f"**/{name}")}):
            if "Testing Set" in folder.relative_to(source).parts:
                continue
            pair = folder / kind, folder / partner
            missing = [file for file in pair if not file.is_file()]
            problems += [f"{file}: expected this file, found none; copy it there" for file in missing]
            other = pairs.setdefault(folder.name, pair)
            if other != pair:
                problems.append(f"{pair[0]}: expected {folder.name} once, found {other[0]} too; remove one of them")
    return {name: pair for name, pair in pairs.items() if all(file.is_file() for file in pair)}


def _read_nrrd(scan: Scan) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    (image, header), (label, _) = together(_load_nrrd, (scan.image, scan.label))
    try:
        affine = np.asarray(NrrdReader(affine_lps_to_ras=True).get_data(header)[1]["affine"], dtype=float)
        if not np.isfinite(np.linalg.inv(affine)).all():
            raise ValueError("NaN or Inf")
    except DAMAGED as error:
        found = f"{type(error).__name__}: {error}"
        raise Bad([f"{scan.image}: expected three space directions and an origin in the header, found {found}; is it "
                   "the original file?"]) from error
    return image, label, affine


def _load_nrrd(file: Path) -> tuple[np.ndarray, Any]:
    """Voxels, and MONAI's view of the file with its header."""
    try:
        content = NrrdReader().read(file)
    except (nrrd.NRRDError, *DAMAGED) as error:
        found = f"{type(error).__name__}: {error}"
        raise Bad([f"{file}: expected a NRRD file, found {found}; copy it again"]) from error
    return content.array, content


def _read_hdf5(scan: Scan) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    try:
        with h5py.File(scan.image, "r") as file:
            image, label = file["image"][()], None if scan.label is None else file["label"][()]
    except DAMAGED as error:
        found = f"{type(error).__name__}: {error}"
        raise Bad([f"{scan.image}: expected HDF5 with `image` and `label`, found {found}; copy it again"]) from error
    return image, label, np.diag([SPACING, SPACING, SPACING, 1.0])


RECIPE = Recipe(
    name="la",
    modality={"0": "LGE-MRI"},
    labels={1: "left atrium"},
    scans={(None, None): 100},
    about={
        "description": "left atrium of the 2018 Atrial Segmentation Challenge, training set",
        "reference": "Xiong et al., A global benchmark of algorithms for segmenting the left atrium from late "
                     "gadolinium-enhanced cardiac magnetic resonance imaging, Medical Image Analysis 67 (2021)",
        "licence": "challenge data for research; no licence file comes with it",
    },
    layout="folders <name> with lgemri.nrrd and laendo.nrrd (the challenge) or with mri_norm2.h5 (UA-MT) in them",
    find=find,
    read=read,
    folds=False,
)  # fmt: skip
