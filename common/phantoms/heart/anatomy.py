"""Anatomy of the cardiac phantom: what one subject's chest and heart look like before they are scanned.

All lengths are millimetres: x to the right of the picture, y down, z from the heart's apex to its base, origin where
the left ventricle's long axis meets the middle of the stack. A *distance* is positive inside a structure and negative
outside; painting turns it into a soft mask one voxel wide, so that voxels at an edge hold a mixture as in a scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

__all__ = ["STRUCTURES", "Canvas", "Subject", "paint_chest", "paint_heart"]

STRUCTURES = {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
RIGHT, MYOCARDIUM, LEFT = STRUCTURES

FAR = 1000.0  # mm: the length of what runs through all slices, and the distance to the edge of what is everywhere


@dataclass(frozen=True)
class Subject:
    """What subjects differ in by degrees; textures, vessels and the organs around the heart are drawn for each.

    Args:
        shift_x, shift_y: place of the heart in the picture, mm.
        turn: of the heart about its long axis, degrees.
        cavity: largest radius of the left ventricle's cavity, mm.
        wall: thickness of its myocardium, mm.
        length: of the left ventricle from the apex to the valve plane, mm.
        base: height of the valve plane in the stack, mm; above it lie the atria.
        right: size of the right ventricle, relative.
        papillary: radius of the papillary muscles, relative to that of the cavity.
        fat: thickness of the fat around the heart, mm.
        blood, muscle, fat_tone: brightness of blood, myocardium and fat, of 255.
        gamma: exponent of the tone curve; above 1 it darkens.
        shading: how much light is lost from the chest's wall to its back, natural logarithm.
        noise: spread of the noise, of 255.
        blur: width of the Gaussian that takes sharpness away, pixels.
    """

    shift_x: float
    shift_y: float
    turn: float
    cavity: float
    wall: float
    length: float
    base: float
    right: float
    papillary: float
    fat: float
    blood: float
    muscle: float
    fat_tone: float
    gamma: float
    shading: float
    noise: float
    blur: float


class Canvas:
    """Brightness and class shares on a grid of points, painted one structure over the other.

    Args:
        points: coordinates of the grid, ``(3, *spatial)``.
        grain: fine noise of unit deviation, the texture of tissues, ``(*spatial)``.
        lumps: the same, but coarse: the uneven thickness of fat.
        edge: width in mm over which a structure fades out.
    """

    def __init__(self, points: np.ndarray, grain: np.ndarray, lumps: np.ndarray, edge: float) -> None:
        self.points, self.grain, self.lumps, self.edge = points, grain, lumps, np.float32(edge)
        self.image = np.zeros(grain.shape, np.float32)
        self.shares = np.zeros((len(STRUCTURES) + 1, *grain.shape), np.float32)
        self.shares[0] = 1

    def ellipsoid(self, centre: tuple, radii: tuple) -> np.ndarray:
        """Approximate signed distance to an ellipsoid along the axes; with a radius ``FAR`` it is a cylinder."""
        radii = np.asarray(radii, np.float32).reshape(3, 1, 1, 1)
        along = (self.points - np.asarray(centre, np.float32).reshape(3, 1, 1, 1)) / radii
        norm = np.sqrt(np.square(along).sum(0)) + np.float32(1e-6)
        return norm * (1 - norm) / (np.sqrt(np.square(along / radii).sum(0)) + np.float32(1e-6))

    def paint(self, distance: np.ndarray, value: float, texture: float = 0.0, structure: int = 0) -> None:
        """Lay a structure over what is there: its brightness, its texture's strength, and the class it belongs to."""
        mask = np.clip(distance / self.edge + np.float32(0.5), 0, 1)
        if not mask.any():
            return
        (where,) = ndimage.find_objects((mask > 0).astype(np.uint8))
        mask = mask[where]
        self.image[where] += mask * (np.float32(value) + np.float32(texture) * self.grain[where] - self.image[where])
        self.shares[(slice(None), *where)] *= 1 - mask
        self.shares[(structure, *where)] += mask


