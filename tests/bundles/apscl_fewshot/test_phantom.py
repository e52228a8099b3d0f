import numpy as np
import pytest

from apscl_fewshot.phantom import FAR, Canvas, smooth_noise


def canvas(step=1.0, reach=24.0):
    axis = np.arange(-reach, reach + step / 2, step, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    noise = np.zeros(points.shape[1:], np.float32)
    return Canvas(points, noise, noise, edge=step, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("turn", "tilt"), [(0, 0), (35, 0), (0, 50), (-20, 30)])
def test_an_ellipsoid_has_its_place_volume_and_direction(turn, tilt):
    one, centre, radii = canvas(), np.array([3.0, -2, 4]), (16.0, 6, 9)
    one.paint(one.ellipsoid(centre, radii, turn, tilt), 100, organ=2)
    share = one.shares[2]
    np.testing.assert_allclose(share.sum(), 4 / 3 * np.pi * 16 * 6 * 9, rtol=0.02)
    offsets = (one.points - centre.reshape(3, 1, 1, 1)).reshape(3, -1)
    np.testing.assert_allclose(offsets @ share.ravel() / share.sum(), 0, atol=0.05)
    # the second moments of a solid ellipsoid are a fifth of its squared radii, along its own axes
    moments, axes = np.linalg.eigh(offsets * share.ravel() @ offsets.T / share.sum())
    np.testing.assert_allclose(np.sqrt(5 * moments), sorted(radii), rtol=0.03)
    a, b = np.deg2rad([turn, tilt])
    longest = [np.cos(b) * np.cos(a), np.cos(b) * np.sin(a), np.sin(b)]
    assert abs(axes[:, -1] @ longest) > 0.999


def test_edges_are_mixtures_and_shares_sum_to_one():
    one = canvas(step=2.0)
    one.paint(one.ellipsoid((0, 0, 0), (20, 20, FAR)), 60, organ=1)
    one.paint(one.ellipsoid((9, 0, 0), (11, 11, 11)), 200, organ=3)
    np.testing.assert_allclose(one.shares.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(one.image, 60 * one.shares[1] + 200 * one.shares[3], atol=1e-3)
    edge = (one.shares[3] > 0.1) & (one.shares[3] < 0.9)
    assert edge.sum() > 100 and one.shares[3].max() == 1


def test_what_lies_outside_the_view_paints_nothing():
    one = canvas()
    one.paint(one.ellipsoid((300, 0, 0), (9, 9, 9)), 60, organ=1)
    assert not one.image.any() and not one.shares[1].any()


def test_smooth_noise_is_smooth_in_millimetres():
    noise = smooth_noise(np.random.default_rng(0), (32, 32, 64), (2.0, 2.0, 1.0), sigma=3)
    assert abs(noise.mean()) < 1e-5 and abs(noise.std() - 1) < 1e-5
    # white noise smoothed with sigma s has the correlation exp(-d^2 / 4 s^2) at the distance d
    for axis, step in ((0, 2), (2, 4)):
        assert abs((noise * np.roll(noise, step, axis)).mean() - np.exp(-16 / 36)) < 0.1
