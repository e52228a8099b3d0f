import math

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from common.losses import gaussian_contrastive
from common.losses.class_statistics import GaussianStats
from common.losses.gaussian_contrastive import GaussianContrastiveLoss

KINDS = ["full", "diag", "none"]


def gaussians(kind="full", classes=3, width=5, seed=0, size=0.3, dtype=torch.float64):
    """Classes with means of length about a half and covariances of trace ``size``, of full rank but for one axis."""
    draw = torch.Generator().manual_seed(seed)
    mean = torch.randn(classes, width, generator=draw, dtype=torch.float64) * 0.5 / width**0.5
    root = torch.randn(classes, width, max(width - 1, 1), generator=draw, dtype=torch.float64)
    cov = root @ root.mT
    cov = (cov * (size / cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None])).to(dtype)
    cov = {"full": cov, "diag": cov.diagonal(dim1=1, dim2=2).contiguous(), "none": None}[kind]
    return GaussianStats(mean.to(dtype), cov, torch.full((classes,), 9.0).double(), torch.ones(classes).bool())


def pixels(count=20, classes=3, width=5, seed=1, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=draw, dtype=torch.float64)
    features = features / features.norm(dim=1, keepdim=True)
    return features.to(dtype), torch.randint(0, classes, (count,), generator=draw)


def changed(stats, **values):
    return GaussianStats(**{**vars(stats), **values})


def parts(q, stats, tau):
    """``q.mu_c / tau`` and ``s_c`` of one pixel in numpy, as ``(C,)``."""
    q, mean = q.numpy(), stats.mean.numpy()
    if stats.cov is None:
        cov = np.zeros((len(mean), len(q), len(q)))
    else:
        cov = np.stack([c if c.ndim == 2 else np.diag(c) for c in stats.cov.numpy()])
    s = np.array([sum(c[a, b] * q[a] * q[b] for a in range(len(q)) for b in range(len(q))) for c in cov])
    return mean @ q / tau, s / tau**2


def naive(features, labels, stats, tau):
    """The formula, one pixel at a time."""
    losses = []
    for q, y in zip(features, labels, strict=True):
        m, s = parts(q, stats, tau)
        losses.append(math.log(sum(math.exp(value) for value in m + s / 2)) - m[y])
    return np.array(losses)


def autograd(features, labels, stats, tau):
    """Loss per pixel by plain differentiable operations that share nothing with the code under test."""
    cov = torch.zeros(stats.mean.shape[1]) if stats.cov is None else stats.cov
    cov = torch.diag_embed(cov) if cov.ndim < 3 else cov
    s = (features[:, None, None, :] @ cov.expand(len(stats.mean), -1, -1).to(features.dtype)
         @ features[:, None, :, None])[..., 0, 0] / tau**2
    z = features @ stats.mean.T / tau + s / 2
    own = torch.nn.functional.one_hot(labels, len(stats.mean)).bool()
    return -torch.log_softmax(z, dim=1)[own] + s[own] / 2


def loss(tau=0.5, reduction="none"):
    return GaussianContrastiveLoss(tau, reduction)


@pytest.fixture
def chunks(monkeypatch):
    """Several of them, the last one not full."""
    monkeypatch.setattr(gaussian_contrastive, "CHUNK", 6)


def test_value_worked_by_hand():
    """One feature, q = 2: q.mu = (2, 0), s = 4 (0.5, 0.25) = (2, 1), so z = (3, 0.5); at tau 2 halves and quarters."""
    stats = GaussianStats(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.25]]), torch.ones(2), torch.ones(2) > 0)
    q, labels = torch.tensor([[2.0], [2.0]]), torch.tensor([0, 1])
    total = math.log(math.exp(3) + math.exp(0.5))
    assert loss(1)(q, labels, stats).tolist() == pytest.approx([total - 2, total])
    total = math.log(math.exp(1 + 0.25) + math.exp(0.125))
    assert loss(2)(q, labels, stats).tolist() == pytest.approx([total - 1, total])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0, 100.0])
