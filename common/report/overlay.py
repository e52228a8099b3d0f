"""Pictures that show where prediction and truth agree."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy.ndimage import binary_fill_holes

from common.data.temporary import writing

from .plain_text import in_picture, plain_text

_TRUTH, _PREDICTION = "#33dd55", "#ff3399"  # one structure: a colour for each role
# Okabe and Ito's palette, which colour-blind readers can tell apart too; several structures: a colour for each
_COLOURS = ("#f0e442", "#56b4e9", "#2ee6a8", "#e69f00", "#ff5a1f", "#cc79a7", "#3f7fff", "#ffffff")
_PLANES = ("sagittal", "coronal", "axial")


@plain_text()
def save_overlay(
    path: str | Path,
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray | None,
    labels: Mapping[int, str],
    affine: np.ndarray | None = None,
    title: str = "",
    dice: Mapping[str, float] | None = None,
    slices: int = 5,
) -> None:
    """Write a row of slices with the contours of truth (solid) and prediction (dashed).

    A volume is cut across its thickest axis, at slices spread evenly over what truth and prediction cover. With an
    ``affine`` the picture is turned as radiologists look at it (anterior or head up, the patient's right on the left)
    and keeps its proportions in mm. One slice whose affine is the identity is a photograph: drawn first axis down. A
    structure that encloses others is drawn without the border they share.

    Args:
        path: the PNG file.
        image: grey values, or a colour photograph.
        truth: label map; None draws the prediction alone.
        prediction: label map; None draws the truth alone.
        labels: label value to name, without the background; others are not drawn.
        affine: voxel to RAS+ mm as in NIfTI; None draws the array as it is, first axis down.
        title: usually the case.
        dice: structure name to Dice, shown behind the title; nan reads "absent".
        slices: at most so many of a volume.

    Shape:
        label maps ``(H, W)`` or ``(H, W, D)``; image the same, or with channels in front or behind: three are a
        colour picture, of 2, or 4 and more, the first is drawn.

    Raises:
        ValueError: the shapes differ.
    """
    image, maps = _checked(image, truth, prediction)
    keys = _keys(labels, truth is not None, prediction is not None)
    figure = _figure(*_panels(image, maps, affine, slices), labels, keys)
    # what wraps a text looks for formulae in it whatever the settings: there are none
    headline = _headline(title, dice).replace("$", r"\$")
    figure.suptitle(headline, color="white", fontsize=12, fontweight="bold", wrap=True, parse_math=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with writing(Path(path)):
        figure.savefig(path, dpi=110, facecolor=figure.get_facecolor())


def save_case_overlay(
    path: str | Path,
    case: Mapping[str, Any],
    prediction: np.ndarray,
    labels: Mapping[int, str],
    dice: Mapping[str, float] | None = None,
) -> None:
    """A whole case, as :class:`common.data.whole_cases.CaseDataset` gives it; else as above.

    MONAI reads photographs with x first: they are turned.
    """
    name, scan = case["case"], case["scan"]
    title = name if name == scan else f"{name}, {scan}"
    image, truth = case["native"].numpy(), case["label"].numpy()
    if truth.ndim == 2:
        image, truth, prediction = image.swapaxes(1, 2), truth.T, prediction.T
    save_overlay(path, image, truth, prediction, labels, case["affine"], title, dice)


def _checked(image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray | None) -> tuple[np.ndarray, list]:
    """The image with channels in front, and the two maps; a volume of one slice as a plane."""
    image, maps = np.asarray(image), [None if given is None else np.asarray(given) for given in (truth, prediction)]
    shape = next(m.shape for m in maps if m is not None)
    if image.shape == shape:
        image = image[None]
    elif image.shape[:-1] == shape:
        image = np.moveaxis(image, -1, 0)
    image = image if len(image) in (1, 3) else image[:1]  # of 2 channels, or 4 and more, the first
    if any(m is not None and m.shape != image.shape[1:] for m in maps):
        shapes = [None if m is None else m.shape for m in maps]
        raise ValueError(f"image {image.shape}, truth {shapes[0]} and prediction {shapes[1]} do not fit together.")
    return image, maps


def _panels(image: np.ndarray, maps: list, affine: np.ndarray | None, slices: int) -> tuple[list[tuple], float]:
    """(name, picture, truth, prediction) for each slice, rows down, and the height of a pixel over its width."""
    if image.ndim == 4 and image.shape[3] == 1 and (affine is None or np.allclose(affine, np.eye(4), atol=1e-6)):
        image, *maps = (None if part is None else part[..., 0] for part in (image, *maps))
    spacing = np.ones(image.ndim - 1)
    if affine is not None and image.ndim == 4:
        (image, *maps), spacing = _to_lps([image, *maps], np.asarray(affine, dtype=float))
    picture = _window(image)
    if image.ndim == 3:
        return [("", picture, *maps)], 1.0
    cut = int(np.lexsort((np.arange(3), spacing))[-1])  # the thickest; the last one (head) among equals
    across, down = (axis for axis in range(3) if axis != cut)
    panels = []
    for index in _choose(maps, cut, slices):
        parts = [None if part is None else _slice(part, cut, index, affine is not None) for part in (picture, *maps)]
        name = f"{_PLANES[cut]} {index + 1}/{image.shape[cut + 1]}" if affine is not None else f"slice {index + 1}"
        panels.append((name, *parts))
    return panels, float(spacing[down] / spacing[across])


def _to_lps(arrays: list, affine: np.ndarray) -> tuple[list, np.ndarray]:
    """Turn and mirror the arrays so that their axes run to the patient's left, to the back and to the head."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LPS"))
    order = np.argsort(turn[:, 0])
    spacing = nib.affines.voxel_sizes(affine)[order]
    image, *maps = arrays
    turned = [np.stack([nib.apply_orientation(channel, turn) for channel in image])]
    return turned + [None if m is None else nib.apply_orientation(m, turn) for m in maps], spacing


def _slice(volume: np.ndarray, cut: int, index: int, turned: bool) -> np.ndarray:
    """One slice, (rows, columns) or (rows, columns, colours)."""
    colours = volume.ndim == 4
    plane = np.take(volume, index, axis=cut)
    if not turned:
        return plane
    plane = plane.transpose(1, 0, 2) if colours else plane.T
    return plane if cut == 2 else plane[::-1]  # other planes have the head axis as rows, which must go up


def _window(image: np.ndarray) -> np.ndarray:
    """Grey values between the 1st and 99th percentile, or colours, as 0..1 with channels last."""
    image = np.nan_to_num(image.astype(np.float32))
    low, high = (image.min(), image.max()) if image.shape[0] == 3 else np.percentile(image, (1, 99))
    image = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image[0]


def _choose(maps: list, cut: int, slices: int) -> list[int]:
    """Slices spread evenly over those that show at least a tenth of the largest area."""
    others = tuple(axis for axis in range(3) if axis != cut)
    area = sum((m > 0).sum(axis=others) for m in maps if m is not None)
    candidates = np.flatnonzero(area >= max(0.1 * area.max(), 1)) if area.max() else np.arange(len(area))
    positions = (np.arange(slices) + 0.5) / slices * len(candidates)
    return sorted({int(candidates[int(position)]) for position in positions})


def _figure(panels: list[tuple], aspect: float, labels: Mapping[int, str], keys: list[Line2D]) -> Figure:
    rows, columns = panels[0][1].shape[:2]
    side = 2.9 if len(panels) > 1 else 5.0
    width, height = max(side * len(panels), 4.5), side * rows * aspect / columns
    longest = max((len(str(key.get_label())) for key in keys), default=0)
    ncols = min(max(int(width / (0.65 + 0.085 * longest)), 1), 6)  # inches of a line and its text in the legend
    figure = Figure(figsize=(width, height + 0.9 + 0.2 * -(-len(keys) // ncols)), facecolor="black",
                    layout="constrained")
    figure.legend(handles=keys, loc="outside lower center", ncols=ncols, fontsize=10, frameon=False, labelcolor="white")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.01)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, picture, truth, prediction) in zip(axes, panels, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
        for mask, is_truth in ((truth, True), (prediction, False)):
            if mask is not None:
                _draw(axis, mask, labels, is_truth)
        axis.set_title(name, color="0.75", fontsize=9)
        axis.set_axis_off()
    return figure


def _draw(axis: Axes, mask: np.ndarray, labels: Mapping[int, str], is_truth: bool) -> None:
    for number, label in enumerate(labels):
        inside = np.pad(_with_enclosed(mask, label, labels), 1)  # closed contours at the border
        if inside.any():
            rows, columns = (np.arange(-1, size + 1) for size in mask.shape)
            lines = axis.contour(columns, rows, inside, levels=[0.5], colors=[_colour(labels, number, is_truth)],
                                 **_line(is_truth))
            lines.set_path_effects([withStroke(linewidth=2.8, foreground="black", alpha=0.6)])
    axis.set_xlim(-0.5, mask.shape[1] - 0.5)
    axis.set_ylim(mask.shape[0] - 0.5, -0.5)


def _with_enclosed(mask: np.ndarray, label: int, labels: Mapping[int, str]) -> np.ndarray:
    """A structure and the others inside it, such as the cup in the rim: their own contours show the border."""
    inside = mask == label
    return inside | (binary_fill_holes(inside) & np.isin(mask, list(labels)))


def _colour(labels: Mapping[int, str], number: int, is_truth: bool) -> str:
    if len(labels) == 1:
        return _TRUTH if is_truth else _PREDICTION
    return _COLOURS[number % len(_COLOURS)]


def _line(is_truth: bool) -> dict[str, Any]:
    return {"linestyles": "solid" if is_truth else "dashed", "linewidths": 1.3}


def _keys(labels: Mapping[int, str], with_truth: bool, with_prediction: bool) -> list[Line2D]:
    roles = [("truth", True, "-")] * with_truth + [("prediction", False, "--")] * with_prediction
    if len(labels) == 1:
        return [Line2D([], [], color=_colour(labels, 0, t), linestyle=s, label=role) for role, t, s in roles]
    names = [Line2D([], [], color=_colour(labels, n, True), lw=4, label=in_picture(name))
             for n, name in enumerate(labels.values())]  # fmt: skip
    return names + [Line2D([], [], color="white", linestyle=style, label=role) for role, _, style in roles]


def _headline(title: str, dice: Mapping[str, float] | None) -> str:
    scores = [f"{in_picture(name)} {'absent' if math.isnan(value) else f'{value:.3f}'}"
              for name, value in (dice or {}).items()]  # fmt: skip
    title = in_picture(title)
    return f"{title}   Dice: {', '.join(scores)}" if scores else title
