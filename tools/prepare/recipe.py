"""What the preparation of every public data set shares: reading all of it, one error for all bad files, the grid."""

from __future__ import annotations

import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, ResizeWithPadOrCrop, Spacing
from nibabel.filebasedimages import ImageFileError
from tqdm import tqdm

from common.data.dataset import SPLITS, DataError
from common.data.scan import load_scan
from common.data.write import Case, write_dataset

__all__ = ["Bad", "Recipe", "Scan", "class_numbers", "five_blocks", "load_nifti", "onto_grid", "read_nifti", "run",
           "together"]


class Bad(Exception):
    """What is wrong with the files of one scan: one line for each."""

    def __init__(self, lines: Sequence[str]):
        super().__init__("; ".join(lines))
        self.lines = list(lines)


@dataclass(frozen=True)
class Scan:
    """One scan or photograph.

    Args:
        name: case id, and name of the file.
        image: a file or a folder.
        label: likewise; None: it is not to be read.
        split: one of ``SPLITS``.
        domain: the centre or scanner, in a set of several.
        case: the patient, in a set with several scans of one.
    """

    name: str
    image: Path
    label: Path | None
    split: str = "training"
    domain: str | None = None
    case: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One public data set.

    Args:
        name: name of the prepared set.
        modality: channel number to name.
        labels: class number to name.
        scans: how many scans the publishers give, by domain (None: the set has none) and split (None: all of them);
            another count warns.
        about: ``description``, ``reference`` and ``licence`` for dataset.json.
        layout: where the scans lie below the source folder, for the error when none does.
        find: from the source folder to the scans, in the order of their numbers, and lines on what is missing.
        read: from a scan to its image, label (class numbers) and 4 x 4 affine (millimetres, RAS+); raises :class:`Bad`.
        preprocess: from image and label, each ``(1, *spatial)`` with an affine, to the same, ready; None leaves them.
        doubts: what looks unusual about an image and its label, one text for each; it only warns.
        folds: whether the training scans are divided for cross-validation.
        dtype: of the stored intensities.

    The label of a scan without one is None for ``read``, ``preprocess`` and ``doubts``; only sets with unlabelled scans
    have such.
    """

    name: str
    modality: dict[str, str]
    labels: dict[int, str]
    scans: dict[tuple[str | None, str], int]
    about: dict[str, str]
    layout: str
    find: Callable[[Path], tuple[list[Scan], list[str]]]
    read: Callable[[Scan], tuple[np.ndarray, Any, np.ndarray]]
    preprocess: Callable[[MetaTensor, Any], tuple[MetaTensor, Any]] | None = None
    doubts: Callable[[np.ndarray, Any], list[str]] | None = None
    folds: bool = True
    dtype: type = np.uint8


def run(recipe: Recipe, source: Path, output: Path) -> Path:
    """Prepare one data set; nothing is written when anything is wrong with it.

    A set without domains gets ``folds``, five contiguous blocks of its training scans, unless its recipe says no; of
    one with domains, each domain is left out in turn.

    Raises:
        DataError: with one line for every bad file of every scan.
        FileExistsError: ``output`` is there already.
    """
    if not source.is_dir():
        raise DataError(f"{source}: expected the folder of the download, found no such folder; correct --source")
    scans, problems = recipe.find(source)
    if not scans:
        raise DataError.of(problems or [f"no scan was found; expected {recipe.layout}"], str(source))
    found = Counter((scan.domain, split) for scan in scans for split in (scan.split, None))
    odd = [f"{f'{domain}, {split}: ' if domain else ''}expected {count} scans, found {found[domain, split]}"
           for (domain, split), count in recipe.scans.items() if found[domain, split] != count]
    if odd:
        warnings.warn(f"{source}: {'; '.join(odd)}; is the download whole?", stacklevel=2)
    scans = sorted(scans, key=lambda scan: SPLITS.index(scan.split))
    doubts: list[str] = []
    cases = {split: _cases(recipe, scans, split, problems, doubts, source) for split in SPLITS}
    names = [scan.name for scan in scans if scan.split == "training" and scan.domain is None]
    blocks = five_blocks(names) if recipe.folds else []
    try:
        return write_dataset(output, recipe.name, recipe.modality, recipe.labels, **cases, folds=blocks,
                             extra=recipe.about, dtype=recipe.dtype)
    finally:
        if doubts:
            warnings.warn("\n  ".join([f"unusual data in {source}, used as it is:", *doubts]), stacklevel=2)


def five_blocks(names: list[str]) -> list[list[str]]:
    """Five contiguous blocks of the scans in the order of their numbers: 20 give 4 each, 35 give 7, 30 give 6."""
    bounds = [round(i * len(names) / 5) for i in range(6)]
    return [names[low:high] for low, high in pairwise(bounds) if high > low]


def onto_grid(image: MetaTensor, label: MetaTensor | None, classes: int, spacing: Sequence[float], size: int = -1):
    """Resample to ``spacing`` and crop or pad to ``size`` x ``size`` in the plane, image and label alike.

    The image is interpolated linearly and padded with its minimum. So is each class's mask, and the class with the
    largest share of a voxel gets it: smoother than the nearest neighbour, and no class number is ever mixed. The
    classes go one by one, as all of them at once take gigabytes for a CT.

    Args:
        image, label: ``(1, *spatial)`` with the same affine; without a label, the label returned is None.
        classes: number of classes without the background.
        spacing: millimetres along the three axes.
        size: voxels in the plane, -1 as they come; the number of slices is left as it comes.
    """

    def move(volume: MetaTensor, outside: float) -> MetaTensor:
        resample = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border", dtype=torch.float32)
        return Compose([resample, ResizeWithPadOrCrop((size, size, -1), value=outside)])(volume)

    if label is None:
        return move(image, float(image.min())), None
    best = move((label == 0).float(), 1.0)
    winner = torch.zeros_like(best)
    for number in range(1, classes + 1):
        share = move((label == number).float(), 0.0)
        winner[share > best] = number
        best = torch.maximum(best, share)
    return move(image, float(image.min())), winner


def class_numbers(label: np.ndarray, values: dict[int, int], file: Path) -> np.ndarray:
    """Map label values to class numbers, each by itself.

    Raises:
        Bad: there is a value besides 0 and those of ``values``.
    """
    unknown = [value for value in np.unique(label).tolist() if value not in {0, *values}]
    if unknown:
        allowed = ", ".join(map(str, [0, *values]))
        raise Bad([f"{file}: expected the label values {allowed}, found {unknown[:10]}; is it the original file?"])
    numbers = np.zeros(label.shape, np.uint8)
    for value, number in values.items():
        numbers[label == value] = number
    return numbers


def load_nifti(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a volume.

    Raises:
        Bad: the file cannot be read, or is no volume of finite numbers.
    """
    try:
        volume = load_scan(file)
        voxels, affine = np.asanyarray(volume.dataobj), volume.affine
    except (OSError, EOFError, ValueError, ArithmeticError, ImageFileError, zlib.error) as error:
        found = f"{type(error).__name__}: {error}"
        raise Bad([f"{file}: expected a NIfTI file, found {found}; copy it again"]) from error
    if voxels.ndim != 3:
        raise Bad([f"{file}: expected three axes, found shape {voxels.shape}; convert it"])
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) < 4:
        found = f"{affine.round(3).tolist()}"
        raise Bad([f"{file}: expected an invertible affine, found {found}; is it the original file?"])
    bad = int(np.count_nonzero(~np.isfinite(voxels)))
    if bad:
        raise Bad([f"{file}: expected finite intensities, found {bad} that are NaN or Inf; copy it again"])
    return voxels, affine


