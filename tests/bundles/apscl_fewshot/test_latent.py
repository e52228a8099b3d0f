import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apscl_fewshot.latent import FeatureEnhancement, LatentBlock, sample_latent


def perceptron(layers, values):
    """Linear layers with ReLU between, as matrix products in numpy."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linear):
        values = layer.weight.detach().numpy() @ values + layer.bias.detach().numpy()
        values = np.maximum(values, 0) if i < len(linear) - 1 else values
    return values


@pytest.mark.parametrize("pool", [2, None])
def test_block_is_a_pool_and_three_linear_layers(pool):
    block = LatentBlock(feat_dim=3, latent_dim=5, hidden=(7, 6), pool=pool, size=4)
    features = torch.randn(2, 3, 4, 4)
    mean, logvar = block(features)
    assert sum(isinstance(layer, nn.Linear) for layer in block.modules()) == 3 and mean.shape == logvar.shape == (2, 5)
    for b in range(2):
        image = features[b].numpy()
        if pool:
            image = image.reshape(3, 2, 2, 2, 2).mean((2, 4))
        expected = perceptron(block.layers, image.ravel())
        np.testing.assert_allclose(np.concatenate([mean[b].detach(), logvar[b].detach()]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "millions"),
    # sizes that follow from the flattened map of 32 x 32 x 256, or of 8 x 8 x 256
    [({"pool": None, "hidden": (32, 32)}, 8.39), ({}, 4.24), ({"pool": 4}, 1.09), ({"pool": 1}, 0.11)],
)
def test_size_of_the_readings_of_the_paper(options, millions):
    with torch.device("meta"):
        block = LatentBlock(**options)
    assert round(sum(p.numel() for p in block.parameters()) / 1e6, 2) == millions
    assert block(torch.zeros(2, 256, 32, 32, device="meta"))[0].shape == (2, 32)


def test_a_pooled_block_takes_any_size_and_a_literal_one_does_not():
    pooled, literal = (LatentBlock(4, 2, (8, 8), pool, size=8) for pool in (2, None))
    assert pooled(torch.zeros(1, 4, 13, 7))[0].shape == (1, 2)
    with pytest.raises(RuntimeError):
        literal(torch.zeros(1, 4, 13, 7))


def test_log_variance_is_bounded_and_the_mean_is_not():
    mean, logvar = LatentBlock(4, 32, (8, 8), 2)(1e5 * torch.randn(4, 4, 8, 8))
    assert logvar.min() == -10 and logvar.max() == 10 and mean.abs().max() > 10


def test_draws_have_the_mean_and_deviation_asked_for():
    mean, logvar = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 2 * float(np.log(3))]])
    draws = sample_latent(mean.expand(100_000, 2), logvar.expand(100_000, 2))
    torch.testing.assert_close(draws.mean(0), mean[0], rtol=0, atol=0.04)
    torch.testing.assert_close(draws.std(0), torch.tensor([1.0, 3.0]), rtol=0.02, atol=0)
    assert torch.corrcoef(draws.T)[0, 1].abs() < 0.02


def test_draws_pass_the_gradient_on():
    mean, logvar = torch.zeros(1, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    draw = sample_latent(mean, logvar)
    draw.sum().backward()
    torch.testing.assert_close(mean.grad, torch.ones(1, 3))
    torch.testing.assert_close(logvar.grad, draw.detach() / 2)  # sigma = exp(logvar / 2), at sigma 1


@pytest.mark.parametrize("residual", [True, False])
def test_enhancement_scales_and_shifts_each_channel(residual):
    module = FeatureEnhancement(3, 4, hidden=6, residual=residual)
    features, latent = torch.randn(2, 3, 5, 4), torch.randn(2, 4)
    found = module(features, latent)
    for b in range(2):
        scale, shift = perceptron(module.scale, latent[b].numpy()), perceptron(module.shift, latent[b].numpy())
        for a in range(3):
            expected = features[b, a] * float(scale[a] + residual) + float(shift[a])
            torch.testing.assert_close(found[b, a], expected, rtol=1e-4, atol=1e-6)


def test_a_fresh_residual_enhancement_keeps_the_features_and_a_literal_one_loses_them():
    features, latent = torch.randn(4, 64, 8, 8), torch.randn(4, 32)
    kept = [FeatureEnhancement(64, residual=residual)(features, latent) for residual in (True, False)]
    alike = [F.cosine_similarity(features, out, dim=1).mean() for out in kept]
    assert alike[0] > 0.95 and alike[1] < 0.5 and kept[1].abs().mean() < 0.2 * kept[0].abs().mean()
