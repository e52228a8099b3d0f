"""Abdominal phantom: anatomy drawn from ellipsoids, different in pose, shape and contrast for every subject.

All lengths are millimetres in the subject's own frame: x to the left, y to the front, z to the head, origin in the
middle of the abdomen. A *distance* is positive inside a structure and negative outside; painting turns it into a soft
mask one voxel wide, so that voxels at an edge hold a mixture as they do in a scan (partial volume).
"""

from __future__ import annotations

import numpy as np

__all__ = ["ORGANS", "draw_abdomen", "smooth_noise"]

ORGANS = {1: "liver", 2: "spleen", 3: "left kidney", 4: "right kidney"}

# centre, radii and turn about the long axis (degrees) of the average subject's organs; a subject's own differ
LIVER = ((-58, 6, 30), (56, 62, 56), 0)
LEFT_LOBE = ((-2, 46, 46), (56, 27, 30), 10)
KIDNEYS = {4: ((-60, -38, -26), (31, 25, 48), -25), 3: ((62, -38, -12), (30, 25, 50), 25)}
SPLEEN = ((86, -22, 36), (38, 50, 46), 15)

FAR = 1000.0  # mm: outside everything, and the length of what runs through the whole abdomen


class Canvas:
    """Intensities and class shares on a grid of subject coordinates, painted one structure over the other.

    Args:
        points: coordinates of the grid, ``(3, *spatial)``.
        lumps: smooth noise of unit deviation that dents every structure, ``(*spatial)``.
        grain: fine noise of unit deviation, the texture of the tissues, ``(*spatial)``.
        edge: width in mm over which a structure fades out.
        rng: source of everything that differs between subjects.
    """

    def __init__(self, points: np.ndarray, lumps: np.ndarray, grain: np.ndarray, edge: float, rng: np.random.Generator):
        self.points, self.lumps, self.grain, self.edge, self.rng = points, lumps, grain, edge, rng
        self.image = np.zeros(points.shape[1:], np.float32)
        self.shares = np.zeros((len(ORGANS) + 1, *points.shape[1:]), np.float32)
        self.shares[0] = 1
        # lowest and highest coordinate in every plane of the grid: ellipsoids are worked out only where they can be
        others = [tuple(1 + other for other in range(3) if other != axis) for axis in range(3)]
        self.bounds = [(points.min(axis=axes), points.max(axis=axes)) for axes in others]

    def ellipsoid(self, centre, radii, turn: float = 0.0, tilt: float = 0.0, dent: float = 0.0) -> np.ndarray:
        """Approximate signed distance to an ellipsoid, turned about z, tilted about y, its surface dented by noise."""
        axes, radii = _axes(turn, tilt), np.asarray(radii, np.float32)
        reach = np.linalg.norm(axes * radii[:, None], axis=0) + 4 * dent + 2 * self.edge
        where = tuple(self._planes(axis, np.asarray(centre), reach) for axis in range(3))
        offsets = self.points[(slice(None), *where)] - np.asarray(centre, np.float32).reshape(3, 1, 1, 1)
        along = np.tensordot(axes, offsets, 1) / radii.reshape(3, 1, 1, 1)
        norm = np.sqrt(np.square(along).sum(0)) + np.float32(1e-6)
        slope = np.sqrt(np.square(along / radii.reshape(3, 1, 1, 1)).sum(0)) + np.float32(1e-6)
        distance = np.full(self.image.shape, -FAR, np.float32)
        distance[where] = norm * (1 - norm) / slope
        if dent:
            # the noise field is periodic: rolling it gives every structure dents of its own
            shift = self.rng.integers(0, self.lumps.shape)
            distance[where] += np.float32(dent) * np.roll(self.lumps, shift, axis=(0, 1, 2))[where]
        return distance

    def _planes(self, axis: int, centre: np.ndarray, reach: np.ndarray) -> slice:
        low, high = self.bounds[axis]
        used = np.flatnonzero(((low <= (centre + reach)[:, None]) & (high >= (centre - reach)[:, None])).all(0))
        return slice(int(used[0]), int(used[-1]) + 1) if used.size else slice(0, 0)

    def paint(self, distance: np.ndarray, value: float, texture: float = 0.0, organ: int = 0) -> None:
        """Lay a structure over what is there: its intensity, its texture's strength, and the organ it belongs to."""
        mask = np.clip(distance / np.float32(self.edge) + np.float32(0.5), 0, 1)
        where = tuple(slice(*_extent(mask, axis)) for axis in range(3))
        mask = mask[where]
        tissue = np.float32(value) + np.float32(texture) * self.grain[where]
        self.image[where] += mask * (tissue - self.image[where])
        self.shares[(slice(None), *where)] *= 1 - mask
        self.shares[(organ, *where)] += mask


