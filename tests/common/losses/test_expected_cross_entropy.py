import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.losses.class_statistics import ClassStatistics
from common.losses.expected_cross_entropy import ExpectedCrossEntropyLoss, margin_tables

KINDS = ["full", "diag", "none"]


def case(kind="full", classes=3, width=5, count=20, shift=True, seed=0, dtype=torch.float64):
    """Features ``(N, A)``, labels, weight, bias, shift and a covariance of full rank but for one axis."""
    draw = torch.Generator().manual_seed(seed)
    rand = lambda *size: torch.randn(*size, generator=draw, dtype=torch.float64)  # noqa: E731
    root = rand(classes, width, width - 1) * 0.5
    cov = root @ root.mT
    cov = {"full": cov, "diag": cov.diagonal(dim1=1, dim2=2).contiguous(), "none": None}[kind]
    features, weight, bias, mean_shift = rand(count, width), rand(classes, width), rand(classes), rand(classes, width)
    labels = torch.randint(0, classes, (count,), generator=draw)
    numbers = [None if t is None else t.to(dtype) for t in (weight, bias, mean_shift if shift else None, cov)]
    return features.to(dtype), labels, *numbers


def as_arrays(weight, mean_shift, cov):
    """In numpy, with zeros and full matrices for what is left out."""
    weight = weight.numpy().astype(np.float64)
    classes, width = weight.shape
    mean_shift = np.zeros((classes, width)) if mean_shift is None else mean_shift.numpy()
    cov = np.zeros((classes, width)) if cov is None else cov.numpy()
    return weight, mean_shift, cov if cov.ndim == 3 else np.stack([np.diag(c) for c in cov])


def naive(features, labels, weight, bias, strength, mean_shift, cov):
    """The formula, one voxel and one class at a time, with the products formed anew for each."""
    weight, mean_shift, cov = as_arrays(weight, mean_shift, cov)
    losses = []
    for f, y in zip(features.numpy(), labels.tolist(), strict=True):
        total = 0.0
        for j in range(len(weight)):
            v = weight[j] - weight[y]
            exponent = sum(v * f) + float(bias[j] - bias[y]) + strength * sum(v * mean_shift[y])
            exponent += strength / 2 * sum(v[a] * cov[y, a, b] * v[b] for a in range(len(v)) for b in range(len(v)))
            total += math.exp(exponent)
        losses.append(math.log(total))
    return np.array(losses)


def loss(reduction="none", max_margin=math.inf):
    return ExpectedCrossEntropyLoss(max_margin, reduction)


def test_value_worked_by_hand():
    """w = 1 and 3; the label 0 is moved by 0.5 with variance 0.25, label 1 by -1 with variance 1; strength 2.

    Tables: (3 - 1) 0.5 = 1 and 4 / 4 = 1; (1 - 3) (-1) = 2 and 4. Margins: 2 + 1 = 3 and 4 + 4 = 8.
    """
    weight, shift, cov = torch.tensor([[1.0], [3.0]]), torch.tensor([[0.5], [-1.0]]), torch.tensor([[0.25], [1.0]])
    linear, quadratic = margin_tables(weight, shift, cov)
    assert linear.tolist() == [[0, 1], [2, 0]] and quadratic.tolist() == [[0, 1], [4, 0]]
    assert loss().margins(weight, 2.0, shift, cov).tolist() == [[0, 3], [8, 0]]
    logits, labels = torch.tensor([[0.5, 1.0], [2.0, -1.0]]), torch.tensor([0, 1])
    expected = [math.log1p(math.exp(3 + 0.5)), math.log1p(math.exp(8 + 3))]
    assert loss()(logits, labels, weight, 2.0, shift, cov).tolist() == pytest.approx(expected)
    assert loss("mean")(logits, labels, weight, 2.0, shift, cov).item() == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.25, 1.5])
