import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from common.losses import GaussianKLLoss, gaussian_kl


@pytest.fixture
def case():
    """Mean and log-variance of p, then of q, ``(3, 5)`` in float64."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, generator=draw, dtype=torch.float64) for _ in range(4)]


def naive(mean_p, logvar_p, mean_q, logvar_q):
    """The docstring's formula with sigmas, one number at a time."""
    total = 0.0
    for d in range(mean_p.shape[1]):
        for b in range(len(mean_p)):
            m, s = float(mean_p[b, d]), math.exp(float(logvar_p[b, d]) / 2)
            n, t = float(mean_q[b, d]), math.exp(float(logvar_q[b, d]) / 2)
            total += 0.5 * (math.log(t**2 / s**2) + (s**2 + (m - n) ** 2) / t**2 - 1)
    return total / len(mean_p)


def test_value_worked_by_hand():
    """Dimension 1: means 1 and 0, unit variances: a half; dimension 2: variances 4 and 1."""
    expected = 0.5 + 0.5 * (math.log(1 / 4) + 4 - 1)
    mean_p, logvar_p = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, math.log(4)], [0.0, 0.0]])
    zeros = torch.zeros(2, 2)
    # the second of two batch entries is equal: the mean over the batch halves the sum over the latent
    assert GaussianKLLoss()(mean_p, logvar_p, zeros, zeros).item() == pytest.approx(expected / 2, rel=1e-6)


def test_same_as_the_naive_loop(case):
    assert GaussianKLLoss()(*case).item() == pytest.approx(naive(*case))


def test_same_as_torch_distributions(case):
    p, q = (Normal(mean, torch.exp(logvar / 2)) for mean, logvar in (case[:2], case[2:]))
    torch.testing.assert_close(gaussian_kl(*case), kl_divergence(p, q))
    torch.testing.assert_close(GaussianKLLoss()(*case), kl_divergence(Independent(p, 1), Independent(q, 1)).mean())


def test_same_as_monte_carlo(case):
    mean_p, logvar_p, mean_q, logvar_q = (t[0].numpy() / 2 for t in case)
    x = mean_p + np.exp(logvar_p / 2) * np.random.default_rng(0).standard_normal((400_000, 5))

    def log_density(mean, logvar):
        return (-0.5 * (logvar + (x - mean) ** 2 / np.exp(logvar))).sum(1)

    ratios = log_density(mean_p, logvar_p) - log_density(mean_q, logvar_q)
    value = GaussianKLLoss()(*(t[:1] / 2 for t in case)).item()
    assert abs(value - ratios.mean()) < 4 * ratios.std() / len(x) ** 0.5


def test_gradient(case):
    assert torch.autograd.gradcheck(GaussianKLLoss(), [t.requires_grad_() for t in case])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_at_the_extremes(dtype):
    """Log-variances at the bounds of the latent block, means as far apart as float16 has them."""
    low, high = torch.full((2, 4), -10.0, dtype=dtype), torch.full((2, 4), 10.0, dtype=dtype)
    far = torch.full((2, 4), 6e4, dtype=dtype)
    for logvar_p, logvar_q in ((low, high), (high, low)):
        value = GaussianKLLoss()(-far, logvar_p, far, logvar_q)
        assert torch.isfinite(value) and value > 0
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert GaussianKLLoss()(far, logvar_p, far, logvar_p) == 0
        inputs = [t.clone().requires_grad_() for t in (low / 20, logvar_p, high / 20, logvar_q)]
        GaussianKLLoss()(*inputs).backward()
        bound = torch.finfo(dtype).max  # exp(20), the slope at the bounds, is beyond float16 itself
        assert all(torch.isfinite(t.grad).all() for t in inputs) or bound < math.exp(20)


def test_float32_under_autocast(case):
    case = [t.float() for t in case]
    with torch.autocast("cpu", torch.bfloat16):
        value = GaussianKLLoss()(*case)
    torch.testing.assert_close(value, GaussianKLLoss()(*case), rtol=1e-6, atol=0)


def test_nothing_to_count_when_equal_and_only_then(case):
    inputs = [t.clone().requires_grad_() for t in (*case[:2], *case[:2])]
    value = GaussianKLLoss()(*inputs)
    value.backward()
    assert value.item() == 0 and all((t.grad == 0).all() for t in inputs)
    for place in range(4):
        moved = [t.detach().clone() for t in inputs]
        moved[place][0, 0] += 1e-3
        assert GaussianKLLoss()(*moved).item() > 1e-9
    assert GaussianKLLoss()(*(torch.zeros(2, 0) for _ in range(4))).item() == 0


def test_not_symmetric(case):
    assert abs(GaussianKLLoss()(*case) - GaussianKLLoss()(*case[2:], *case[:2])) > 0.1


def test_bad_input_is_refused(case):
    with pytest.raises(ValueError, match="one shape.*\\(3, 4\\).*\\(3, 5\\)"):
        GaussianKLLoss()(*case[:3], case[3][:, :4])
    with pytest.raises(ValueError, match="must have one shape"):
        GaussianKLLoss()(case[0][:1], *case[1:])  # would be broadcast
