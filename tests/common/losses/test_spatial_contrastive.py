import math

import numpy as np
import pytest
import torch

from common.losses import SimilarityContrastiveLoss, spatial_similarity


def positions(count, seed, width=4, dtype=torch.float64):
    """Query, key and value of a set of positions."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, width, generator=draw, dtype=dtype) for _ in range(3))


@pytest.fixture
def matrix():
    """A symmetric similarity of five sets in two classes, one of them with a third class of its own."""
    draw = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (draw + draw.T) / 2, torch.tensor([1, 0, 1, 0, 2])


def naive_similarity(first, second):
    """Eq. 4-6, one position at a time."""
    (q1, k1, v1), (q2, k2, v2) = ([t.double().numpy() for t in group] for group in (first, second))

    def attend(query, keys, values):
        scores = [query @ key / math.sqrt(len(query)) for key in keys]
        weights = [math.exp(score - max(scores)) for score in scores]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    def cosine(a, b):
        return a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b))

    aligned_second = [attend(q, k2, v2) for q in q1]  # on the positions of the first set
    aligned_first = [attend(q, k1, v1) for q in q2]
    return np.mean([cosine(*pair) for pair in zip(v1, aligned_second, strict=True)]) + np.mean(
        [cosine(*pair) for pair in zip(v2, aligned_first, strict=True)]
    )


def naive_loss(similarity, labels, temperature, kind):
    losses = []
    for i in range(len(labels)):
        others = [k for k in range(len(labels)) if k != i]
        total = sum(math.exp(similarity[i, k] / temperature) for k in others)
        logs = [-math.log(math.exp(similarity[i, j] / temperature) / total) for j in others if labels[j] == labels[i]]
        if logs:
            losses.append(sum(logs) / (len(logs) if kind == "mean_over_positives" else len(labels) - 1))
    return sum(losses) / len(losses)


def test_similarity_worked_by_hand():
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    # a single position attends to the other whatever queries and keys say: twice cos 45 degrees
    assert spatial_similarity((two, one, one), (one, two, two)).item() == pytest.approx(2 / math.sqrt(2))
    # zero queries attend evenly: (1, 0) meets the mean (0.5, 0.5), and (1, 0), (0, 1) meet (1, 0)
    zero, axes = torch.zeros(2, 2), torch.eye(2)
    assert spatial_similarity((zero[:1], one, one), (zero, axes, axes)).item() == pytest.approx(1 / math.sqrt(2) + 0.5)


@pytest.mark.parametrize(("normalisation", "divisor"), [("mean_over_positives", 1), ("paper", 2)])
def test_loss_worked_by_hand(normalisation, divisor):
    similarity = torch.tensor([[9.0, 1.0, 0.0], [1.0, 9.0, -1.0], [0.0, -1.0, 9.0]])
    # anchors 0 and 1 have each other; at tau 0.5 against exp(0) and exp(-2); anchor 2 has no positive
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-4))) / 2
    loss = SimilarityContrastiveLoss(0.5, normalisation)
    assert loss(similarity, torch.tensor([7, 7, 3])).item() == pytest.approx(expected / divisor, rel=1e-5)


@pytest.mark.parametrize("count", [6, 3])
def test_similarity_same_as_the_naive_loop(count):
    """Of sets of one size and of different size."""
    first, second = positions(count, 0), positions(6, 1)
    assert spatial_similarity(first, second).item() == pytest.approx(naive_similarity(first, second))


@pytest.mark.parametrize("normalisation", ["mean_over_positives", "paper"])
def test_loss_same_as_the_naive_loop(matrix, normalisation):
    value = SimilarityContrastiveLoss(0.2, normalisation)(*matrix).item()
    assert value == pytest.approx(naive_loss(*matrix, 0.2, normalisation))


def test_gradient_of_the_similarity():
    inputs = [t.requires_grad_() for t in positions(3, 0) + positions(3, 1)]
    assert torch.autograd.gradcheck(lambda *t: spatial_similarity(t[:3], t[3:]), inputs)


@pytest.mark.parametrize("normalisation", ["mean_over_positives", "paper"])
def test_gradient_of_the_loss(matrix, normalisation):
    loss = SimilarityContrastiveLoss(0.3, normalisation)
    assert torch.autograd.gradcheck(lambda similarity: loss(similarity, matrix[1]), matrix[0].requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_at_the_extremes(dtype):
    """Attention scores beyond float16, empty features, and the widest gap of similarities at a tiny temperature."""
    large = tuple((200 * t).to(dtype).requires_grad_() for t in positions(5, 0))
    blank = tuple(torch.zeros(5, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    for pair in ((large, large), (large, blank), (blank, blank)):
        value = spatial_similarity(*pair)
        value.backward()
        assert torch.isfinite(value) and -2.01 <= value <= 2.01
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert all(torch.isfinite(t.grad).all() for t in large)
    # the slope of a cosine at zero is 1 / 1e-8, beyond float16 itself
    assert all(torch.isfinite(t.grad).all() for t in blank) or dtype == torch.float16
    gap = torch.tensor([[0, -2.0, 2.0], [-2.0, 0, 2.0], [2.0, 2.0, 0]], dtype=dtype, requires_grad=True)
    value = SimilarityContrastiveLoss(1e-3)(gap, torch.tensor([0, 0, 1]))
    value.backward()
    assert value.item() == pytest.approx(4000, rel=1e-3) and torch.isfinite(gap.grad).all()


def test_float32_under_autocast():
    first, second = positions(6, 0, dtype=torch.float32), positions(6, 1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = spatial_similarity(first, second)
    torch.testing.assert_close(value, spatial_similarity(first, second), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalisation", ["mean_over_positives", "paper"])
@pytest.mark.parametrize("labels", [[], [1], [0, 1, 2], [4, 4]])
def test_nothing_to_count_gives_zero_with_zero_gradient(labels, normalisation):
    """No anchor, none with a positive; and the printed form: one episode's two whole slices have no negative."""
    similarity = torch.randn(len(labels), len(labels), requires_grad=True)
    value = SimilarityContrastiveLoss(0.1, normalisation)(similarity, torch.tensor(labels))
    value.backward()
    assert value.item() == 0 and (similarity.grad == 0).all() and similarity.grad.shape == similarity.shape


