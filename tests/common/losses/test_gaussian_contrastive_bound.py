"""The Gaussian contrast against the expectation that it bounds, and what it is invariant to."""

import math

import numpy as np
import pytest
import torch

from common.losses.class_statistics import ClassStatistics, GaussianStats
from common.losses.gaussian_contrastive import GaussianContrastiveLoss

TAUS = [0.1, 0.2, 0.5, 1.0, 100.0]


def gaussians(kind="full", classes=3, width=5, size=0.3):
    """Classes with means of length about a half and covariances of trace ``size``, flat along one axis."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(classes, width, generator=draw, dtype=torch.float64) * 0.5 / width**0.5
    root = torch.randn(classes, width, width - 1, generator=draw, dtype=torch.float64)
    cov = root @ root.mT
    cov = cov * (size / cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None])
    cov = {"full": cov, "diag": cov.diagonal(dim1=1, dim2=2), "none": None}[kind]
    return GaussianStats(mean, cov, torch.full((classes,), 9.0).double(), torch.ones(classes).bool())


def pixels(count=20, classes=3, width=5):
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(count, width, generator=draw, dtype=torch.float64)
    return features / features.norm(dim=1, keepdim=True), torch.randint(0, classes, (count,), generator=draw)


def changed(stats, **values):
    return GaussianStats(**{**vars(stats), **values})


def loss(tau=0.5):
    return GaussianContrastiveLoss(tau, reduction="none")


def parts(q, stats, tau):
    """``q.mu_c / tau`` and ``s_c`` of one pixel in numpy, as ``(C,)``."""
    q, mean, cov = (t.numpy() for t in (q, stats.mean, stats.cov))
    cov = cov if cov.ndim == 3 else np.stack([np.diag(c) for c in cov])
    return mean @ q / tau, np.array([q @ c @ q for c in cov]) / tau**2


def exact(q, y, stats, tau):
    """Eq. 4 without sampling: q.q+ / tau is a scalar Gaussian, so that the expectation is one integral."""
    m, s = parts(q, stats, tau)
    negatives = np.logaddexp.reduce(np.delete(m + s / 2, y)) if len(m) > 1 else -np.inf
    nodes, weights = np.polynomial.hermite.hermgauss(96)
    positive = m[y] + math.sqrt(2 * max(s[y], 0)) * nodes
    return (weights * (np.logaddexp(positive, negatives) - positive)).sum() / math.sqrt(math.pi)


def monte_carlo(q, y, stats, tau, draws, seed=0):
    """Eq. 4 with features drawn in all dimensions, by eigen-decomposition and in log space: value, standard error."""
    draw = np.random.default_rng(seed)
    products = []
    for mean, cov in zip(stats.mean.numpy(), stats.cov.numpy(), strict=True):
        variance, axes = np.linalg.eigh(cov)
        noise = draw.standard_normal((draws, len(q))) * np.sqrt(np.clip(variance, 0, None))
        products.append((mean + noise @ axes.T) @ q.numpy() / tau)
    negatives = [np.logaddexp.reduce(b) - math.log(draws) for c, b in enumerate(products) if c != y]
    positive = products[y]
    values = np.logaddexp(positive, np.logaddexp.reduce(negatives)) - positive
    return values.mean(), values.std() / draws**0.5


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("size", [0.0, 0.03, 1.0])
def test_bounds_the_exact_value_from_above(tau, size):
    (features, labels), stats = pixels(6, width=32), gaussians(width=32, size=1.0)
    stats = changed(stats, cov=stats.cov * size)
    found = loss(tau)(features, labels, stats).numpy()
    values = np.array([exact(q, y, stats, tau) for q, y in zip(features, labels, strict=True)])
    assert (found >= values - 1e-12).all()
    if size == 0:
        np.testing.assert_allclose(found, values, rtol=1e-12)
    elif size == 1 and tau == 0.1:
        assert (found - values).mean() > 0.05  # loose where s is large
    elif tau >= 0.5:
        assert (found - values < 0.05 * found).all()


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0])
def test_exact_value_and_bound_against_monte_carlo(tau):
    (features, labels), stats = pixels(3, width=8), gaussians(width=8, size=0.5)
    found = loss(tau)(features, labels, stats)
    for i, (q, y) in enumerate(zip(features, labels, strict=True)):
        value, error = monte_carlo(q, y, stats, tau, 50_000, seed=i)
        assert found[i].item() >= value - 4 * error
        assert abs(exact(q, y, stats, tau) - value) < 5 * error + 1e-3  # the log of a mean is a little low


@pytest.mark.parametrize("tau", [0.3, 1.0])
def test_slack_vanishes_at_the_known_rate(tau):
    """Bound less exact value tends to p_y^2 s_y / 2 with the covariance."""
    (features, labels), stats = pixels(5), gaussians()
    for size, tolerance in ((1e-2, 0.2), (1e-3, 0.02), (1e-4, 2e-3)):
        small = changed(stats, cov=stats.cov * size)
        found = loss(tau)(features, labels, small)
        for i, (q, y) in enumerate(zip(features, labels, strict=True)):
            m, s = parts(q, small, tau)
            p = np.exp(m - np.logaddexp.reduce(m))
            slack = found[i].item() - exact(q, y, small, tau)
            assert slack / (p[y] ** 2 * s[y] / 2) == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize("kind", ["full", "diag"])
def test_never_below_half_the_own_variance(kind):
    """Dropping ``s_y / 2`` would reward a wide class."""
    (features, labels), stats = pixels(50), gaussians(kind, size=1.0)
    for tau in TAUS:
        own = np.array([parts(q, stats, tau)[1][y] for q, y in zip(features, labels, strict=True)])
        assert (own >= 0).all() and (loss(tau)(features, labels, stats).numpy() >= own / 2).all()


def test_one_class_alone_costs_half_its_variance():
    (features, _), stats = pixels(), gaussians(classes=1)
    _, s = zip(*(parts(q, stats, 0.5) for q in features), strict=True)
    found = loss(0.5)(features, torch.zeros(20).long(), stats)
    np.testing.assert_allclose(found, np.concatenate(s) / 2, atol=1e-12)


def test_rotation_changes_nothing_for_the_full_covariance_only():
    (features, labels), stats = pixels(), gaussians()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    turned = changed(stats, mean=stats.mean @ turn.T, cov=turn @ stats.cov @ turn.T)
    value, there = loss()(features, labels, stats), loss()(features @ turn.T, labels, turned)
    torch.testing.assert_close(there, value)
    value, there = (
        loss()(q, labels, changed(known, cov=known.cov.diagonal(dim1=1, dim2=2)))
        for q, known in ((features, stats), (features @ turn.T, turned))
    )
    assert (there - value).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["full", "diag", "none"])
def test_scaling_permuting_and_adding_classes(kind):
    (features, labels), stats = pixels(), gaussians(kind)
    value = loss(0.5)(features, labels, stats)
    torch.testing.assert_close(loss(1.5)(3 * features, labels, stats), value)
    order = torch.tensor([2, 0, 1])
    shuffled = changed(stats, mean=stats.mean[order], cov=None if stats.cov is None else stats.cov[order])
    torch.testing.assert_close(loss(0.5)(features, order.argsort()[labels], shuffled), value)
    fewer = changed(stats, valid=torch.tensor([True, True, False]))
    two = labels < 2
    assert (loss(0.5)(features, labels, fewer)[two] < value[two]).all()


def test_the_gradient_shrinks_features_along_the_axis_in_which_domains_differ():
    """Two domains at +-1 along the first axis: the pooled covariance holds that axis, the gradient step shortens it."""
    draw = torch.Generator().manual_seed(0)
    domain = torch.arange(400) % 2
    labels = torch.arange(400) // 2 % 2
    features = 0.1 * torch.randn(400, 3, generator=draw, dtype=torch.float64)
    features[:, 0] += 2.0 * domain - 1
    features[:, 1] += 2.0 * labels - 1
    stats = ClassStatistics(2, 3, groups=2).double()
    stats.update(features, labels, domain)
    q = features.clone().requires_grad_()
    loss(1.0)(q, labels, stats.pooled()).mean().backward()
    assert ((q.grad * q.detach())[:, 0] > 0).all()
    moved = ClassStatistics(2, 3, groups=2).double()
    moved.update((q - 50 * q.grad).detach(), labels, domain)
    assert moved.between_group_scatter() < stats.between_group_scatter()
    assert stats.pooled().cov[:, 0, 0].tolist() == pytest.approx([1, 1], abs=0.1)
