"""Which vectors are pulled to a class and which pushed from it, and the loss on them, against loops and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffcl_ssl.propagation_loss import LabelPropagationLoss, _select

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OPTIONS = [{}, {"temperature": 1.3}]


def make(**options):
    return LabelPropagationLoss(**{"min_bank": 1, **options})


def make_case(sizes=(5, 7, 9), count=40, width=4, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    rand = lambda *size: torch.randn(*size, generator=draw, dtype=torch.float64).to(dtype)  # noqa: E731
    anchors = [rand(size, width) + 2 * torch.eye(len(sizes), width, dtype=dtype)[c] for c, size in enumerate(sizes)]
    return anchors, rand(count, width)


def naive(anchors, vectors, temperature=0.1, min_bank=1):
    """The docstring's formula, one cosine after the other; also the positives and negatives of each class."""
    known = [a.tolist() for a in anchors if len(a) >= min_bank]
    dot = lambda a, b: sum(x * y for x, y in zip(a, b, strict=True))  # noqa: E731
    cos = lambda a, b: dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))  # noqa: E731
    s = [[sum(cos(a, b) for a in members) / len(members) for members in known] for b in vectors.tolist()]
    values, chosen = [], []
    for c in range(len(known)):
        ranked = sorted(range(len(s)), key=lambda j, c=c: s[j][c])
        top, low = ranked[len(s) - len(s) // 10 :], ranked[: len(s) * 3 // 10]
        top = [j for j in top if s[j][c] == max(s[j])]
        chosen.append((set(top), set(low)))
        if top and low:
            pushed = sum(math.exp(s[n][c] / temperature) for n in low)
            own = [math.exp(s[p][c] / temperature) for p in top]
            values.append(sum(-math.log(e / (e + pushed)) for e in own) / len(own))
    return sum(values) / len(values), chosen


def test_value_worked_by_hand():
    """Anchors of class 0 at 0 and 90 degrees, of class 1 at 180; vectors at 45, 180, -45 and 0, and six more at 0.

    Means of the cosines with class 0: 1/sqrt 2, -0.5, 0, and 0.5 seven times; with class 1: -1/sqrt 2, 1, -1/sqrt 2,
    and -1 seven times. Of ten vectors one is positive and three are negative: class 0 pulls the first and pushes the
    second, the third, which is its own, and one of those at 0, its own too; class 1 pulls the second and pushes three
    of those at 0.
    """
    anchors = [torch.tensor([[3.0, 0], [0, 0.5]]), torch.tensor([[-2.0, 0]])]
    vectors = torch.tensor([[2.0, 2], [-1, 0], [0.1, -0.1], *[[1, 0]] * 7])
    tau = 0.5
    first = math.log1p(sum(math.exp(s / tau) for s in (-0.5, 0, 0.5)) / math.exp(1 / math.sqrt(2) / tau))
    second = math.log1p(3 * math.exp(-1 / tau) / math.exp(1 / tau))
    loss, log = make(temperature=tau)(anchors, vectors)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)
    assert log["positives"].item() == pytest.approx(2 / 10) and log["own_negatives"].item() == pytest.approx(2 / 6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sizes", [(5, 7, 9), (5,), (5, 0, 9), (2, 7, 9)])
def test_same_as_the_naive_loop(options, sizes):
    """Also with one class alone, an empty one, and one of too few anchors, which is as if it were not there."""
    anchors, vectors = make_case(sizes)
    options = {"min_bank": 3, **options}
    loss, log = LabelPropagationLoss(**options)(anchors, vectors)
    expected, chosen = naive(anchors, vectors, **options)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    pulled = set().union(*(top for top, _ in chosen))
    assert log["positives"].item() == pytest.approx(len(pulled) / len(vectors))
    single = LabelPropagationLoss(**options)([a.float() for a in anchors], vectors.float())[0]
    assert single.dtype == torch.float32 and single.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient(options):
    """In the vectors alone, between two changes of the selection; the anchors are constants."""
    anchors, vectors = make_case(count=20)
    for part in (*anchors, vectors):
        part.requires_grad_()
    loss = make(**options)
    assert torch.autograd.gradcheck(lambda b: loss(anchors, b)[0], vectors)
    loss(anchors, vectors)[0].backward()
    assert all(a.grad is None for a in anchors) and vectors.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1e4])
@pytest.mark.parametrize("scale", [6e4, 0.0])
def test_finite_at_the_extremes(dtype, temperature, scale):
    anchors, vectors = make_case(dtype=torch.float32)
    anchors = [(scale * a).clamp(-6e4, 6e4).to(dtype) for a in anchors]
    vectors = (scale * vectors).clamp(-6e4, 6e4).to(dtype).requires_grad_()
    loss, log = make(temperature=temperature)(anchors, vectors)
    loss.backward()
    assert loss.isfinite() and all(value.isfinite() for value in log.values())
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert vectors.grad.isfinite().all()
    # without a direction all cosines are 0: every positive is the log of itself and the negatives
    assert scale or loss.item() == pytest.approx(math.log(1 + 12), rel=1e-6)