def test_bad_input_is_refused(matrix):
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        SimilarityContrastiveLoss(temperature=0)
    with pytest.raises(ValueError, match="normalisation must be .* got 'sum'"):
        SimilarityContrastiveLoss(normalisation="sum")
    for similarity, labels in ((matrix[0][:, :4], matrix[1]), (matrix[0], matrix[1][:4]), (matrix[0], matrix[1][None])):
        with pytest.raises(ValueError, match=r"expected \(M, M\) and \(M,\), got"):
            SimilarityContrastiveLoss()(similarity, labels)


def test_alignment_does_not_see_the_order_of_positions():
    first, second = positions(6, 0), positions(6, 1)
    shuffled = tuple(t[torch.tensor([3, 0, 5, 1, 4, 2])] for t in second)
    value = spatial_similarity(first, second)
    torch.testing.assert_close(spatial_similarity(first, shuffled), value)
    torch.testing.assert_close(spatial_similarity(shuffled, first), value)


def test_a_set_is_most_like_itself():
    axes = torch.eye(4) * 6
    own = (axes, axes, axes)
    assert spatial_similarity(own, own).item() == pytest.approx(2, abs=1e-3)
    assert spatial_similarity(own, (axes, axes, -axes)).item() == pytest.approx(-2, abs=1e-3)


def test_the_own_entry_is_never_read(matrix):
    changed = matrix[0] + torch.diag(torch.full((5,), 50.0, dtype=torch.float64))
    loss = SimilarityContrastiveLoss()
    torch.testing.assert_close(loss(changed, matrix[1]), loss(*matrix))
