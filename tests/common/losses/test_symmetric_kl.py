import math

import pytest
import torch
import torch.nn.functional as F

from common.losses.symmetric_kl import SymmetricKLLoss

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture
def logits():
    """Two maps of logits ``(2, 3, 2, 5)`` in float64."""
    draw = torch.Generator().manual_seed(0)
    return [3 * torch.randn(2, 3, 2, 5, generator=draw, dtype=torch.float64) for _ in range(2)]


def naive(logits_a, logits_b):
    """KL(p‖q) + KL(q‖p) with probabilities, one element at a time."""
    total, count = 0.0, 0
    for one, other in zip(logits_a.flatten().tolist(), logits_b.flatten().tolist(), strict=True):
        p, q = (1 / (1 + math.exp(-z)) for z in (one, other))
        total += p * math.log(p / q) + q * math.log(q / p)
        count += 1
    return total / count


def test_value_worked_by_hand():
    """Channel 1: p = 0.5 and 0.75; channel 2 agrees. KL + KL of p: 0.25 log(1.5)."""
    logits_a, logits_b = torch.tensor([[[0.0], [0.0]]]), torch.tensor([[[math.log(3)], [0.0]]])  # (1, 2, 1)
    assert SymmetricKLLoss()(logits_a, logits_b).item() == pytest.approx(0.25 * math.log(1.5) / 2, rel=1e-6)


def test_same_as_the_naive_loop(logits):
    assert SymmetricKLLoss()(*logits).item() == pytest.approx(naive(*logits), rel=1e-10)


def test_same_as_kl_div_of_torch(logits):
    """The form of the source's code: ``kl_div`` both ways, of logarithms of probabilities, mean over elements."""
    p, q = (torch.sigmoid(z) for z in logits)
    expected = (F.kl_div(p.log(), q, reduction="none") + F.kl_div(q.log(), p, reduction="none")).mean()
    torch.testing.assert_close(SymmetricKLLoss()(*logits), expected, rtol=1e-10, atol=0)


def test_gradient_reaches_both_sides(logits):
    inputs = [z.requires_grad_() for z in logits]
    assert torch.autograd.gradcheck(SymmetricKLLoss(), inputs)
    SymmetricKLLoss()(*inputs).backward()
    assert all((z.grad.abs() > 0).all() for z in inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_at_the_extremes(dtype):
    """Every pair of logits from -200 to 200, where one probability or both underflow, and the ends of float16."""
    for levels in ([-200.0, -90.0, -17.0, 0.0, 17.0, 90.0, 200.0], [-6e4, 6e4]):
        grid = torch.cartesian_prod(torch.tensor(levels), torch.tensor(levels)).T.to(dtype)  # (2, pairs)
        inputs = [z.clone().requires_grad_() for z in (grid[None], grid.flip(0)[None])]
        value = SymmetricKLLoss()(*inputs)
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


def test_float32_under_autocast(logits):
    logits = [z.float() for z in logits]
    with torch.autocast("cpu", torch.bfloat16):
        value = SymmetricKLLoss()(*logits)
    torch.testing.assert_close(value, SymmetricKLLoss()(*logits), rtol=1e-6, atol=0)


def test_nothing_to_count_when_equal_and_only_then(logits):
    loss = SymmetricKLLoss()
    inputs = [logits[0].clone().requires_grad_() for _ in range(2)]
    value = loss(*inputs)
    value.backward()
    assert value.item() == 0 and all((z.grad == 0).all() for z in inputs)
    moved = logits[0].clone()
    moved[0, 0, 0, 0] += 1e-3
    assert loss(logits[0], moved).item() > 1e-12
    assert loss(torch.zeros(0, 3, 4), torch.zeros(0, 3, 4)).item() == 0


def test_symmetric_and_never_negative(logits):
    loss = SymmetricKLLoss()
    torch.testing.assert_close(loss(*logits), loss(*logits[::-1]), rtol=1e-14, atol=0)
    # neighbours in float32, where rounding alone decides the sign of a difference
    first = torch.randn(50_000, 1, 2, generator=torch.Generator().manual_seed(0))
    second = first.clone()
    second[..., 0] = torch.nextafter(first[..., 0], torch.tensor(torch.inf))
    assert torch.func.vmap(loss)(first, second).min() >= 0


def test_the_half_of_p_alone_sees_the_sign(logits):
    half = SymmetricKLLoss()
    assert abs(half(-logits[0], -logits[1]) - half(*logits)) > 1e-2


def test_bad_input_is_refused(logits):
    with pytest.raises(ValueError, match=r"one shape .*got \(2, 3, 2, 5\) and \(2, 1, 2, 5\)"):
        SymmetricKLLoss()(logits[0], logits[1][:, :1])  # would be broadcast
    with pytest.raises(ValueError, match=r"expected two logits .*got \(4,\) and \(4,\)"):
        SymmetricKLLoss()(torch.zeros(4), torch.zeros(4))
    with pytest.raises(TypeError):
        SymmetricKLLoss(reduction="sum")  # there is one form
