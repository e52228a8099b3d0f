"""The data check that runs before every training and inference: every bad file in one error, before the first epoch."""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from PIL.Image import DecompressionBombError
from tqdm import tqdm

from common.data.copies import copies, repeated_cases
from common.data.dataset import SPLITS, Dataset
from common.data.errors import DataError
from common.data.header import doubted, refused
from common.data.photograph import FormatError, is_photograph, misfit, read_photograph, unlike_voxels
from common.data.scan import load_scan

logger = logging.getLogger(__name__)
__all__ = ["CaseFacts", "DataError", "check_cases", "check_dataset", "read_volume"]

MANY_FILES = 20  # a check of more files than these shows a progress bar
# what gzip, zlib, numpy, nibabel and Pillow raise on damaged files; their errors have no common root
DAMAGED = (OSError, EOFError, ValueError, ArithmeticError, MemoryError, zlib.error, ImageFileError, HeaderDataError,
           WrapStructError, SyntaxError, struct.error, DecompressionBombError)
WHOLE = 1e-3  # how far a label may be from its class number
# how far a value that several voxels share lies from all others, in their range: padding of a CT stays below 5
FILL_DOUBTED, FILL_REFUSED = 10, 1000
LARGEST = 1e15  # of an intensity: the squares of all voxels of a scan still add up in float32
PICTURES = {1: "a grey image (1 channel)", 3: "a colour image (3 channels)"}


@dataclass(frozen=True, eq=False)
class CaseFacts:
    """What the check saw of one readable case.

    ``label_ids`` is empty for a case without a label; ``digest`` is of the voxels, so a re-compressed copy has it too.
    """

    case: str
    image: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray
    digest: str
    label_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Rules:
    labels: dict[int, str]
    channels: int | None
    affine_tolerance: float
    listed_in: str = "dataset.json"
    channels_option: str | None = None


class _Findings:
    """Collects the lines of the one error and of the one warning."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def refuse(self, case: str, file: str, expected: str, found: str, todo: str) -> None:
        self.errors.append(f"{case}, {file}: expected {expected}, found {found}; {todo}")

    def doubt(self, case: str, file: str, expected: str, found: str, todo: str) -> None:
        self.warnings.append(f"{case}, {file}: expected {expected}, found {found}; {todo}")

    def report(self, where: str) -> None:
        if self.warnings:
            lines = "\n  ".join([f"unusual data in {where}, used as it is:", *self.warnings])
            warnings.warn(lines, stacklevel=3)  # 3: the caller of check_cases or check_dataset
        if self.errors:
            raise DataError.of(self.errors, where)


def check_cases(cases: list[dict], labels: dict[int, str], channels: int | None = 1, affine_tolerance: float = 0.1,
                listed_in: str = "dataset.json") -> list[CaseFacts]:
    """Check images, and labels where a case has one; each file is read once, one case at a time.

    Warns, once for all cases, of constant images and of labels with background only.

    Args:
        cases: items ``{"image", "case"}`` with an optional ``"label"``.
        labels: the label ids allowed besides 0.
        channels: channels of an image; above 1 it is the length of the file's fourth axis. None allows 1 and 3, as
            they come.
        affine_tolerance: how far apart image and label may place a corner of the volume, in the image's smallest
            voxel edge.
        listed_in: where the paths come from, for the error.

    Returns:
        the facts of each case, in the order of ``cases``.

    Raises:
        DataError: with one line for each problem of each case.
    """
    rules, findings = _Rules(labels, channels, affine_tolerance, listed_in), _Findings()
    facts = _check_all({"": cases}, rules, findings)
    findings.report(f"{len(cases)} case{'s' * (len(cases) != 1)}")
    return facts[""]


def check_dataset(dataset: Dataset, channels: int | None = 1, affine_tolerance: float = 0.1,
                  channels_option: str | None = None) -> dict[str, list[CaseFacts]]:
    """Check all splits as :func:`check_cases` does, and that none shares a case or an image with another split or fold.

    Says in one line what of other tools' keys in dataset.json is used or not read.

    Args:
        dataset: as read by :func:`common.data.dataset.read_dataset`; the others as in :func:`check_cases`.
        channels_option: the option of the run that sets ``channels``, for the error; None where there is none.

    Returns:
        the facts of each case under the name of its split.

    Raises:
        DataError: with one line for each problem of each case, and when no case of ``training`` is labelled.
    """
    rules = _Rules(dataset.labels, channels, affine_tolerance, channels_option=channels_option)
    findings = _Findings()
    file = dataset.directory / "dataset.json"
    if dataset.notes:
        logger.warning("%s: %s.", file, "; ".join(dataset.notes))
    splits = {split: getattr(dataset, split) for split in SPLITS}
    if not dataset.training:
        total = sum(len(items) for items in splits.values())
        findings.errors.append(f"0 of {total} cases are labelled: `training` is empty in {file}; "
                               "add images with their labels to it")
    findings.errors += repeated_cases(splits)
    facts = _check_all(splits, rules, findings)
    seen = [one for cases in facts.values() for one in cases]
    findings.errors += copies(_parts(splits, dataset.folds), seen)
    findings.report(str(file))
    return facts


def read_volume(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of a file: the only place that knows file formats.

    A photograph is a volume of one slice, first axis down: grey ``(H, W, 1)``, colour ``(H, W, 1, 3)``, the identity as
    affine. A palette PNG gives its indices, which are the class numbers of a label.

    Raises:
        FormatError: the name is not that of a known format, or the photograph is of a kind that is not read. A damaged
            file raises whatever its reader does.
    """
    return _read(file)[:2]