def paint_chest(rng: np.random.Generator, canvas: Canvas, subject: Subject) -> None:
    """Lungs with vessels, back, liver and stomach below the diaphragm, descending aorta, the wall in front."""
    canvas.paint(np.full_like(canvas.image, FAR), rng.uniform(12, 40), 5)
    for _ in range(40):
        place, length = rng.uniform((-90, -60, -50), (90, 80, 50)), rng.uniform(5, 25)
        canvas.paint(canvas.ellipsoid(place, (*rng.uniform(1.5, 4, 2), length)), rng.uniform(60, 190))
    back, aorta = rng.uniform(58, 70), rng.uniform(10, 36)
    canvas.paint(canvas.ellipsoid((aorta - 32, back + 22, 0), (32, 26, FAR)), rng.uniform(60, 120), 12)
    top = rng.uniform(0.3, 0.8) * (subject.cavity + subject.wall)
    centre = (rng.uniform(-40, 10), top + 80, subject.base - 110)
    diaphragm = canvas.ellipsoid(centre, (115, 80, rng.uniform(85, 125)))
    canvas.paint(diaphragm, rng.uniform(65, 130), 8)
    for _ in range(12):
        place, length = rng.uniform((-80, 20, -50), (20, 80, 20)), rng.uniform(8, 25)
        vessel = canvas.ellipsoid(place, (*rng.uniform(2.5, 7, 2), length))
        canvas.paint(np.minimum(vessel, diaphragm - 4), subject.blood * rng.uniform(0.6, 1))
    centre = (rng.uniform(55, 72), rng.uniform(45, 65), subject.base - 95)
    stomach = np.minimum(canvas.ellipsoid(centre, rng.uniform((32, 32, 77), (46, 46, 91))), diaphragm)
    canvas.paint(stomach, rng.uniform(60, 100), 6)
    canvas.paint(stomach - rng.uniform(4, 7), rng.choice([18, rng.uniform(60, 230)]), 12)
    canvas.paint(canvas.ellipsoid((aorta, back, 0), (13, 13, FAR)), subject.muscle, 5)
    canvas.paint(canvas.ellipsoid((aorta, back, 0), (11, 11, FAR)), subject.blood * rng.uniform(0.9, 1.05), 5)
    _paint_wall(rng, canvas, subject)


def _paint_wall(rng: np.random.Generator, canvas: Canvas, subject: Subject) -> None:
    """Muscle with ribs, fat, and the air outside."""
    radius, side = 170.0, np.deg2rad(rng.uniform(-120, -70))
    centre = np.array([np.cos(side), np.sin(side), 0]) * (rng.uniform(56, 72) - radius)
    muscle, fat = rng.uniform(8, 15), rng.uniform(5, 16)
    outside = -canvas.ellipsoid(centre, (radius, radius, FAR))
    canvas.paint(outside, rng.uniform(55, 80), 8)
    for angle in side + np.deg2rad(np.arange(-40, 41, 10) + rng.uniform(-5, 5)):
        place = centre + (radius + muscle / 2) * np.array([np.cos(angle), np.sin(angle), 0])
        canvas.paint(canvas.ellipsoid(place, (4.5, 4.5, FAR)), rng.uniform(100, 150), 15)
    canvas.paint(outside - muscle, subject.fat_tone, 8)
    canvas.paint(outside - muscle - fat, 6)


class Heart(NamedTuple):
    """Distances to the parts of a heart; the ventricles end at their valve planes, where the chambers begin."""

    epicardium: np.ndarray  # of the left ventricle
    cavity: np.ndarray
    right: np.ndarray
    chambers: list[np.ndarray]


