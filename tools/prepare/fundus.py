"""Optic disc and cup in colour photographs of four centres, as PNG regions of interest around the disc.

Source: the archive that the repository of DoFE links (https://github.com/emma-sjwang/Dofe): Drishti-GS, RIM-ONE r3 and
the training and validation sets of REFUGE, cut out by its authors.
Licence: the terms of the three sets: non-commercial research; RIM-ONE forbids redistribution.
Splits: the published ``train`` lists are ``training`` and the ``test`` lists are ``validation``, each image with its
domain. These sets are for leaving one domain out: all images of that domain are unseen, and of the other domains the
``test`` images may choose a model, so that their ``train`` lists are trained on whole. The published test images of the
domain left out are its ``validation``.
Checks: counts of each domain and split (another count warns); every image has its mask, of the same size; images are
in colour; masks are grey, with a rim and background. Warns of images that are not 800 x 800, of a disc that spans too
little or too much of the image (not cut out around it), of two discs (a stereo pair) and of a missing cup.
Preprocessing: none: pixels stay as they are, and grey values of masks become class numbers: up to 50 the cup, up to 200
the rim, above that background. The disc of the papers is rim and cup together.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from scipy import ndimage

from common.data.check import DAMAGED, read_volume
from common.data.photograph import misfit
from common.data.visible import visible
from tools.prepare.recipe import Bad, Recipe, Scan

__all__ = ["RECIPE"]

DOMAINS = {"Domain1": "drishti_gs", "Domain2": "rim_one_r3", "Domain3": "refuge_train", "Domain4": "refuge_val"}
SPLITS = {"train": "training", "test": "validation"}
COUNTS = {"drishti_gs": (50, 51), "rim_one_r3": (99, 60), "refuge_train": (320, 80), "refuge_val": (320, 80)}
LABELS = {1: "optic disc rim (disc without the cup)", 2: "optic cup"}
CUP, DISC = 50, 200  # the greatest grey values
SIZE = 800
SPAN = (0.2, 0.98)  # of the disc in the shorter side: a whole photograph has about 0.15
SECOND = 0.1  # a second part of the disc with so much of the area of the first is another disc


def find(source: Path) -> tuple[list[Scan], list[str]]:
    """The photographs with their masks, and one line for every file without its partner and every missing folder."""
    scans: dict[str, Scan] = {}
    problems: list[str] = []
    folders = [folder for folder in visible(source, "**/Domain?") if folder.name in DOMAINS and folder.is_dir()]
    for part, split in SPLITS.items():
        for folder in folders:
            rois = folder / part / "ROIs"
            if not (rois / "image").is_dir() or not (rois / "mask").is_dir():
                problems.append(f"{rois}: expected the folders image and mask, found none; unpack the archive again "
                                "(its other folders hold other pictures)")
                continue
            for scan in _pairs(rois, DOMAINS[folder.name], split, problems):
                other = scans.setdefault(scan.name, scan)
                if other is not scan:
                    problems.append(f"{scan.image}: expected once, found {other.image} too; remove one of them")
    return list(scans.values()), problems


def read(scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The photograph ``(H, W, 3)`` and its class numbers ``(H, W)``.

    Raises:
        Bad: a file cannot be read or does not hold what it should.
    """
    lines: list[str] = []
    image, mask = (_pixels(file, lines) for file in (scan.image, scan.label))
    if image is not None and image.ndim != 3:
        lines.append(f"{scan.image}: expected a colour image (3 channels), found a grey one; is it the original file?")
    if mask is not None and mask.ndim == 3:  # some masks are grey values saved in colour
        if (mask != mask[..., :1]).any():
            lines.append(f"{scan.label}: expected a grey mask, found colours; is it the original file?")
        mask = mask[..., 0]
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        size = f"the size {image.shape[:2]} of its image"
        lines.append(f"{scan.label}: expected {size}, found {mask.shape}; copy both again")
    if not lines:
        label = np.select([mask <= CUP, mask <= DISC], [2, 1], 0).astype(np.uint8)
        missing = [name for number, name in ((0, f"background above {DISC}"), (1, f"a rim of {CUP + 1} to {DISC}"))
                   if not (label == number).any()]
        if missing:
            found = f"grey values {np.unique(mask)[:5].tolist()}"
            lines.append(f"{scan.label}: expected {' and '.join(missing)}, found {found}; is it the original file?")
    if lines:
        raise Bad(lines)
    return image, label, np.eye(4)


def doubts(image: np.ndarray, label: np.ndarray) -> list[str]:
    """What says that a picture is not cut out around one disc."""
    texts = []
    if label.shape != (SIZE, SIZE):
        texts.append(f"expected {SIZE} x {SIZE} pixels, found {label.shape[0]} x {label.shape[1]}; is it from ROIs?")
    parts, _ = ndimage.label(label > 0)
    areas = np.bincount(parts.ravel())[1:]
    first = int(areas.argmax())
    span = max(side.stop - side.start for side in ndimage.find_objects(parts)[first]) / min(label.shape)
    if not SPAN[0] <= span <= SPAN[1]:
        texts.append(f"expected a disc that spans {SPAN[0]} to {SPAN[1]} of the picture, found {span:.2f}; it is not "
                     "cut out around the disc")
    if (np.delete(areas, first) >= SECOND * areas[first]).any():
        texts.append("expected one disc, found two or more; is it a stereo pair?")
    if not (label == 2).any():
        texts.append(f"expected a cup of at most {CUP}, found none; look at it")
    return texts


def _pairs(rois: Path, domain: str, split: str, problems: list[str]) -> list[Scan]:
    images, masks = ({file.name: file for file in visible(rois / kind) if file.suffix.lower() == ".png"}
                     for kind in ("image", "mask"))
    for ours, theirs, kind in ((images, masks, "mask"), (masks, images, "image")):
        problems += [f"{ours[name]}: expected {name} in {rois / kind}, found none; copy it again"
                     for name in sorted(set(ours) - set(theirs))]
    names = {name: re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(name).stem) for name in sorted(set(images) & set(masks))}
    return [Scan(f"{domain}_{case}", images[name], masks[name], split, domain) for name, case in names.items()]


def _pixels(file: Path, lines: list[str]) -> np.ndarray | None:
    """``(H, W)`` or ``(H, W, 3)``; None with a line about what is wrong."""
    try:
        pixels = read_volume(str(file))[0][:, :, 0]
        unfit = misfit(file, "image")
    except DAMAGED as error:
        lines.append(f"{file}: expected a PNG file, found {type(error).__name__}: {error}; copy it again")
        return None
    if unfit:
        lines.append(f"{file}: expected {unfit[0]}, found {unfit[1]}; {unfit[2]}")
        return None
    return pixels


RECIPE = Recipe(
    name="fundus",
    modality={"0": "colour fundus photograph, region around the optic disc"},
    labels=LABELS,
    scans={(domain, split): count for domain, counts in COUNTS.items()
           for split, count in zip(SPLITS.values(), counts, strict=True)},
    about={
        "description": "optic disc and cup of four centres (Drishti-GS, RIM-ONE r3, REFUGE training and validation "
                       "sets); validation: the published test lists",
        "reference": "Wang et al., DoFE: domain-oriented feature embedding for generalizable fundus image segmentation "
                     "on unseen datasets, IEEE TMI 39 (2020)",
        "licence": "the terms of Drishti-GS, RIM-ONE and REFUGE: non-commercial research, no redistribution",
    },
    layout="folders Domain1 to Domain4 with {train,test}/ROIs/{image,mask}/<name>.png in them",
    find=find,
    read=read,
    doubts=doubts,
)  # fmt: skip