def _read(file: str) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Image | None]:
    """Voxels and affine, and of a scan what nibabel knows of it."""
    if is_photograph(file):
        return read_photograph(file), np.eye(4), None
    if not file.lower().endswith((".nii", ".nii.gz")):
        raise FormatError("a name that is not that of a NIfTI file (.nii, .nii.gz) or of a photograph (.png, .jpg)",
                          "convert the file")
    image = load_scan(file)
    return np.asanyarray(image.dataobj), image.affine, image


def _check_all(splits: dict[str, list[dict]], rules: _Rules, findings: _Findings) -> dict[str, list[CaseFacts]]:
    files = sum(1 + ("label" in item) for items in splits.values() for item in items)
    facts: dict[str, list[CaseFacts]] = {split: [] for split in splits}
    # disable=None: no bar where the output is not a terminal
    with tqdm(total=files, desc="checking data", unit="file", disable=None if files > MANY_FILES else True) as bar:
        for split, items in splits.items():
            for item in items:
                seen = _check_image(item, rules, findings)
                label_ids = _check_label(item, seen, rules, findings) if "label" in item else ()
                if seen:
                    facts[split].append(replace(seen, label_ids=label_ids))
                bar.update(1 + ("label" in item))
    return facts


def _parts(splits: dict[str, list[dict]], folds: list[list[str]]) -> dict[str, list[dict]]:
    """The items by what must not share an image: the splits, and in ``training`` the folds."""
    fold_of = {case: f"training, fold {i}" for i, fold in enumerate(folds) for case in fold}
    parts: dict[str, list[dict]] = {}
    for split, items in splits.items():
        for item in items:
            part = fold_of.get(item["case"], split) if split == "training" else split
            parts.setdefault(part, []).append(item)
    return parts


def _load(item: dict, key: str, rules: _Rules, findings: _Findings
          ) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Image | None] | None:
    file = item[key]
    if not os.path.isfile(file):  # false too for a name that no file system takes
        found = "a folder" if os.path.isdir(file) else "no such file"
        todo = f"correct the path in {rules.listed_in}, or copy it there"
        findings.refuse(item["case"], file, f"the {key}", found, todo)
        return None
    try:
        voxels, affine, scan = _read(file)
        unfit = misfit(file, key) or unlike_voxels(file, key) if is_photograph(file) else None
    except FormatError as error:
        findings.refuse(item["case"], file, f"a readable {key}", error.found, error.todo)
        return None
    except DAMAGED as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        findings.refuse(item["case"], file, f"a readable {key}", text, "the file is damaged or no image: copy it again")
        return None
    if unfit:
        findings.refuse(item["case"], file, *unfit)
        return None
    if voxels.dtype.kind not in "biuf" or 0 in voxels.shape:
        findings.refuse(item["case"], file, f"one number for each voxel of the {key}",
                        f"{voxels.dtype} of shape {voxels.shape}", "convert the file")
        return None
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        findings.refuse(item["case"], file, "an invertible affine", str(np.round(affine, 3).tolist()),
                        "convert the original images again, or set the header's sform")
        return None
    return voxels, affine, scan