def paint_heart(rng: np.random.Generator, canvas: Canvas, subject: Subject) -> None:
    """Fat, atria and great vessels with thin walls, right ventricle, left ventricle with its papillary muscles."""
    heart = _build_heart(rng, canvas, subject)
    whole = np.maximum.reduce([heart.epicardium, heart.right + 3, *heart.chambers])
    canvas.paint(whole + subject.fat * (1 + 0.8 * canvas.lumps), subject.fat_tone, 10)
    for thin in (*heart.chambers, heart.right):
        canvas.paint(thin + 2.5, subject.muscle, 5)
    for chamber in heart.chambers:
        canvas.paint(chamber, subject.blood * rng.uniform(0.92, 1.06), 8)
    canvas.paint(heart.right, subject.blood * rng.uniform(0.88, 1.06), 8, RIGHT)
    outer, apex = subject.cavity + subject.wall, subject.base - subject.length
    for _ in range(8):
        place = rng.uniform((-outer - 26, -outer, apex), (-outer + 10, outer, subject.base - 15))
        trabecula = canvas.ellipsoid(place, rng.uniform((2, 2, 6), (7, 4, 14)))
        canvas.paint(np.minimum(trabecula, heart.right), 1.2 * subject.muscle, 0, RIGHT)
    canvas.paint(heart.epicardium, subject.muscle, 6, MYOCARDIUM)
    canvas.paint(heart.cavity, subject.blood, 6, LEFT)
    radius = subject.papillary * subject.cavity
    for angle in np.deg2rad(rng.uniform((15, 110), (70, 165))):
        reach = subject.cavity * rng.uniform(0.6, 0.8)
        place = (reach * np.cos(angle), reach * np.sin(angle), apex + 0.5 * subject.length)
        papillary = canvas.ellipsoid(place, (radius, radius, 0.3 * subject.length))
        canvas.paint(np.minimum(papillary, heart.cavity), 1.1 * subject.muscle, 5, LEFT)


def _build_heart(rng: np.random.Generator, canvas: Canvas, subject: Subject) -> Heart:
    x, y, z = canvas.points
    outer, size = subject.cavity + subject.wall, subject.right
    depth = 0.78 * subject.length  # from the widest section to the apex
    middle = subject.base - subject.length + depth
    tilt = rng.uniform((-0.1, -0.1, 0.0), (0.1, 0.1, 0.15)).astype(np.float32)
    mitral = np.float32(subject.base) - z + tilt[0] * x + tilt[1] * y  # to the valve's plane: positive in the ventricle
    tricuspid = mitral + tilt[2] * y + np.float32(rng.uniform(-5, 5))
    oval = np.exp(rng.uniform(-0.06, 0.06) * np.array([1, -1, 0]))
    epicardium = canvas.ellipsoid((0, 0, middle), oval * (outer, outer, depth))
    inside = oval * (subject.cavity, subject.cavity, depth - 0.7 * subject.wall)
    cavity = canvas.ellipsoid((0, 0, middle), inside) + 0.5 * canvas.grain
    broad = ((0.25 * outer + 26) * size, (outer + 4) * size, 0.88 * depth)
    body = canvas.ellipsoid((-0.75 * outer, -6, middle + 4), broad)
    outflow = canvas.ellipsoid((-0.5 * outer, -outer - 2, subject.base), (15 * size, 15 * size, 32))
    right = np.minimum(np.maximum(body, outflow) + 0.7 * canvas.grain, -epicardium)  # a crescent

    def chamber(x: float, y: float, radii: tuple, valve: np.ndarray) -> np.ndarray:
        centre = (x, y, subject.base + 0.8 * radii[2])
        return np.minimum(canvas.ellipsoid(centre, radii * rng.uniform(0.85, 1.2, 3)), -valve)

    chambers = [
        chamber(0.1 * outer, 0.35 * outer, (27, 21, 26), mitral),  # left atrium
        chamber(-0.3 * outer, -0.45 * outer, (13, 13, 40), mitral),  # aorta
        chamber(-outer - 8 * size, 12, (25, 27, 28), tricuspid),  # right atrium
        chamber(-0.3 * outer, -outer - 4, (13, 13, 40), tricuspid),  # pulmonary trunk
    ]
    return Heart(np.minimum(epicardium, mitral), np.minimum(cavity, mitral), np.minimum(right, tricuspid), chambers)