def test_same_as_the_naive_loop(kind, shift, strength):
    features, labels, weight, bias, mean_shift, cov = case(kind, shift=shift)
    logits = features @ weight.T + bias
    found = loss()(logits, labels, weight, strength, mean_shift, cov)
    expected = naive(features, labels, weight, bias, strength, mean_shift, cov)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    mean = loss("mean")(logits, labels, weight, strength, mean_shift, cov)
    assert mean.shape == () and mean.dtype == torch.float64 and mean.item() == pytest.approx(expected.mean())
    balanced = loss("class")(logits, labels, weight, strength, mean_shift, cov)
    means = [np.mean([value for value, label in zip(expected, labels.tolist(), strict=True) if label == c])
             for c in set(labels.tolist())]  # fmt: skip
    assert balanced.shape == () and balanced.item() == pytest.approx(np.mean(means))
    single = [t if t is None else t.float() for t in (logits, weight, mean_shift, cov)]
    found = loss()(single[0], labels, single[1], strength, *single[2:])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(20,), (4, 5), (5, 2, 2)])
def test_volumes_are_a_list_of_voxels(size):
    """``(B, K, *spatial)`` with B = 2 gives what the voxels give as ``(N, K)``, value and gradient."""
    features, labels, weight, bias, *moments = case(count=40)
    logits = features @ weight.T + bias
    labels[3] = -1
    flat, grid = logits.clone().requires_grad_(), logits.reshape(2, *size, 3).movedim(-1, 1).clone().requires_grad_()
    expected, found = (loss()(o, y, weight, 0.5, *moments) for o, y in
                       ((flat, labels), (grid, labels.reshape(2, *size))))
    torch.testing.assert_close(found.flatten(), expected)
    steps = torch.linspace(-1, 2, 40).double()
    (expected @ steps).backward()
    (found.flatten() @ steps).backward()
    torch.testing.assert_close(grid.grad.movedim(1, -1).reshape(40, 3), flat.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "class", "none"])
def test_gradcheck(kind, reduction):
    """In the head's weight and bias and in the features; the clamp lies between the margins."""
    features, labels, weight, bias, *moments = case(kind, count=6)
    labels[2] = -1
    margins = loss().margins(weight, 0.7, *moments)
    middle = margins.abs().flatten().sort().values[5:7].mean().item()
    for function in (loss(reduction), loss(reduction, max_margin=middle)):
        assert torch.autograd.gradcheck(
            lambda f, w, b, function=function: function(f @ w.T + b, labels, w, 0.7, *moments),
            [t.clone().requires_grad_() for t in (features, weight, bias)],
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_the_extremes(dtype, kind):
    """Logits, weights and moments as large as float16 has them, or 0, with the clamp and without."""
    features, labels, weight, bias, mean_shift, cov = case(kind, dtype=torch.float32)
    for scale, function in ((6e4, loss("mean", 10.0)), (6e4, loss("mean")), (0.0, loss("mean", 10.0))):
        tensors = (features[:, :3], weight, mean_shift, cov)
        logits, w, *moments = (None if t is None else (t * scale).clamp(-6e4, 6e4).to(dtype) for t in tensors)
        value = function(logits.requires_grad_(), labels, w.requires_grad_(), 1.0, *moments)
        assert torch.isfinite(value) and value >= 0
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        value.backward()
        assert torch.isfinite(logits.grad).all() and logits.grad.dtype == dtype
        if function.max_margin == 10.0:  # else the slope, near the square of 6e4, is beyond float16 itself
            assert torch.isfinite(w.grad).all() and w.grad.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_float32_under_autocast(kind):
    features, labels, weight, bias, *moments = case(kind, dtype=torch.float32)
    logits = (features @ weight.T + bias).bfloat16()
    inputs = [[t.clone().requires_grad_() for t in (logits, weight)] for _ in range(2)]
    value = loss("mean")(inputs[0][0], labels, inputs[0][1], 0.5, *moments)
    value.backward()
    with torch.autocast("cpu", torch.bfloat16):
        under = loss("mean")(inputs[1][0], labels, inputs[1][1], 0.5, *moments)
        tables = margin_tables(weight, *moments)
    under.backward()
    assert under.dtype == torch.float32 and torch.equal(under, value)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*inputs, strict=True))
    for there, here in zip(tables, margin_tables(weight, *moments), strict=True):
        assert there.dtype == torch.float32 and torch.equal(there, here)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "class", "none"])