def draw_abdomen(canvas: Canvas) -> None:
    """Paint one subject's abdomen, from the outside in; organs come last, so that nothing hides them."""
    cavity = _trunk(canvas)
    _bowel(canvas)
    _vessels_and_spine(canvas)
    _organs(canvas, cavity)


def smooth_noise(rng: np.random.Generator, shape: tuple, spacing: tuple, sigma: float) -> np.ndarray:
    """Periodic Gaussian noise of unit deviation, smoothed with a Gaussian of ``sigma`` mm through the spectrum."""
    spectrum = np.fft.rfftn(rng.standard_normal(shape, np.float32))
    for axis, (size, step) in enumerate(zip(shape, spacing, strict=True)):
        frequency = np.fft.rfftfreq(size, step) if axis == len(shape) - 1 else np.fft.fftfreq(size, step)
        gain = np.exp(-2 * (np.pi * sigma * frequency) ** 2)
        spectrum *= gain.astype(np.float32).reshape([-1 if axis == other else 1 for other in range(len(shape))])
    noise = np.fft.irfftn(spectrum, shape, axes=range(len(shape)))
    noise -= noise.mean()
    return (noise / noise.std()).astype(np.float32)


def _extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    used = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def _axes(turn: float, tilt: float) -> np.ndarray:
    """Rows: the three axes of a structure turned about z and then tilted about its own y (degrees)."""
    (cos, sin), (lean, rise) = ((np.cos(angle), np.sin(angle)) for angle in np.deg2rad([turn, tilt]))
    about_z = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    about_y = np.array([[lean, 0, rise], [0, 1, 0], [-rise, 0, lean]])
    return (about_y @ about_z).astype(np.float32)


def _near(rng: np.random.Generator, place: tuple, move: float, grow: float, turn: float) -> dict:
    """A subject's own version of an average organ: moved by up to ``move`` mm, resized, turned and tilted."""
    centre, radii, angle = place
    return {
        "centre": np.add(centre, rng.uniform(-move, move, 3)),
        "radii": np.multiply(radii, rng.uniform(1 - grow, 1 + grow, 3)),
        "turn": angle + rng.uniform(-turn, turn),
        "tilt": rng.uniform(-turn, turn) / 2,
    }


def _trunk(canvas: Canvas) -> np.ndarray:
    """Skin, fat (dark, as it is suppressed), the ring of muscle, the fat of the cavity, the lungs' bases.

    Returns the distance to the wall of the cavity, which holds the organs in.
    """
    rng, tall = canvas.rng, FAR
    width, depth = 138, 98
    fat, muscle = rng.uniform(5, 16), rng.uniform(7, 12)
    canvas.paint(canvas.ellipsoid((0, 0, 0), (width, depth, tall)), 85)
    canvas.paint(canvas.ellipsoid((0, 0, 0), (width - 3, depth - 3, tall)), rng.uniform(22, 40), 5)
    canvas.paint(canvas.ellipsoid((0, -2, 0), (width - fat, depth - fat, tall), dent=1.5), rng.uniform(58, 76), 7)
    inner = (width - fat - muscle, depth - fat - muscle, tall)
    cavity = canvas.ellipsoid((0, 2, 0), inner, dent=2.0)
    canvas.paint(cavity, rng.uniform(26, 42), 8)
    for side in (-1, 1):
        base = (side * 62, -12, rng.uniform(112, 126))
        canvas.paint(canvas.ellipsoid(base, (62, 74, 50), dent=2.0), 12, 4)
    return cavity


def _bowel(canvas: Canvas) -> None:
    """Loops of every brightness: no threshold tells them from kidneys, spleen or liver."""
    rng = canvas.rng
    for _ in range(24):
        centre = (rng.uniform(-84, 84), rng.uniform(-8, 64), rng.uniform(-100, 8))
        loop = canvas.ellipsoid(centre, rng.uniform(8, 20, 3), rng.uniform(0, 180), dent=2.0)
        canvas.paint(loop, rng.uniform(60, 90), 8)
        content = rng.uniform(130, 245) if rng.random() < 0.2 else rng.uniform(50, 130)
        canvas.paint(loop - rng.uniform(3, 6), content, 12)
    for side, height in ((-1, -62), (1, -46)):
        colon = canvas.ellipsoid((side * rng.uniform(82, 100), rng.uniform(-22, 14), height), (17, 18, 46), dent=3.0)
        canvas.paint(colon, 75, 8)
        canvas.paint(colon - 4, rng.uniform(30, 130), 22)
    stomach = canvas.ellipsoid(**_near(rng, ((48, 30, 42), (40, 27, 34), -20), 10, 0.2, 20), dent=4.0)
    canvas.paint(stomach, 85, 8)
    canvas.paint(stomach - 5, rng.choice([rng.uniform(40, 70), rng.uniform(215, 240)]), 16)
    canvas.paint(canvas.ellipsoid(**_near(rng, ((12, 6, 4), (52, 9, 13), 15), 8, 0.2, 12), dent=3.0), 115, 12)


