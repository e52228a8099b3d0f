from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from common.phantoms.heart import STACK, VOLUME, Subject, draw_scan

RIGHT, MYOCARDIUM, LEFT = 1, 2, 3
AVERAGE = Subject(
    shift_x=12, shift_y=0, turn=0, cavity=22, wall=10, length=70, base=28, right=1, papillary=0.18, fat=4, blood=190,
    muscle=80, fat_tone=200, gamma=1, shading=0.1, noise=3, blur=0.1,
)  # fmt: skip
both = pytest.mark.parametrize("acquisition", [STACK, VOLUME], ids=["stack", "volume"])


def scan(acquisition=STACK, **traits):
    return draw_scan(np.random.default_rng(0), replace(AVERAGE, **traits), acquisition)


def radius(mask, acquisition):
    """mm, of a circle of the area of the mask's largest slice."""
    return np.sqrt(mask.sum((0, 1)).max() * acquisition.spacing[0] * acquisition.spacing[1] / np.pi)


def middle(mask, acquisition):
    """x, y in mm from the middle of the picture, of the mask's slice of the largest area."""
    largest = mask[:, :, mask.sum((0, 1)).argmax()]
    size, spacing = (np.array(side[:2]) for side in (acquisition.shape, acquisition.spacing))
    return (np.array(ndimage.center_of_mass(largest)) - (size - 1) / 2) * spacing


def test_slabs_fill_the_view_and_the_origin_is_its_middle():
    assert (STACK.fine.shape, STACK.fine.spacing, STACK.fine.slabs) == ((64, 64, 36), (2.5, 2.5, 8 / 3), 1)
    assert (VOLUME.fine.shape, VOLUME.fine.spacing, VOLUME.fine.slabs) == ((48, 48, 48), (3.3, 3.3, 2.0), 1)
    assert STACK.affine.tolist() == [[-2.5, 0, 0, 78.75], [0, -2.5, 0, 78.75], [0, 0, 8, -44], [0, 0, 0, 1]]
    np.testing.assert_allclose(VOLUME.affine @ [23.5, 23.5, 11.5, 1], [0, 0, 0, 1], atol=1e-12)


@both
@pytest.mark.parametrize(("cavity", "wall"), [(15, 14), (22, 10), (29, 6)])
def test_the_left_ventricle_is_as_wide_and_as_thick_as_told(acquisition, cavity, wall):
    image, label = scan(acquisition, cavity=cavity, wall=wall)
    assert image.shape == label.shape == acquisition.shape and label.dtype == np.uint8
    assert radius(label == LEFT, acquisition) == pytest.approx(cavity, abs=1)
    assert radius(label >= MYOCARDIUM, acquisition) == pytest.approx(cavity + wall, abs=1.2)


@both
def test_the_label_begins_at_the_apex_and_ends_at_the_base(acquisition):
    for base, length in ((20, 58), (33, 70)):
        _, label = scan(acquisition, base=base, length=length)
        slices = np.flatnonzero((label >= MYOCARDIUM).any((0, 1)))
        thickness = acquisition.spacing[2]
        centres = (slices[[0, -1]] - (acquisition.shape[2] - 1) / 2) * thickness
        np.testing.assert_allclose(centres, (base - length, base), atol=thickness)


@both
def test_place_and_turn(acquisition):
    _, label = scan(acquisition, shift_x=-10, shift_y=9)
    np.testing.assert_allclose(middle(label == LEFT, acquisition), (-10, 9), atol=5)
    for turn in (-40, 0, 40):
        _, label = scan(acquisition, turn=turn)
        x, y = middle(label == RIGHT, acquisition) - middle(label == LEFT, acquisition)
        assert np.rad2deg(np.arctan2(-y, -x)) == pytest.approx(turn + 20, abs=20)


def test_slices_fit_but_for_the_breath():
    def jitter(breath):
        """Spread in mm of the ventricle's place about that between its neighbours, over a few scans."""
        acquisition, steps = replace(VOLUME, breath=breath), []
        for seed in range(3):
            _, label = draw_scan(np.random.default_rng(seed), AVERAGE, acquisition)
            centres = [ndimage.center_of_mass(plane) for plane in np.moveaxis(label >= MYOCARDIUM, 2, 0)[7:15]]
            steps.append(np.diff(np.array(centres) * acquisition.spacing[0], n=2, axis=0))
        return np.std(steps) / np.sqrt(6)  # of 1, -2, 1

    assert jitter(0) < 0.3 and jitter(3) == pytest.approx(3, rel=0.3)


def test_the_right_ventricle_grows():
    small, average, large = ((scan(right=size)[1] == RIGHT).sum() for size in (0.75, 1, 1.2))
    assert 1.25 * small < average < large / 1.25


def test_brightness_follows_blood_muscle_and_gamma():
    def ratio(**traits):
        image, label = scan(**traits)
        inside = [ndimage.binary_erosion(label == structure, np.ones((3, 3, 1))) for structure in (LEFT, MYOCARDIUM)]
        return np.median(image[inside[0]]) / np.median(image[inside[1]])

    assert ratio() == pytest.approx(190 / 80, rel=0.1)
    assert ratio(muscle=110) == pytest.approx(190 / 110, rel=0.1)
    assert ratio(gamma=1.4) == pytest.approx((190 / 80) ** 1.4, rel=0.15)


def test_light_falls_off_to_the_back_and_noise_is_as_strong_as_told():
    plain, dark = scan(shading=0)[0], scan(shading=1.2)[0]
    loss = np.log((dark + 5) / (plain + 5)).mean((0, 2))
    assert loss[:8].mean() - loss[-8:].mean() == pytest.approx(1.2, abs=0.35)
    (clean, label), (noisy, _) = scan(noise=0), scan(noise=10)
    inside = label == LEFT
    assert (noisy - clean)[inside].std() == pytest.approx(10, rel=0.2)


def test_papillary_muscles_are_dark_and_belong_to_the_cavity():
    counts = []
    for size in (0.12, 0.26):
        image, label = scan(papillary=size)
        inside = ndimage.binary_erosion(label == LEFT, np.ones((3, 3, 1)))
        counts.append((inside & (image < 0.6 * np.median(image[inside]))).sum())
    assert counts[0] * 1.5 < counts[1] and counts[1] > 20


@both
@pytest.mark.parametrize("turn", [-40, 0, 40])
def test_atria_are_as_bright_as_the_ventricle_and_have_no_label(acquisition, turn):
    image, label = scan(acquisition, turn=turn, cavity=24)
    footprint = (label == LEFT).any(2)
    above = slice(np.flatnonzero(label.any((0, 1)))[-1] + 1, None)
    blood = np.median(image[label == LEFT])
    share = (image[footprint][:, above] > 0.8 * blood).mean()
    assert label[:, :, above].shape[2] >= 1 and not label[:, :, above].any() and share > 0.4