def test_nothing_to_count_gives_zero_with_zero_gradient(kind, reduction):
    features, labels, weight, bias, *moments = case(kind)
    logits = features @ weight.T + bias
    volume, grid = logits.reshape(4, 5, 3).mT, labels.reshape(4, 5)
    empty = (logits[:0], labels[:0]), (volume[:0], grid[:0]), (volume[..., :0], grid[:, :0])
    for o, y in ((logits, labels - 9), *empty):
        o, w = o.clone().requires_grad_(), weight.clone().requires_grad_()
        value = loss(reduction)(o, y, w, 0.5, *moments)
        assert value.shape == (y.shape if reduction == "none" else ()) and not value.any()
        value.sum().backward()
        assert o.grad.shape == o.shape and not o.grad.any() and not w.grad.any()


def test_ignored_voxels_take_no_part():
    features, labels, weight, bias, *moments = case()
    logits = features @ weight.T + bias
    labels[:3] = torch.tensor([-1, -100, -7])
    inputs = [[t.clone().requires_grad_() for t in (o, weight)] for o in (logits, logits[3:])]
    value, expected = (loss("mean")(o, y, w, 0.5, *moments) for (o, w), y in
                       zip(inputs, (labels, labels[3:]), strict=True))
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    assert not inputs[0][0].grad[:3].any()
    torch.testing.assert_close(inputs[0][0].grad[3:], inputs[1][0].grad)
    torch.testing.assert_close(inputs[0][1].grad, inputs[1][1].grad)
    each = loss()(logits, labels, weight, 0.5, *moments)
    assert not each[:3].any() and (each[3:] > 0).all()


def test_bad_input_is_refused():
    features, labels, weight, bias, shift, cov = case()
    logits = features @ weight.T + bias
    for margin in (0, -1, math.nan):
        with pytest.raises(ValueError, match=f"max_margin must be above 0, got {margin}"):
            loss(max_margin=margin)
    with pytest.raises(ValueError, match="reduction must be one of .*'sum'"):
        loss("sum")
    for strength in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"strength must be a number of at least 0, got {strength}"):
            loss()(logits, labels, weight, strength)
    for o, y, w in ((logits, labels[1:], weight), (logits, labels[:, None], weight), (logits, labels, weight[:2]),
                    (logits[:, 0], labels, weight), (logits[:, :1], labels, weight[:1])):
        with pytest.raises(ValueError, match=r"expected logits \(B, K, \*spatial\) with K of 2 or more, .* got"):
            loss()(o, y, w, 0.5)
    with pytest.raises(ValueError, match="labels must be below 3, found 3"):
        loss()(logits, labels + 1, weight, 0.5)
    with pytest.raises(ValueError, match="labels must be whole numbers, got torch.float64"):
        loss()(logits, labels.double(), weight, 0.5)
    for name, moments in (("mean_shift", (shift[:2], cov)), ("cov", (shift, cov[:, :2])), ("cov", (None, cov[:2]))):
        with pytest.raises(ValueError, match=rf"expected weight \(K, A\), .*{name} \("):
            loss()(logits, labels, weight, 0.5, *moments)
    with pytest.raises(ValueError, match=r"got weight \(3, 5, 1, 1\); of a convolution take weight.flatten\(1\)"):
        loss()(logits, labels, weight[..., None, None], 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_is_cross_entropy(kind):
    features, labels, weight, bias, *moments = case(kind)
    inputs = [[t.clone().requires_grad_() for t in (features, weight, bias)] for _ in range(2)]
    logits = [f @ w.T + b for f, w, b in inputs]
    value, expected = loss("mean")(logits[0], labels, inputs[0][1], 0.0, *moments), F.cross_entropy(logits[1], labels)
    torch.testing.assert_close(value, expected, rtol=1e-15, atol=0)
    value.backward()
    expected.backward()
    for first, second in zip(*inputs, strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-13, atol=1e-15)


def test_an_unseen_class_has_plain_cross_entropy():
    """Statistics hold zeros for a class that they have not met; the others keep their margin."""
    features, labels, weight, bias, shift, _ = case(count=60)
    stats = ClassStatistics(3, 5).double()
    stats.update(features, torch.where(labels == 1, -1, labels))
    shift[1] = 0
    logits = features @ weight.T + bias
    found = loss()(logits, labels, weight, 0.5, shift, stats.pooled().cov)
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found[labels == 1], plain[labels == 1])
    assert ((found - plain)[labels != 1].abs() > 1e-3).any() and torch.isfinite(found).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_added_to_all_weights_leaves_the_margins(kind):
    _, _, weight, _, *moments = case(kind)
    moved = weight + torch.linspace(-3, 4, 5).double()
    for there, here in zip(margin_tables(moved, *moments), margin_tables(weight, *moments), strict=True):
        torch.testing.assert_close(there, here, rtol=1e-12, atol=1e-12)
        assert not here.diagonal().any()


