"""Fundus phantom: an optic disc with its cup and vessels, drawn from geometry and taken by a camera of a given look.

Lengths are pixels of a square of ``SIZE``. A *distance* is positive inside a structure and negative outside; painting
turns it into a soft mask. What an eye is like (place and size of disc and cup, pallor, vessels) and what the camera
makes of it (colours, gamma, shading, blur, noise) are drawn apart, so that centres can differ in the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

__all__ = ["SIZE", "STRUCTURES", "Look", "draw_region"]

SIZE = 128
STRUCTURES = {1: "optic disc rim (disc without the cup)", 2: "optic cup"}

REACH = 3.0  # pixels: more than half the width of the widest vessel with its soft edge

# reflectance in red, green and blue of the average eye under white light
FUNDUS, RIM, CUP, SCAR = (0.50, 0.24, 0.10), (0.70, 0.41, 0.20), (0.83, 0.62, 0.40), (0.62, 0.38, 0.19)
ARTERY, VEIN = (0.80, 0.50, 0.48), (0.62, 0.33, 0.34)  # what a vessel lets through of the tissue behind it


@dataclass(frozen=True)
class Look:
    """What one centre's images have in common: the camera, and the traits of its eyes that no colour change undoes.

    Args:
        colours: 3 x 3 matrix from reflectance to the camera's red, green and blue.
        gamma: exponent of the camera's tone curve; above 1 it darkens.
        haze: share of stray light, of the colour ``haze_colour``, which takes contrast away.
        haze_colour: red, green and blue.
        vignette: loss of light from the middle to a corner.
        shading: spread of the low-frequency field of illumination, natural logarithm.
        blur: width of the lens's Gaussian in pixels.
        noise: spread of the sensor's noise, of full scale.
        disc: mean radius of the disc in pixels.
        vessels: number of small vessels.
        vessel_width: factor on the width of all vessels.
        texture: width in pixels of the spots of the fundus.
        spots: spread of their reflectance, relative.
    """

    colours: tuple[tuple[float, float, float], ...]
    gamma: float
    haze: float
    haze_colour: tuple[float, float, float]
    vignette: float
    shading: float
    blur: float
    noise: float
    disc: float
    vessels: int
    vessel_width: float
    texture: float
    spots: float


@dataclass(frozen=True)
class Eye:
    """Distances to the edges of disc and cup, ``(SIZE, SIZE)``, and where they lie: centre (x, y), radius, side."""

    disc: np.ndarray
    cup: np.ndarray
    centre: np.ndarray
    radius: float
    cup_share: float
    side: int  # 1: the nose is to the right


def draw_region(rng: np.random.Generator, look: Look) -> tuple[np.ndarray, np.ndarray]:
    """One region of interest around the optic disc.

    Args:
        rng: decides everything that differs between the images of a centre.
        look: the centre.

    Returns:
        Image ``(SIZE, SIZE, 3)`` uint8 and label ``(SIZE, SIZE)`` uint8: 0 background, 1 rim, 2 cup.
    """
    eye = _draw_eye(rng, look)
    tissue = _tissue(rng, eye, look)
    _paint_vessels(rng, tissue, eye, look)
    label = (eye.disc > 0).astype(np.uint8) + (eye.cup > 0)
    return _photograph(rng, tissue, look), label.astype(np.uint8)


def _noise(rng: np.random.Generator, width: float) -> np.ndarray:
    """Smooth noise of unit deviation."""
    field = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), width, mode="reflect", truncate=3)
    return (field - field.mean()) / field.std()


def _ellipse(centre: np.ndarray, radii: tuple[float, float], turn: float) -> np.ndarray:
    """Approximate signed distance to an ellipse, its first axis turned by ``turn`` from the x axis."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    x, y = x - centre[0], y - centre[1]
    along = (np.cos(turn) * x + np.sin(turn) * y) / radii[0]
    across = (np.cos(turn) * y - np.sin(turn) * x) / radii[1]
    return (1 - np.hypot(along, across)) * (radii[0] * radii[1]) ** 0.5


def _draw_eye(rng: np.random.Generator, look: Look) -> Eye:
    """Disc anywhere near the middle; cup of 0.36 to 0.8 of its diameter, off its centre, away from the nose."""
    side = int(rng.choice([-1, 1]))
    radius = look.disc * rng.uniform(0.82, 1.18)
    centre = SIZE / 2 + min(24, SIZE / 2 - 1.25 * radius) * rng.uniform(-1, 1, 2)
    tall, turn = rng.uniform(0.98, 1.12), rng.uniform(-0.3, 0.3)
    disc = _ellipse(centre, (radius / tall, radius * tall), turn) + 0.03 * radius * _noise(rng, 10)
    share = rng.uniform(0.36, 0.8)
    room = radius * (1 - share)
    middle = centre + room * np.array([-side * rng.uniform(0, 0.6), rng.uniform(-0.3, 0.3)])
    flat = rng.uniform(0.88, 1.12)
    cup = _ellipse(middle, (radius * share * flat, radius * share / flat), turn + rng.uniform(-0.4, 0.4))
    cup = np.minimum(cup + 0.035 * radius * _noise(rng, 8), disc - 2.5)
    return Eye(disc, cup, centre, radius, share, side)


def _mask(distance: np.ndarray, edge: float) -> np.ndarray:
    return (1 / (1 + np.exp(np.clip(-4 * distance / edge, -60, 60))))[..., None]