def test_same_as_the_naive_loop(kind, tau):
    (features, labels), stats = pixels(), gaussians(kind)
    found = loss(tau)(features, labels, stats)
    np.testing.assert_allclose(found, naive(features, labels, stats, tau), rtol=1e-12)
    assert found.dtype == torch.float64


def test_reductions():
    (features, labels), stats = pixels(classes=2), gaussians()
    labels[0], labels[1] = -1, 2
    values = naive(features[1:], labels[1:], stats, 0.5)
    mean = GaussianContrastiveLoss()(features, labels, stats)
    assert mean.item() == pytest.approx(values.mean()) and mean.shape == ()
    balanced = loss(reduction="class")(features, labels, stats).item()
    assert balanced == pytest.approx(np.mean([values[labels[1:] == c].mean() for c in range(3)]))
    labels[labels == 1] = 0  # class 1 is known but absent here
    values = naive(features[1:], labels[1:], stats, 0.5)
    balanced = loss(reduction="class")(features, labels, stats).item()
    assert balanced == pytest.approx(np.mean([values[labels[1:] == c].mean() for c in (0, 2)]))
    each = loss()(features, labels, stats)
    assert each[0] == 0 and each[1:].tolist() == pytest.approx(values)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["pixel", "class", "none"])
@pytest.mark.parametrize("tau", [0.1, 0.5, 100.0])
def test_closed_gradient_same_as_autograd(kind, reduction, tau):
    (features, labels), stats = pixels(), gaussians(kind)
    weight = {
        "pixel": torch.full((20,), 1 / 20, dtype=torch.float64),
        "class": 1 / (3 * torch.bincount(labels)[labels].double()),
        "none": torch.linspace(-1, 2, 20, dtype=torch.float64),
    }[reduction]
    first, second = features.clone().requires_grad_(), features.clone().requires_grad_()
    value = loss(tau, reduction)(first, labels, stats)
    (value @ weight if reduction == "none" else value).backward()
    (autograd(second, labels, stats, tau) @ weight).backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["pixel", "class", "none"])
def test_gradcheck(kind, reduction):
    (features, labels), stats = pixels(7), gaussians(kind)
    labels[2] = -1
    stats = changed(stats, valid=torch.tensor([True, True, False]))
    function = loss(0.4, reduction)
    assert torch.autograd.gradcheck(lambda q: function(q, labels, stats), features.requires_grad_())


def test_can_be_differentiated_once_but_repeatedly():
    (features, labels), stats = pixels(), gaussians()
    value = GaussianContrastiveLoss()(features.requires_grad_(), labels, stats)
    (first,) = torch.autograd.grad(value, features, retain_graph=True)
    (second,) = torch.autograd.grad(value, features, retain_graph=True)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, features, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_the_extremes(dtype, kind):
    """Features as large as float16 has them, of length 0, and means, covariances and temperatures of all sizes."""
    features, labels = pixels()
    for scale, tau in ((6e4, 1.0), (0.0, 0.1), (1.0, 1e-3), (1.0, 1e4)):
        q = (features * scale).to(dtype).requires_grad_()
        stats = gaussians(kind, dtype=torch.float32)
        value = loss(tau, reduction="pixel")(q, labels, stats)
        assert torch.isfinite(value) and value >= 0
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        value.backward()
        assert torch.isfinite(q.grad).all() and q.grad.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_float32_under_autocast_forwards_and_backwards(kind):
    (features, labels), stats = pixels(dtype=torch.float32), gaussians(kind, dtype=torch.float32)
    plain, cast = features.clone().requires_grad_(), features.clone().requires_grad_()
    value = GaussianContrastiveLoss()(plain, labels, stats)
    value.backward()
    with torch.autocast("cpu", torch.bfloat16):
        under = GaussianContrastiveLoss()(cast, labels, stats)
        under.backward()
    assert torch.equal(under, value) and torch.equal(cast.grad, plain.grad)


