import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffcl_ssl.projection import Projection, PrototypeLoss

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make_projection(width=5, embedding=7):
    torch.manual_seed(0)
    projection = Projection(width, embedding)
    with torch.no_grad():  # statistics and scales that differ from the first ones
        projection(3 + 2 * torch.randn(50, width))
        projection.norm.weight.uniform_(0.5, 2)
        projection.norm.bias.normal_()
    return projection


def by_hand(projection, rows, mean, var):
    hidden = rows @ projection.first.weight.T + projection.first.bias
    norm = projection.norm
    hidden = ((hidden - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias).clamp(min=0)
    found = hidden @ projection.second.weight.T + projection.second.bias
    return found / found.square().sum(1, keepdim=True).sqrt()


@torch.no_grad()
def test_vectors_by_hand():
    """By the rows' own mean and variance in training, by the running ones in eval."""
    projection, rows = make_projection(), torch.randn(30, 5)
    hidden = rows @ projection.first.weight.T + projection.first.bias
    expected = by_hand(projection, rows, hidden.mean(0), hidden.var(0, unbiased=False))
    found = projection(rows)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(30))
    norm = projection.eval().norm
    torch.testing.assert_close(projection(rows), by_hand(projection, rows, norm.running_mean, norm.running_var))


def test_a_voxel_of_a_map_is_a_row():
    """1x1x1 convolutions with the same weights give the same vectors."""
    projection, volume = make_projection(), torch.randn(2, 5, 3, 4, 2)
    layers = [nn.Conv3d(5, 5, 1), nn.BatchNorm3d(5), nn.ReLU(), nn.Conv3d(5, 7, 1)]
    for conv, linear in ((layers[0], projection.first), (layers[3], projection.second)):
        conv.load_state_dict({"weight": linear.weight.view(*linear.weight.shape, 1, 1, 1), "bias": linear.bias})
    layers[1].load_state_dict(projection.norm.state_dict())
    expected = F.normalize(nn.Sequential(*layers)(volume), dim=1)
    found = projection(volume.movedim(1, -1).reshape(-1, 5))
    torch.testing.assert_close(found.reshape(2, 3, 4, 2, 7).movedim(-1, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_for_statistics(count):
    """In training as in eval, and the running statistics stay."""
    projection, rows = make_projection(), torch.randn(count, 5, requires_grad=True)
    before = {name: value.clone() for name, value in projection.state_dict().items()}
    found = projection(rows)
    found.square().sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in projection.state_dict().items())
    assert torch.equal(found, projection.eval()(rows)) and found.shape == (count, 7) and rows.grad.isfinite().all()


def test_float32_under_autocast():
    projection, rows = make_projection().eval(), torch.randn(9, 5)
    expected = projection(rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = projection(rows)
        of_halves = projection(rows.bfloat16())
    assert torch.equal(found, expected) and of_halves.dtype == torch.float32


# --- prototypes ---


def make_loss(temperature=0.3, dtype=torch.float64):
    torch.manual_seed(0)
    return PrototypeLoss(3, 4, temperature).to(dtype)


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(3)
    return torch.randn(8, 4, generator=draw, dtype=torch.float64), torch.tensor([0, 2, -1, 1, 0, -7, 2, 2])


def naive(loss, vectors, labels):
    values = []
    for z, y in zip(vectors.tolist(), labels.tolist(), strict=True):
        if y >= 0:
            scores = []
            for p in loss.prototypes.tolist():
                lengths = math.sqrt(sum(x * x for x in z) * sum(x * x for x in p))
                scores.append(math.exp(sum(a * b for a, b in zip(z, p, strict=True)) / lengths / loss.temperature))
            values.append(-math.log(scores[y] / sum(scores)))
    return sum(values) / len(values)


def test_prototypes_by_hand():
    loss = PrototypeLoss(2, 2, temperature=0.5)
    loss.prototypes.data = torch.tensor([[5.0, 0], [0, 0.1]])
    found = loss(torch.tensor([[3.0, 0], [1, 1]]), torch.tensor([0, 0]))
    assert found.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log(2)) / 2)


def test_prototypes_same_as_the_naive_loop(case):
    loss = make_loss()
    assert loss(*case).item() == pytest.approx(naive(loss, *case), rel=1e-10)
    single = make_loss(dtype=torch.float32)(case[0].float(), case[1])
    assert single.dtype == torch.float32 and single.item() == pytest.approx(naive(loss, *case), rel=1e-5)


def test_prototypes_gradient(case):
    loss = make_loss()
    assert torch.autograd.gradcheck(lambda z, p: loss(z, case[1]), (case[0].requires_grad_(), loss.prototypes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1e4])
def test_prototypes_finite_at_the_extremes(dtype, temperature, case):
    loss, vectors = make_loss(temperature, torch.float32), (1e4 * case[0]).to(dtype).requires_grad_()
    value = loss(vectors, case[1])
    value.backward()
    assert value.isfinite() and value >= 0 and vectors.grad.isfinite().all() and loss.prototypes.grad.isfinite().all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(vectors, case[1]), value)


@pytest.mark.parametrize("labels", [[], [-1, -3]])
def test_prototypes_with_nothing_to_count(labels):
    loss, vectors = make_loss(), torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    value = loss(vectors, torch.tensor(labels, dtype=torch.int64))
    value.backward()
    assert value.item() == 0 and (vectors.grad == 0).all() and (loss.prototypes.grad == 0).all()


def test_prototypes_refuse_bad_input(case):
    vectors, labels = case
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        PrototypeLoss(3, 4, 0)
    for rows in ((vectors[:, :3], labels), (vectors, labels[1:]), (vectors[0], labels)):
        with pytest.raises(ValueError, match=r"expected vectors \(N, 4\) and labels \(N,\), got \("):
            make_loss()(*rows)
    with pytest.raises(ValueError, match="labels must be whole numbers, got torch.float32"):
        make_loss()(vectors, labels.float())
    with pytest.raises(ValueError, match="labels must be below 3, found 3"):
        make_loss()(vectors, labels + 1)
