import numpy as np
import pytest
import torch

from common.losses.moments import Moments, batch_moments, merge_moments


def empty(classes, width, cov="full", dtype=torch.float64):
    shape = {"full": (classes, width, width), "diag": (classes, width)}.get(cov)
    mean = torch.zeros(classes, width, dtype=dtype)
    return Moments(torch.zeros(classes).double(), mean, None if shape is None else torch.zeros(shape, dtype=dtype))


def draw(count, seed, width=3, shift=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.randn(count, width, generator=generator, dtype=dtype) * torch.tensor([1.0, 0.1, 3.0])[:width]


def test_worked_by_hand():
    """Points 0 and 2, then 5: mean 7/3; variance of 0, 2 is 1, of all (0 + 4 + 25)/3 - 49/9 = 38/9."""
    start = empty(1, 1)
    two = batch_moments(torch.tensor([[0.0], [2.0]]).double(), torch.tensor([0, 0]), start)
    assert (two.count.item(), two.mean.item(), two.cov.item()) == (2, 1, 1)
    one = batch_moments(torch.tensor([[5.0]]).double(), torch.tensor([0]), start)
    assert (one.count.item(), one.mean.item(), one.cov.item()) == (1, 5, 0)
    both = merge_moments(two, one)
    assert both.count.item() == 3
    assert both.mean.item() == pytest.approx(7 / 3) and both.cov.item() == pytest.approx(38 / 9)


@pytest.mark.parametrize("cov", ["full", "diag", "none"])
def test_batch_same_as_numpy(cov):
    features, place = draw(50, 0), torch.arange(50) % 4 - 1  # -1, 0, 1, 2; class 3 stays empty
    found = batch_moments(features, place, empty(4, 3, cov))
    for c in range(3):
        rows = features[place == c].numpy()
        np.testing.assert_allclose(found.mean[c], rows.mean(0), atol=1e-12)
        expected = np.cov(rows.T, bias=True)
        if cov != "none":
            np.testing.assert_allclose(found.cov[c], expected if cov == "full" else np.diag(expected), atol=1e-12)
    assert not found.mean[3].any() and (found.cov is None) == (cov == "none")
    assert found.count.tolist() == [13, 12, 12, 0]


@pytest.mark.parametrize("cov", ["full", "diag", "none"])
def test_merge_is_exact_free_of_order_and_associative(cov):
    parts = [batch_moments(draw(n, n, shift=n), torch.zeros(n).long(), empty(1, 3, cov)) for n in (1, 7, 30)]
    rows = np.concatenate([draw(n, n, shift=n).numpy() for n in (1, 7, 30)])
    a, b, c = parts
    for total in (merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(b, c)),
                  merge_moments(merge_moments(c, a), b)):
        assert total.count.item() == 38
        np.testing.assert_allclose(total.mean[0], rows.mean(0), atol=1e-12)
        if cov == "full":
            np.testing.assert_allclose(total.cov[0], np.cov(rows.T, bias=True), atol=1e-11)
        elif cov == "diag":
            np.testing.assert_allclose(total.cov[0], rows.var(0), atol=1e-11)
        else:
            assert total.cov is None


def test_merge_with_nothing_changes_nothing():
    some, none = batch_moments(draw(9, 0), torch.zeros(9).long(), empty(1, 3)), empty(1, 3)
    for total in (merge_moments(some, none), merge_moments(none, some)):
        assert all(torch.equal(t.double(), s.double()) for t, s in zip(total, some, strict=True))
    assert not any(t.any() for t in merge_moments(none, none))


def test_small_variance_far_from_the_origin():
    """In float32 the mean of squares less the squared mean is off by thirty times the variance here."""
    features = 100 + 0.01 * draw(20_000, 0, width=2, dtype=torch.float32)
    found = batch_moments(features, torch.zeros(20_000).long(), empty(1, 2, dtype=torch.float32))
    np.testing.assert_allclose(found.cov[0], np.cov(features.double().numpy().T, bias=True), rtol=1e-4, atol=1e-9)


def test_features_stay_as_they_are():
    features = draw(6, 0)
    before = features.clone()
    batch_moments(features, torch.tensor([0, 1, 0, 1, -1, 0]), empty(2, 3))
    batch_moments(features, torch.zeros(6).long(), empty(2, 3))
    assert torch.equal(features, before)


def test_number_formats():
    place = torch.zeros(5).long()
    half = batch_moments(torch.ones(5, 3, dtype=torch.bfloat16), place, empty(1, 3, dtype=torch.float32))
    assert half.mean.dtype == half.cov.dtype == torch.float32
    double = batch_moments(torch.ones(5, 3), place, empty(1, 3))
    assert double.mean.dtype == torch.float64


def test_packed_and_back():
    for cov in ("full", "diag", "none"):
        some = batch_moments(draw(9, 0), torch.arange(9) % 2, empty(2, 3, cov))
        back = empty(2, 3, cov).unpack(some.packed())
        assert all(s is b is None or torch.equal(s.double(), b) for s, b in zip(some, back, strict=True))


def test_cap():
    """Only where pixels are to be added."""
    some = batch_moments(draw(12, 0), torch.tensor([0] * 7 + [1] * 2 + [2] * 3), empty(3, 3))
    new = batch_moments(draw(2, 1), torch.tensor([0, 1]), empty(3, 3))
    assert some.capped(2, new).count.tolist() == [2, 2, 3] and some.capped(None, new).count.tolist() == [7, 2, 3]
    assert torch.equal(some.capped(2, new).mean, some.mean)