def read_nifti(scan: Scan, values: dict[int, int]) -> tuple[np.ndarray, Any, np.ndarray]:
    """Read a pair of NIfTI files: image, label as class numbers (None without one), affine.

    Raises:
        Bad: a file cannot be read or does not hold what it should, or the two lie on different grids.
    """
    (image, affine), (label, label_affine) = together(load_nifti, (scan.image, scan.label))
    if scan.label is None:
        return image, None, affine
    if image.shape != label.shape or not np.allclose(affine, label_affine, atol=0.01):
        raise Bad([f"{scan.label}: expected the grid of {scan.image.name} (shape {image.shape}), found another (shape "
                   f"{label.shape}) or another position; they are not of one scan"])
    return image, class_numbers(label, values, scan.label), affine


def nifti(folder: Path, stem: str) -> Path:
    """The NIfTI file of a name in a folder, compressed or not, in whatever case its suffix is; ``.nii.gz`` without any.

    A name that is there twice is that of the file that is not compressed.
    """
    files = {file.name[len(stem) :].lower(): file for file in folder.glob(f"{stem}.*")}
    return files.get(".nii") or files.get(".nii.gz") or folder / f"{stem}.nii.gz"


def together(load: Callable[[Path], tuple], files: Sequence[Path | None]) -> list[tuple]:
    """Load several files, ``(None, None)`` for None; one :class:`Bad` for all that cannot be loaded."""
    loaded, lines = [], []
    for file in files:
        try:
            loaded.append((None, None) if file is None else load(file))
        except Bad as error:
            lines += error.lines
    if lines:
        raise Bad(lines)
    return loaded


def _cases(recipe: Recipe, scans: list[Scan], split: str, problems: list[str], doubts: list[str],
           source: Path) -> Iterator[Case]:
    """The prepared cases of a split one by one; after the first bad scan the rest of all splits is only checked."""
    chosen = [scan for scan in scans if scan.split == split]
    for scan in tqdm(chosen, desc=f"preparing {recipe.name}, {split}", unit="scan", disable=None if chosen else True):
        try:
            image, label, affine = recipe.read(scan)
        except Bad as error:
            problems += [f"{scan.name}, {line}" for line in error.lines]
            continue
        if recipe.doubts:
            doubts += [f"{scan.name}, {scan.image}: {text}" for text in recipe.doubts(image, label)]
        if not problems:
            yield _prepared(recipe, scan, image, label, affine)
    if problems and split == scans[-1].split:
        raise DataError.of(problems, str(source))


def _prepared(recipe: Recipe, scan: Scan, image: np.ndarray, label: Any, affine: np.ndarray) -> Case:
    if recipe.preprocess is not None:
        pair: list[Any] = [array if array is None else
                           MetaTensor(torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))[None],
                                      affine=torch.as_tensor(affine, dtype=torch.float64)) for array in (image, label)]
        ready, truth = recipe.preprocess(*pair)
        image, label, affine = ready[0].numpy(), None if truth is None else truth[0].numpy(), ready.affine.numpy()
    return Case(scan.name, image, label, affine, scan.domain, scan.case)
