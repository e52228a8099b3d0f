import math

import pytest
import torch
import torch.nn.functional as F

from common.losses.symmetric_kl import SymmetricKLLoss

KINDS = ["sigmoid", "softmax"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def logits():
    """Two maps of logits ``(2, 3, 2, 5)`` in float64."""
    draw = torch.Generator().manual_seed(0)
    return [3 * torch.randn(2, 3, 2, 5, generator=draw, dtype=torch.float64) for _ in range(2)]


def naive(logits_a, logits_b, activation):
    """KL(p‖q) + KL(q‖p) with probabilities, one element at a time."""
    total, count = 0.0, 0
    columns_a, columns_b = (t.movedim(1, -1).reshape(-1, t.shape[1]).tolist() for t in (logits_a, logits_b))
    for row_a, row_b in zip(columns_a, columns_b, strict=True):
        if activation == "sigmoid":
            p, q = ([1 / (1 + math.exp(-z)) for z in row] for row in (row_a, row_b))
        else:
            p, q = ([math.exp(z) / sum(math.exp(other) for other in row) for z in row] for row in (row_a, row_b))
        for one, other in zip(p, q, strict=True):
            total += one * math.log(one / other) + other * math.log(other / one)
            count += 1
    return total / count


def logit(p):
    return math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        # channel 1: p = 0.5 and 0.75; channel 2 agrees. KL + KL of p: 0.25 log(1.5)
        ("sigmoid", 0.25 * math.log(1.5) / 2),
        # logits (0, 0) and (log 3, 0) are (0.5, 0.5) and (0.75, 0.25): a term of -0.25 log(0.25 / 0.5) besides
        ("softmax", (0.25 * math.log(1.5) + 0.25 * math.log(2)) / 2),
    ],
)
def test_value_worked_by_hand(activation, expected):
    logits_a, logits_b = torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[logit(0.75)], [0.0]]])  # (1, 2, 1)
    assert SymmetricKLLoss(activation)(logits_a, logits_b).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_same_as_the_naive_loop(logits, kind):
    assert SymmetricKLLoss(kind)(*logits).item() == pytest.approx(naive(*logits, kind), rel=1e-10)


def test_same_as_kl_div_of_torch(logits):
    """The form of the source's code: ``kl_div`` both ways, of logarithms of probabilities, mean over elements."""
    for activation, chances in (("sigmoid", torch.sigmoid), ("softmax", lambda z: torch.softmax(z, 1))):
        p, q = (chances(z) for z in logits)
        expected = (F.kl_div(p.log(), q, reduction="none") + F.kl_div(q.log(), p, reduction="none")).mean()
        torch.testing.assert_close(SymmetricKLLoss(activation)(*logits), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_both_sides(logits, kind):
    inputs = [z.requires_grad_() for z in logits]
    assert torch.autograd.gradcheck(SymmetricKLLoss(kind), inputs)
    SymmetricKLLoss(kind)(*inputs).backward()
    assert all((z.grad.abs() > 0).all() for z in inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_finite_at_the_extremes(dtype, kind):
    """Every pair of logits from -200 to 200, where one probability or both underflow, and the ends of float16."""
    for levels in ([-200.0, -90.0, -17.0, 0.0, 17.0, 90.0, 200.0], [-6e4, 6e4]):
        grid = torch.cartesian_prod(torch.tensor(levels), torch.tensor(levels)).T.to(dtype)  # (2, pairs)
        inputs = [z.clone().requires_grad_() for z in (grid[None], grid.flip(0)[None])]
        value = SymmetricKLLoss(kind)(*inputs)
        value.backward()
        assert torch.isfinite(value) and value > 0
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert all(torch.isfinite(z.grad).all() and z.grad.dtype == dtype for z in inputs)


def test_certain_predictions():
    """p is 1 against e^-200: (1 - 0)(0 + 200), of which only the low side has a slope, -1."""
    inputs = [torch.tensor([[200.0]], requires_grad=True), torch.tensor([[-200.0]], requires_grad=True)]
    value = SymmetricKLLoss()(*inputs)
    value.backward()
    assert value.item() == 200 and inputs[0].grad.item() == 0 and inputs[1].grad.item() == -1


@pytest.mark.parametrize("kind", KINDS)
def test_float32_under_autocast(logits, kind):
    logits = [z.float() for z in logits]
    with torch.autocast("cpu", torch.bfloat16):
        value = SymmetricKLLoss(kind)(*logits)
    torch.testing.assert_close(value, SymmetricKLLoss(kind)(*logits), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_count_when_equal_and_only_then(logits, kind):
    loss = SymmetricKLLoss(kind)
    inputs = [logits[0].clone().requires_grad_() for _ in range(2)]
    value = loss(*inputs)
    value.backward()
    assert value.item() == 0 and all((z.grad == 0).all() for z in inputs)
    moved = logits[0].clone()
    moved[0, 0, 0, 0] += 1e-3
    assert loss(logits[0], moved).item() > 1e-12
    assert loss(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_symmetric_and_never_negative(logits, kind):
    loss = SymmetricKLLoss(kind)
    torch.testing.assert_close(loss(*logits), loss(*logits[::-1]), rtol=1e-14, atol=0)
    # neighbours in float32, where rounding alone decides the sign of a difference
    first = torch.randn(50_000, 1, 2, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[..., 0] = torch.nextafter(first[..., 0], torch.tensor(torch.inf))
    assert torch.func.vmap(loss)(first, second).min() >= 0


def test_softmax_sees_differences_and_sigmoid_one_way(logits):
    softmax, half = SymmetricKLLoss("softmax"), SymmetricKLLoss()
    torch.testing.assert_close(softmax(logits[0] + 5, logits[1] - 2), softmax(*logits))
    assert abs(half(-logits[0], -logits[1]) - half(*logits)) > 1e-2


def test_bad_input_is_refused(logits):
    with pytest.raises(ValueError, match="activation must be 'sigmoid' or 'softmax', got 'tanh'"):
        SymmetricKLLoss("tanh")
    with pytest.raises(ValueError, match=r"one shape .*got \(2, 3, 2, 5\) and \(2, 1, 2, 5\)"):
        SymmetricKLLoss()(logits[0], logits[1][:, :1])  # would be broadcast
    with pytest.raises(ValueError, match=r"expected two logits .*got \(4,\) and \(4,\)"):
        SymmetricKLLoss()(torch.zeros(4), torch.zeros(4))
    with pytest.raises(ValueError, match=r"softmax needs 2 channels or more, got \(2, 1, 2, 5\)"):
        SymmetricKLLoss("softmax")(logits[0][:, :1], logits[1][:, :1])