@pytest.mark.parametrize("tau", [0.1, 0.5, 100.0])
def test_float32_close_to_float64(tau):
    (features, labels), stats = pixels(500, width=32), gaussians(width=32, size=1.0)
    single = GaussianStats(stats.mean.float(), stats.cov.float(), stats.count, stats.valid)
    first, second = features.float().requires_grad_(), features.clone().requires_grad_()
    for q, known in ((first, single), (second, stats)):
        q.value = loss(tau, reduction="pixel")(q, labels, known)
        q.value.backward()
    assert first.value.item() == pytest.approx(second.value.item(), rel=1e-5)
    assert (first.grad - second.grad).abs().max() < 1e-5 * second.grad.abs().max()


@pytest.mark.parametrize("reduction", ["pixel", "class", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_count_gives_zero_with_zero_gradient(kind, reduction):
    (features, labels), stats = pixels(), gaussians(kind)
    unseen = changed(stats, valid=torch.zeros(3).bool())
    for q, y, known in ((features, labels - 5, stats), (features, labels, unseen), (features[:0], labels[:0], stats)):
        q = q.clone().requires_grad_()
        value = loss(reduction=reduction)(q, y, known)
        value.sum().backward()
        assert not value.any() and value.shape == ((len(q),) if reduction == "none" else ())
        assert q.grad.shape == q.shape and not q.grad.any()


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["pixel", "class", "none"])
def test_ignored_pixels_and_unseen_classes_take_no_part(kind, reduction):
    """As if the pixels were not there, whatever they hold, and as if the classes had never been."""
    (features, labels), stats = pixels(classes=4), gaussians(kind, classes=4)
    stats.mean[1] = float("nan")
    stats = changed(stats, valid=torch.tensor([True, False, True, True]))
    labels[:3] = torch.tensor([-1, -100, 1])
    features[0] = float("nan")
    keep = (labels >= 0) & (labels != 1)
    first, second = features.clone().requires_grad_(), features[keep].clone().requires_grad_()
    value = loss(reduction=reduction)(first, labels, stats)
    others = torch.tensor([0, 2, 3])
    left = GaussianStats(stats.mean[others], None if stats.cov is None else stats.cov[others], *[torch.ones(3) > 0] * 2)
    expected = loss(reduction=reduction)(second, torch.tensor([0, 9, 1, 2])[labels[keep]], left)
    torch.testing.assert_close(value[keep] if reduction == "none" else value, expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(first.grad[keep], second.grad)
    assert not first.grad[~keep].any()


def test_bad_input_is_refused():
    (features, labels), stats = pixels(), gaussians()
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        loss(0)
    with pytest.raises(ValueError, match="reduction must be one of .*'mean'"):
        loss(reduction="mean")
    for q, y in ((features[:, :4], labels), (features[:9], labels), (features, labels[:, None]), (features[0], labels)):
        with pytest.raises(ValueError, match=r"expected features \(N, 5\) and labels \(N,\), got"):
            loss()(q, y, stats)
    with pytest.raises(ValueError, match="labels must be below 3, found 3"):
        loss()(features, labels + 1, stats)
    with pytest.raises(ValueError, match="labels must be whole numbers, got torch.float64"):
        loss()(features, labels.double(), stats)


@pytest.mark.parametrize("kind", KINDS)
def test_without_covariance_it_is_cross_entropy_over_prototypes(kind):
    (features, labels), stats = pixels(), gaussians(kind)
    expected = torch.nn.functional.cross_entropy(features @ stats.mean.T / 0.5, labels)
    zero = changed(stats, cov=None if stats.cov is None else torch.zeros_like(stats.cov))
    torch.testing.assert_close(GaussianContrastiveLoss()(features, labels, zero), expected)


def test_diagonal_same_as_full_with_a_diagonal():
    (features, labels), stats = pixels(), gaussians("diag")
    first, second = features.clone().requires_grad_(), features.clone().requires_grad_()
    values = [GaussianContrastiveLoss()(q, labels, known)
              for q, known in ((first, stats), (second, changed(stats, cov=torch.diag_embed(stats.cov))))]
    torch.testing.assert_close(*values)
    for value in values:
        value.backward()
    torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 20, 1000])