def _check_image(item: dict, rules: _Rules, findings: _Findings) -> CaseFacts | None:
    loaded = _load(item, "image", rules, findings)
    if loaded is None:
        return None
    voxels, affine, scan = loaded
    case, file = item["case"], item["image"]
    for found in refused(scan) if scan is not None else ():
        findings.refuse(case, file, *found)
    for found in doubted(scan) if scan is not None else ():
        findings.doubt(case, file, *found)
    if not _check_channels(voxels, case, file, rules, findings):
        return None
    voxels = _check_finite(voxels, case, file, findings)
    # channel by channel: numpy reduces a short last axis twenty times slower
    channels = [voxels[..., i] for i in range(voxels.shape[3])] if voxels.ndim == 4 else [voxels]
    if any(channel.min() == channel.max() for channel in channels):
        findings.doubt(case, file, "an image", f"the value {voxels.flat[0]} everywhere", "look at it")
    # nibabel's arrays lie in Fortran order: their transpose is hashed without a copy
    digest = hashlib.sha256(np.ascontiguousarray(voxels.T)).hexdigest()
    spacing = tuple(float(x) for x in nib.affines.voxel_sizes(affine))
    return CaseFacts(case, file, tuple(voxels.shape[:3]), spacing, affine, digest)


def _check_channels(voxels: np.ndarray, case: str, file: str, rules: _Rules, findings: _Findings) -> bool:
    wanted, channels = rules.channels, voxels.shape[3] if voxels.ndim == 4 else 1
    if voxels.ndim in (3, 4) and channels in ((1, 3) if wanted is None else (wanted,)):
        return True
    or_set = f", or set {rules.channels_option}" if rules.channels_option else ""
    if is_photograph(file):
        todo = {1: "convert it to grey", 3: "save it in colour, for example with its grey values in three channels"}
        findings.refuse(case, file, PICTURES.get(wanted, f"an image of {wanted} channels"), PICTURES[channels],
                        todo.get(wanted, "convert it") + or_set)
        return False
    form = {None: "3 axes, or 4 axes, the last of 3 channels", 1: "3 axes"}
    todo = f"give the network's {wanted or '1 or 3'} channel(s) in one file{or_set}"
    if voxels.ndim == 2:
        todo = "give a single slice a third axis of length 1"
    findings.refuse(case, file, form.get(wanted, f"4 axes, the last of {wanted} channels"), f"shape {voxels.shape}",
                    todo)
    return False


def _check_finite(voxels: np.ndarray, case: str, file: str, findings: _Findings) -> np.ndarray:
    """The voxels as the network gets them: float32, of which none may be infinite, and no fill value hides the rest."""
    with np.errstate(over="ignore"):
        seen = voxels.astype(np.float32) if voxels.dtype.kind == "f" else voxels
    bad = seen.size - int(np.count_nonzero(np.isfinite(seen)))
    if bad:
        own = int(np.count_nonzero(~np.isfinite(voxels)))
        found = f"{own} of {voxels.size} that are NaN or Inf" if own else f"{bad} of {voxels.size} beyond float32"
        findings.refuse(case, file, "finite voxels", found, "repair the image: numpy.nan_to_num gives each a value")
        return np.nan_to_num(voxels, nan=0.0, posinf=0.0, neginf=0.0)
    named = False
    for value, count, low, high in fill_values(seen):
        gap = min(abs(value - low), abs(value - high)) / (high - low)
        text = f"{count} of {voxels.size} voxels of {value:.4g} beside values from {low:.4g} to {high:.4g}"
        if gap > FILL_REFUSED:
            named = True
            findings.refuse(case, file, "intensities", f"{text}, which leave the network nothing to see",
                            f"a fill value: set these voxels to {low:.4g}")
        elif gap > FILL_DOUBTED:
            findings.doubt(case, file, "intensities", text, f"if it is a fill value, set these voxels to {low:.4g}")
    least, most = float(seen.min()), float(seen.max())
    if max(-least, most) > LARGEST and not named:
        findings.refuse(case, file, f"intensities within {LARGEST:.0e} of zero, to be normalised in float32",
                        f"values from {least:.4g} to {most:.4g}",
                        "set what is no measurement to the least of the others, or divide the image by a constant")
    return voxels