def _tissue(rng: np.random.Generator, eye: Eye, look: Look) -> np.ndarray:
    """Reflectance ``(SIZE, SIZE, 3)`` without vessels: spotted fundus, a scar beside some discs, rim, soft cup."""
    pigment = np.exp(rng.normal(0, 0.12) + rng.normal(0, (0.05, 0.10, 0.15)))
    tissue = np.array(FUNDUS) * pigment * (1 + look.spots * _noise(rng, look.texture))[..., None]
    rim = np.array(RIM) * np.exp(rng.normal(0, 0.07, 3))
    if rng.random() < 0.4:
        place = eye.centre + eye.radius * rng.uniform(0.1, 0.35) * np.array([-eye.side, rng.uniform(-0.5, 0.5)])
        scar = _mask(_ellipse(place, (eye.radius,) * 2, 0) + 2 * _noise(rng, 6), 5) * rng.uniform(0.3, 0.8)
        tissue += scar * (np.array(SCAR) * (1 + 0.1 * _noise(rng, 2))[..., None] - tissue)
    tissue += _mask(eye.disc, rng.uniform(3, 5)) * (rim - tissue)
    # the rim is paler away from the nose, and uneven, as the cup is: brightness alone does not tell them apart
    slope = (np.arange(SIZE)[None] - eye.centre[0]) / eye.radius * -eye.side
    inside = _mask(eye.disc, 4)[..., 0]
    tissue *= (1 + inside * (0.07 * np.clip(slope, -1, 1) + 0.06 * _noise(rng, 8) + 0.02 * _noise(rng, 1.5)))[..., None]
    pallor = rng.uniform(0.6, 1.1) * _mask(eye.cup, rng.uniform(3, 7))
    return tissue * (1 + pallor * (np.array(CUP) / RIM - 1))


def _paint_vessels(rng: np.random.Generator, tissue: np.ndarray, eye: Eye, look: Look) -> None:
    """Arteries and veins: four trunks of each leave the cup's nasal side up and down; small ones go everywhere."""
    root = eye.centre + eye.radius * np.array([eye.side * rng.uniform(0.05, 0.3), rng.uniform(-0.12, 0.12)])
    for light, width, offset in ((VEIN, 3.4, -0.1), (ARTERY, 2.5, 0.1)):
        points: list[np.ndarray] = []
        for up in (-1, 1):
            for nasal in (-1, 1):
                heading = up * np.pi / 2 - up * nasal * eye.side * (rng.uniform(0.1, 0.55) + offset)
                points += _vessel(rng, root + rng.normal(0, 1.5, 2), heading, width * rng.uniform(0.7, 1.1), eye)
        for _ in range(rng.poisson(look.vessels / 2)):
            points += _vessel(rng, root + rng.normal(0, 3, 2), rng.uniform(-np.pi, np.pi), rng.uniform(0.7, 1.3), eye)
        _paint_vessel_points(tissue, np.concatenate(points), light, look.vessel_width)


def _vessel(rng: np.random.Generator, start: np.ndarray, heading: float, width: float, eye: Eye) -> list[np.ndarray]:
    """Points (x, y, half width) along a vessel and its branches, out of the region; kinked at the cup's edge."""
    steps = 240
    bend = ndimage.gaussian_filter1d(rng.normal(0, 1, steps), 12, mode="wrap") * 0.07
    turns = heading + np.cumsum(bend)
    kink = eye.radius * eye.cup_share * rng.uniform(0.6, 1.1)
    turns[: int(kink)] += rng.normal(0, 0.5)
    path = start + np.cumsum(np.stack([np.cos(turns), np.sin(turns)], 1), 0) * 0.7
    taper = width / 2 * np.linspace(1, 0.55, steps)
    pieces = [np.column_stack([path, taper])]
    if width > 1.2:
        for at in rng.integers(30, 130, rng.integers(1, 4)):
            fork = turns[at] + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9)
            pieces += _vessel(rng, path[at], fork, taper[at] * rng.uniform(0.8, 1.2), eye)
    return pieces


def _paint_vessel_points(tissue: np.ndarray, points: np.ndarray, light: tuple, widen: float) -> None:
    y, x = np.mgrid[:SIZE, :SIZE]
    points = points[((points[:, :2] > -REACH) & (points[:, :2] < SIZE + REACH)).all(1)]
    pixels = np.stack([x.ravel(), y.ravel()], 1)
    away, nearest = cKDTree(points[:, :2]).query(pixels, distance_upper_bound=REACH)
    half = np.append(widen * points[:, 2], 0)[nearest]  # pixels beyond the reach get the number of points as `nearest`
    # thin vessels are fainter: a pixel is never darker than the share of it that blood covers
    cover = np.clip(half - away + 0.5, 0, np.minimum(1, 2 * half)).reshape(SIZE, SIZE, 1)
    tissue *= 1 - cover * (1 - np.array(light))


def _photograph(rng: np.random.Generator, tissue: np.ndarray, look: Look) -> np.ndarray:
    """What the centre's camera makes of the tissue; exposure, shading and tone differ a little from image to image."""
    colours = np.array(look.colours) * np.exp(rng.normal(0, 0.08, (3, 1)))
    y, x = (np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2 + rng.uniform(-12, 12, (2, 1, 1))) / (SIZE / 2)
    light = (1 - look.vignette * (x**2 + y**2) / 2) * np.exp(look.shading * _noise(rng, 32) + rng.normal(0, 0.12))
    haze = look.haze * rng.uniform(0.8, 1.2)
    seen = (1 - haze) * (tissue @ colours.T) * light[..., None] + haze * np.array(look.haze_colour)
    seen = seen / (1 + seen**6) ** (1 / 6)  # highlights are compressed, not cut off
    seen = seen ** (look.gamma * rng.uniform(0.93, 1.07))
    seen = ndimage.gaussian_filter(seen, (look.blur * rng.uniform(0.85, 1.15),) * 2 + (0,))
    seen += rng.normal(0, look.noise, seen.shape)
    return np.rint(np.clip(seen, 0, 1) * 255).astype(np.uint8)