def test_the_chunk_size_changes_nothing(kind, chunk, monkeypatch):
    (features, labels), stats = pixels(), gaussians(kind)
    first, second = features.clone().requires_grad_(), features.clone().requires_grad_()
    values = [GaussianContrastiveLoss()(first, labels, stats)]
    monkeypatch.setattr(gaussian_contrastive, "CHUNK", chunk)
    values.append(GaussianContrastiveLoss()(second, labels, stats))
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    for value in values:
        value.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-12, atol=1e-15)


def test_asymmetry_from_rounding_does_not_reach_the_gradient():
    """The closed gradient holds for symmetric matrices; any other has the same form as its symmetric part."""
    (features, labels), stats = pixels(), gaussians()
    skew = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    first, second = features.clone().requires_grad_(), features.clone().requires_grad_()
    GaussianContrastiveLoss()(first, labels, stats).backward()
    GaussianContrastiveLoss()(second, labels, changed(stats, cov=stats.cov + skew - skew.T)).backward()
    torch.testing.assert_close(first.grad, second.grad)


def test_a_form_below_zero_counts_as_zero():
    features = torch.tensor([[1.0, 0.0]])
    for cov in (torch.tensor([[[-1e-6, 0], [0, 1]]]), -torch.ones(1, 2)):
        stats = GaussianStats(torch.zeros(1, 2), cov, torch.ones(1), torch.ones(1) > 0)
        assert loss(0.01)(features, torch.tensor([0]), stats).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_detached_and_stay_as_they_are(kind):
    (features, labels), stats = pixels(), gaussians(kind)
    tensors = [t for t in (stats.mean, stats.cov) if t is not None]
    before = [t.clone() for t in (*tensors, features)]
    stats.mean.requires_grad_()
    GaussianContrastiveLoss()(features.requires_grad_(), labels, stats).backward()
    assert stats.mean.grad is None
    assert all(torch.equal(old, now.detach()) for old, now in zip(before, (*tensors, features), strict=True))


def test_features_of_any_layout():
    (features, labels), stats = pixels(), gaussians()
    turned, sliced = features.T.contiguous().T, torch.stack((features, features), dim=2)[..., 0]
    value = GaussianContrastiveLoss()(features, labels, stats)
    for q in (turned, sliced):
        assert not q.is_contiguous()
        torch.testing.assert_close(GaussianContrastiveLoss()(q, labels, stats), value)
    one = features[:1].expand(20, 5).requires_grad_()
    GaussianContrastiveLoss()(one, labels, stats).backward()
    for small in (torch.uint8, torch.int32):
        assert torch.equal(GaussianContrastiveLoss()(features, labels.to(small), stats), value)


class Tagged(torch.Tensor):
    """Hands its type on to all that is made of it, as MONAI's MetaTensor does."""


@pytest.mark.parametrize("reduction", ["pixel", "class", "none"])
def test_features_and_labels_with_meta_data(reduction):
    (features, labels), stats = pixels(), gaussians()
    labels[3] = -1
    first, second = features.clone().as_subclass(Tagged).requires_grad_(), features.clone().requires_grad_()
    pairs = ((first, labels.as_subclass(Tagged)), (second, labels))
    values = [loss(reduction=reduction)(*pair, stats) for pair in pairs]
    assert type(values[0]) is torch.Tensor and torch.equal(*values)
    for value in values:
        value.sum().backward()
    assert torch.equal(first.grad.as_subclass(torch.Tensor), second.grad)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made inside had."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_larger_than_the_features_is_made_or_kept(kind, monkeypatch):
    monkeypatch.setattr(gaussian_contrastive, "CHUNK", 50)
    (features, labels), stats = pixels(300, classes=6, width=4), gaussians(kind, classes=6, width=4)
    kept = []
    with Largest() as largest, saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        GaussianContrastiveLoss()(features.requires_grad_(), labels, stats).backward()
    assert largest.numel == features.numel() and sum(kept) <= features.numel() + 10
    with Largest() as largest, torch.no_grad():  # and no gradient where nobody asks
        GaussianContrastiveLoss()(features, labels, stats)
    assert largest.numel <= 300