def test_diagonal_same_as_full_with_a_diagonal_and_only_then():
    _, _, weight, _, shift, cov = case("diag")
    torch.testing.assert_close(margin_tables(weight, shift, cov), margin_tables(weight, shift, torch.diag_embed(cov)))
    full = case("full")[5]
    torch.testing.assert_close(full.diagonal(dim1=1, dim2=2), cov)
    assert (margin_tables(weight, None, full)[1] - margin_tables(weight, None, cov)[1]).abs().max() > 0.1


def test_tables_of_what_is_left_out_are_zero():
    _, _, weight, _, shift, cov = case()
    linear, quadratic = margin_tables(weight, shift, cov)
    assert torch.equal(margin_tables(weight, shift, None)[0], linear)
    assert torch.equal(margin_tables(weight, None, cov)[1], quadratic)
    for table in (margin_tables(weight, None, cov)[0], margin_tables(weight, shift, None)[1]):
        assert table.shape == (3, 3) and not table.any()
    assert [t.dtype for t in margin_tables(weight.half(), shift, cov)] == [torch.float32] * 2


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_lies_above_the_monte_carlo_mean(strength, shift):
    features, labels, weight, bias, mean_shift, cov = case(count=4, width=8, classes=4, shift=shift)
    found = loss()(features @ weight.T + bias, labels, weight, strength, mean_shift, cov)
    w, moved, spread = as_arrays(weight, mean_shift, cov)
    draw = np.random.default_rng(0)
    for i, (f, y) in enumerate(zip(features.numpy(), labels.tolist(), strict=True)):
        variance, axes = np.linalg.eigh(spread[y])
        noise = draw.standard_normal((50_000, len(f))) * np.sqrt(strength * np.clip(variance, 0, None)) @ axes.T
        logits = (f + strength * moved[y] + noise) @ w.T + bias.numpy()
        values = np.logaddexp.reduce(logits, axis=1) - logits[:, y]
        assert found[i].item() >= values.mean() - 4 * values.std() / len(values) ** 0.5
        if not shift:  # a convex function of a change of mean 0; with a shift it can go either way
            assert values.mean() >= np.logaddexp.reduce(w @ f + bias.numpy()) - w[y] @ f - bias[y].item() - 0.05


