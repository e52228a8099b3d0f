import numpy as np

from common.phantoms.heart.anatomy import FAR, Canvas


def canvas(step=1.0, reach=24.0):
    axis = np.arange(-reach, reach + step / 2, step, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    noise = np.zeros(points.shape[1:], np.float32)
    return Canvas(points, noise, noise, edge=step)


def test_an_ellipsoid_has_its_place_and_volume():
    one, centre, radii = canvas(), np.array([3.0, -2, 4]), (16.0, 6, 9)
    one.paint(one.ellipsoid(centre, radii), 100, structure=2)
    share = one.shares[2]
    np.testing.assert_allclose(share.sum(), 4 / 3 * np.pi * 16 * 6 * 9, rtol=0.02)
    offsets = (one.points - centre.reshape(3, 1, 1, 1)).reshape(3, -1)
    np.testing.assert_allclose(offsets @ share.ravel() / share.sum(), 0, atol=0.05)
    # the second moments of a solid ellipsoid are a fifth of its squared radii
    np.testing.assert_allclose(np.sqrt(5 * np.square(offsets) @ share.ravel() / share.sum()), radii, rtol=0.03)


def test_edges_are_mixtures_and_shares_sum_to_one():
    one = canvas(step=2.0)
    one.paint(one.ellipsoid((0, 0, 0), (20, 20, FAR)), 60, structure=1)
    one.paint(one.ellipsoid((9, 0, 0), (11, 11, 11)), 200, structure=3)
    np.testing.assert_allclose(one.shares.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(one.image, 60 * one.shares[1] + 200 * one.shares[3], atol=1e-3)
    edge = (one.shares[3] > 0.1) & (one.shares[3] < 0.9)
    assert edge.sum() > 100 and one.shares[3].max() == 1


def test_texture_follows_the_grain_and_what_lies_out_of_view_paints_nothing():
    one = canvas()
    one.grain = np.random.default_rng(0).standard_normal(one.grain.shape).astype(np.float32)
    one.paint(one.ellipsoid((300, 0, 0), (9, 9, 9)), 60, structure=1)
    assert not one.image.any() and not one.shares[1:].any()
    one.paint(np.full_like(one.image, FAR), 50, texture=4)
    np.testing.assert_allclose(one.image, 50 + 4 * one.grain, rtol=1e-5)