def _vessels_and_spine(canvas: Canvas) -> None:
    rng, tall = canvas.rng, FAR
    for side in (-1, 1):
        canvas.paint(canvas.ellipsoid((side * 30, -66, 0), (27, 17, tall), dent=1.5), rng.uniform(46, 62), 8)
        canvas.paint(canvas.ellipsoid((side * 30, -34, -70), (14, 14, 70), dent=1.5), rng.uniform(46, 62), 8)
    canvas.paint(canvas.ellipsoid((0, -40, 0), (21, 17, tall), dent=1.0), rng.uniform(70, 110), 10)
    canvas.paint(canvas.ellipsoid((0, -64, 0), (11, 9, tall)), 35)
    canvas.paint(canvas.ellipsoid((0, -63, 0), (8, 6, tall)), 235, 8)
    canvas.paint(canvas.ellipsoid((rng.uniform(2, 12), -14, 0), (9, 9, tall)), rng.choice([25, 170]), 5)
    canvas.paint(canvas.ellipsoid((rng.uniform(-26, -16), -14, 0), (12, 8, tall)), rng.uniform(130, 210), 8)


def _organs(canvas: Canvas, cavity: np.ndarray) -> None:
    """Liver with vessels, gallbladder, spleen, kidneys with their sinus; the later ones press into the earlier."""
    rng = canvas.rng
    right, left = _near(rng, LIVER, 10, 0.14, 15), _near(rng, LEFT_LOBE, 10, 0.25, 20)
    liver = np.maximum(canvas.ellipsoid(**right, dent=4.0), canvas.ellipsoid(**left, dent=4.0))
    liver = np.minimum(liver, cavity)
    canvas.paint(liver, rng.uniform(82, 100), 7, organ=1)
    root = np.add(right["centre"], (18, 6, 6))
    for _ in range(9):
        spot = root + rng.uniform(-1, 1, 3) * (34, 36, 34)
        branch = canvas.ellipsoid(spot, (rng.uniform(14, 30), 3.2, 4.5), rng.uniform(0, 180), rng.uniform(-40, 40))
        canvas.paint(np.minimum(branch, liver - 5), rng.uniform(130, 160), 4, organ=1)
    canvas.paint(canvas.ellipsoid(**_near(rng, ((-38, 44, -6), (13, 18, 18), 0), 10, 0.25, 30)), 238, 5)
    place = _near(rng, SPLEEN, 9, 0.16, 20)
    hollow = canvas.ellipsoid(np.add(place["centre"], (-34, 14, 0)), place["radii"] * (0.8, 0.75, 1.1), place["turn"])
    spleen = np.minimum(np.minimum(canvas.ellipsoid(**place, dent=3.5), -hollow), cavity)
    canvas.paint(spleen, rng.uniform(156, 170), 5, organ=2)
    for organ, average in KIDNEYS.items():
        _kidney(canvas, organ, average)


def _kidney(canvas: Canvas, organ: int, average: tuple) -> None:
    """A bright bean: cortex, mottled medulla, and on its inner side the sinus, which belongs to no organ."""
    rng, side = canvas.rng, 1 if organ == 3 else -1
    place = _near(rng, average, 12, 0.16, 20)
    body, cortex = canvas.ellipsoid(**place, dent=2.0), rng.uniform(195, 212)
    canvas.paint(body, cortex, 8, organ=organ)
    canvas.paint(body - 6, cortex - rng.uniform(10, 35), 26, organ=organ)
    hilum = np.add(place["centre"], (-side * 0.75 * place["radii"][0], 5, 0))
    sinus = canvas.ellipsoid(hilum, (11, 8, 17), dent=2.0)
    canvas.paint(sinus, 45, 8)
    canvas.paint(sinus - 4, rng.choice([60, 245]), 5)