def fill_values(voxels: np.ndarray) -> Iterator[tuple[float, int, float, float]]:
    """The least and the largest value where several voxels share it: with their number, and the range of all others."""
    for value in (voxels.min(), voxels.max()):
        same = voxels == value
        count = int(np.count_nonzero(same))
        if 1 < count < voxels.size:
            low = voxels.min(initial=voxels.max(), where=~same)
            high = voxels.max(initial=low, where=~same)
            if low < high:  # a picture of two values has nothing but them
                yield float(value), count, float(low), float(high)


def _check_label(item: dict, image: CaseFacts | None, rules: _Rules, findings: _Findings) -> tuple[int, ...]:
    loaded = _load(item, "label", rules, findings)
    if loaded is None:
        return ()
    voxels, affine, _ = loaded
    case, file = item["case"], item["label"]
    shape = voxels.shape[:3] if voxels.shape[3:] == (1,) else voxels.shape
    if is_photograph(file) and voxels.ndim == 4:
        equal = (voxels == voxels[..., :1]).all()
        todo = "all three are equal: keep one" if equal else "save the class numbers as a grey or palette PNG"
        findings.refuse(case, file, f"{PICTURES[1]} of class numbers", PICTURES[3], todo)
        return ()
    if image and shape != image.shape:
        findings.refuse(case, file, f"the image's shape {image.shape}", f"{shape}", "resample it onto the image's grid")
    elif image:
        _check_grid(case, file, image, affine, rules.affine_tolerance, findings)
    if voxels.dtype.kind == "f":
        whole = np.rint(voxels)
        broken = voxels[~(np.abs(voxels - whole) < WHOLE)]  # NaN too, as it is near nothing
        if broken.size:
            findings.refuse(case, file, "whole numbers", f"{broken.size} voxels such as {broken[0]:.4g}",
                            "interpolated labels are the usual cause: resample with nearest neighbour")
            return ()
        voxels = whole  # a slope of the header, such as 1/127, leaves 2.0000001
    ids = tuple(int(x) for x in np.unique(voxels))
    allowed = sorted({0, *rules.labels})
    if not set(ids) <= set(allowed):
        listed = f"[{', '.join(map(str, ids[:20]))}{', ...' * (len(ids) > 20)}]"
        findings.refuse(case, file, f"label ids out of {allowed}", listed,
                        "correct or renumber the label, or correct `labels` in dataset.json")
    elif ids == (0,):
        findings.doubt(case, file, "a labelled structure", "background only", "look at it")
    return ids


def _check_grid(case: str, file: str, image: CaseFacts, affine: np.ndarray, tolerance: float,
                findings: _Findings) -> None:
    """Refuse a label whose affine puts a corner of the volume elsewhere than the image's does."""
    if is_photograph(image.image) and not np.allclose(affine, np.eye(4), atol=1e-3):
        findings.refuse(case, file, "the identity as affine, as the image is a photograph", _numbers(affine),
                        "save it as PNG, or with that affine and its first axis down")
        return
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in image.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    apart = nib.affines.apply_affine(affine, corners) - nib.affines.apply_affine(image.affine, corners)
    voxels = np.linalg.norm(apart, axis=1).max() / min(image.spacing)
    if voxels <= tolerance:
        return
    spacing = nib.affines.voxel_sizes(affine)
    limit = f"corners {voxels:.3g} voxels apart, tolerance {tolerance:g}"
    if not np.allclose(spacing, image.spacing, rtol=1e-3, atol=0):
        findings.refuse(case, file, f"the image's spacing {_numbers(image.spacing)}", f"{_numbers(spacing)} ({limit})",
                        "resample it onto the image's grid")
        return
    same = np.allclose(affine[:3, :3], image.affine[:3, :3], rtol=0, atol=1e-3 * min(image.spacing))
    name, ours, theirs = ("origin", image.affine[:3, 3], affine[:3, 3]) if same else \
                         ("direction", image.affine[:3, :3], affine[:3, :3])
    findings.refuse(case, file, f"the image's {name} {_numbers(ours)}", f"{_numbers(theirs)} ({limit})",
                    "look at the two as an overlay, then correct the wrong header")


def _numbers(values) -> str:
    return str(np.round(np.asarray(values, dtype=float), 4).tolist())