def test_bounds_the_exact_value_and_meets_it_without_variance():
    """With two classes the expectation is one integral, of log(1 + e^z) for a Gaussian z."""
    features, labels, weight, bias, shift, cov = case(count=30, classes=2)
    nodes, weights = np.polynomial.hermite.hermgauss(96)
    w, moved, _ = as_arrays(weight, shift, cov)
    for size in (0.0, 0.01, 1.0):
        found = loss()(features @ weight.T + bias, labels, weight, 0.5, shift, cov * size).numpy()
        exact = []
        for f, y in zip(features.numpy(), labels.tolist(), strict=True):
            v = w[1 - y] - w[y]
            mean = v @ (f + 0.5 * moved[y]) + (bias[1 - y] - bias[y]).item()
            z = mean + math.sqrt(2 * 0.5 * size * max(v @ cov[y].numpy() @ v, 0)) * nodes
            exact.append((weights * np.logaddexp(0, z)).sum() / math.sqrt(math.pi))
        assert (found >= np.array(exact) - 1e-12).all()
        if size == 0:
            np.testing.assert_allclose(found, exact, rtol=1e-12)
        else:
            assert (found - exact).max() > 1e-3 * size


@pytest.mark.parametrize("kind", KINDS)
def test_weight_learns_by_the_margin(kind):
    """With logits held constant only the tables lead to the weight; the moments never learn."""
    features, labels, weight, bias, shift, cov = case(kind)
    logits = features @ weight.T + bias
    moments = [None if t is None else t.clone().requires_grad_() for t in (shift if kind == "none" else None, cov)]
    weight.requires_grad_()
    loss("mean")(logits, labels, weight, 0.5, *moments).backward()
    assert (weight.grad.abs() > 1e-4).all() and all(t is None or t.grad is None for t in moments)


def test_margins_are_clamped_on_both_sides():
    features, labels, weight, bias, shift, cov = case()
    shift = shift * 10
    free, margins = (loss(max_margin=m).margins(weight, 0.5, shift, cov) for m in (math.inf, 1.5))
    assert free.min() < -1.5 and free.max() > 1.5 and (free.abs() < 1.5).sum() > 3
    torch.testing.assert_close(margins, free.clip(-1.5, 1.5))
    logits = features @ weight.T + bias
    value = loss("mean", max_margin=1.5)(logits, labels, weight, 0.5, shift, cov)
    torch.testing.assert_close(value, F.cross_entropy(logits + margins[labels], labels))
    value = ExpectedCrossEntropyLoss(1e-9)(logits, labels, weight.requires_grad_(), 0.5, shift, cov)
    value.backward()  # all margins at the clamp
    assert not weight.grad.any()


class Tagged(torch.Tensor):
    """Hands its type on to all that is made of it, as MONAI's MetaTensor does."""


def test_any_layout_label_type_and_meta_data():
    features, labels, weight, bias, *moments = case()
    logits = features @ weight.T + bias
    value = loss()(logits, labels, weight, 0.5, *moments)
    for o in (logits.T.contiguous().T, torch.stack((logits, logits), dim=2)[..., 0]):
        assert not o.is_contiguous()
        torch.testing.assert_close(loss()(o, labels, weight, 0.5, *moments), value)
    for small in (torch.uint8, torch.int32):
        assert torch.equal(loss()(logits, labels.to(small), weight, 0.5, *moments), value)
    tagged = logits.clone().as_subclass(Tagged).requires_grad_()
    found = loss()(tagged, labels.as_subclass(Tagged), weight, 0.5, *moments)
    assert type(found) is torch.Tensor and torch.equal(found, value)
    found.sum().backward()
    assert tagged.grad is not None


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
def test_nothing_larger_than_the_logits_is_made(kind):
    """Neither a product per voxel and pair of classes nor one per voxel and pair of features."""
    features, labels, weight, bias, *moments = case(kind, classes=4, width=6, count=2000)
    logits = (features @ weight.T + bias).reshape(2, 10, 100, 4).movedim(-1, 1).contiguous().requires_grad_()
    with Largest() as largest:
        loss("mean")(logits, labels.reshape(2, 10, 100), weight.requires_grad_(), 0.5, *moments).backward()
    assert largest.numel == logits.numel()