def test_float32_under_autocast():
    anchors, vectors = make_case(dtype=torch.float32)
    vectors.requires_grad_()
    expected = make()(anchors, vectors)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = make()(anchors, vectors)[0]
    assert torch.equal(loss, expected) and loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("sizes", "count", "options"),
    [((5, 5), 0, {}), ((0, 0), 40, {}), ((5, 5), 40, {"min_bank": 6}), ((5, 5), 9, {}), ((5, 5), 1, {}), ((), 5, {})],
)  # fmt: skip
def test_nothing_to_count_gives_zero_with_zero_gradient(sizes, count, options):
    """No vectors, no anchors, too few of either."""
    anchors, vectors = make_case(sizes, count)
    vectors.requires_grad_()
    loss, log = make(**options)(anchors, vectors)
    loss.backward()
    assert loss.item() == 0 and loss.shape == () and (vectors.grad == 0).all() and vectors.grad.shape == vectors.shape
    assert set(log) == {"positives", "own_negatives"} and all(value.isfinite() for value in log.values())


def test_bad_input_is_refused():
    for options in ({"temperature": 0}, {"min_bank": 0}):
        with pytest.raises(ValueError, match="temperature and min_bank must be positive, got"):
            make(**options)
    anchors, vectors = make_case()
    for parts in (([anchors[0], anchors[1][:, :3], anchors[2][0]], vectors), (anchors, vectors[0])):
        with pytest.raises(ValueError, match=r"expected vectors \(N, D\) and anchors \(M, D\) of each class, got \("):
            make()(*parts)
    with pytest.raises(ValueError, match=r"class 1: \(7, 3\), class 2: \(4,\)"):
        make()([anchors[0], anchors[1][:, :3], anchors[2][0]], vectors)


# --- what it is for ---


def selected(anchors, vectors):
    """Positives and negatives of each class."""
    unit = [F.normalize(a, dim=1).mean(0) for a in anchors]
    positive, negative, _ = _select(F.normalize(vectors, dim=1) @ torch.stack(unit).T)
    return positive, negative


@pytest.mark.parametrize("alike", [True, False])
def test_no_vector_is_pulled_to_two_classes_or_both_ways(alike):
    """Also where all vectors are the same, and all classes."""
    anchors, vectors = make_case(count=30)
    if alike:
        anchors, vectors = [anchors[0]] * 3, vectors[:1].expand(30, -1)
    positive, negative = selected(anchors, vectors)
    assert (positive.sum(1) <= 1).all() and not (positive & negative).any()
    assert alike or positive.any(0).all()


def test_a_step_pulls_positives_and_pushes_negatives():
    anchors, vectors = make_case()
    vectors = F.normalize(vectors, dim=1).requires_grad_()
    make()(anchors[:1], vectors)[0].backward()
    positive, negative = selected(anchors[:1], vectors.detach())
    mean = F.normalize(anchors[0], dim=1).mean(0)
    along = -vectors.grad @ mean
    assert (along[positive[:, 0]] > 0).all() and (along[negative[:, 0]] < 0).all()
    assert (vectors.grad[~(positive | negative)[:, 0]] == 0).all() and positive.sum() == 4 and negative.sum() == 12


def test_lower_for_separated_than_for_mixed_clusters():
    draw = torch.Generator().manual_seed(0)
    axes = torch.eye(3, 8)

    def clusters(spread, count):
        return axes.repeat_interleave(count, 0) + spread * torch.randn(3 * count, 8, generator=draw)

    def found(spread):
        return make()(clusters(spread, 50).split(50), clusters(spread, 100))[0].item()

    losses = [found(spread) for spread in (0.02, 0.3, 1.0, 10.0)]
    assert losses == sorted(losses) and losses[0] < 0.02 < 1 < losses[-1]


def test_a_class_that_covers_most_vectors_pushes_its_own():
    """What the share of own negatives warns of: nine in ten vectors are background, and it pushes three in ten."""
    axes, draw = torch.eye(2, 4), torch.Generator().manual_seed(0)
    vectors = axes.repeat_interleave(torch.tensor([90, 10]), 0) + 0.01 * torch.randn(100, 4, generator=draw)
    _, log = make()([axes[:1], axes[1:]], vectors)
    assert log["own_negatives"].item() == pytest.approx(20 / 60)  # 30 negatives each; class 1 pushes background alone
    assert log["positives"].item() == pytest.approx(0.2)
