import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from apscl_fewshot.decoders import class_prototypes
from apscl_fewshot.guidance import MutualGuidance, MutualGuidanceDecoder


def naive(query, support, normalise=True):
    """Eq. 9-10 for one query: alpha entry by entry, then alpha times the map."""
    channels, positions = query.shape[0], query[0].numel()
    z_q, z_s = (t.double().numpy().reshape(channels, -1) for t in (query, support))
    inner = [np.array([row - row.mean() for row in z]) for z in (z_q, z_s)] if normalise else [z_q, z_s]
    alpha = np.zeros((channels, channels))
    for i in range(channels):
        for j in range(channels):
            own = sum(inner[0][i, m] * inner[0][j, m] for m in range(positions))
            cross = sum(inner[1][i, m] * inner[0][j, m] for m in range(positions))
            alpha[i, j] = own + cross
    if normalise:
        alpha /= math.sqrt((alpha**2).sum())
    result = z_q.copy()
    for i in range(channels):
        for j in range(channels):
            result[i] += alpha[i, j] * z_q[j]
    return torch.from_numpy(result.reshape(query.shape))


@pytest.mark.parametrize("normalise", [True, False])
def test_same_as_the_naive_loop(normalise):
    queries, support = torch.randn(2, 5, 4, 3) + 0.5, torch.randn(5, 4, 3) + 0.5
    found = MutualGuidance(normalise)(queries, support)
    for query, result in zip(queries, found, strict=True):
        torch.testing.assert_close(result.double(), naive(query, support, normalise), rtol=1e-5, atol=1e-5)


def test_the_supports_content_is_brought_in():
    """Support and query live in different channels: alpha from the left, as in Eq. 10, fills the query's empty ones."""
    query, support = torch.randn(1, 4, 6, 6), torch.randn(4, 6, 6)
    query[:, 2:], support[:2] = 0, 0
    assert MutualGuidance(normalise=False)(query, support)[:, 2:].abs().max() > 0.1


def effective_rank(features):
    """exp of the entropy of the squared singular values' shares."""
    share = torch.linalg.svdvals(features.flatten(1).double()) ** 2
    share = share / share.sum()
    return math.exp(-(share * share.clamp(min=1e-30).log()).sum().item())


def tissues(mean, channels=64, side=16):
    """A query and a support of 24 tissues in patches, with a mean that all channels share."""
    draw = torch.Generator().manual_seed(0)
    colours = torch.randn(24, channels, generator=draw)
    maps = []
    for _ in range(2):
        patches = torch.randint(24, (side // 2, side // 2), generator=draw).kron(torch.ones(2, 2, dtype=torch.long))
        maps.append(colours[patches].permute(2, 0, 1) + 0.3 * torch.randn(channels, side, side, generator=draw) + mean)
    return maps[0][None], maps[1]


@pytest.mark.parametrize("mean", [0.5, 1.0])
def test_rank_survives_a_channel_mean_when_normalised_and_collapses_as_printed(mean):
    query, support = tissues(mean)
    before = effective_rank(query[0])
    assert before > 4
    assert effective_rank(MutualGuidance()(query, support)[0]) > 0.8 * before
    printed = MutualGuidance(normalise=False)(query, support)[0]
    assert effective_rank(printed) < 0.4 * before
    alike = [F.normalize(z.flatten(1), dim=0) for z in (query[0], printed)]
    assert [(z.T @ z).mean().item() for z in alike][1] > 0.8


def test_sums_over_positions_are_float32_under_autocast():
    query, support = tissues(1.0)
    with torch.autocast("cpu", torch.bfloat16):
        found = MutualGuidance()(query, support)
    torch.testing.assert_close(found, MutualGuidance()(query, support), rtol=1e-4, atol=1e-4)


def test_a_support_of_another_size_is_fitted_to_the_query():
    support = torch.randn(5, 1, 1).expand(5, 3, 7)  # the same everywhere, so any fitting gives the same
    query = torch.randn(1, 5, 4, 6)
    expected = naive(query[0], support[:, :1, :1].expand(5, 4, 6), normalise=False)
    found = MutualGuidance(normalise=False)(query, support)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_blank_maps_give_finite_results_and_gradients():
    query = torch.zeros(1, 3, 4, 4, requires_grad=True)
    result = MutualGuidance()(query, torch.zeros(3, 4, 4))
    result.sum().backward()
    assert torch.isfinite(result).all() and torch.isfinite(query.grad).all()


@pytest.fixture
def episode():
    masks = torch.zeros(2, 1, 16, 16)
    masks[:, :, 4:11, 3:9] = 1
    return torch.randn(2, 6, 4, 4), masks, torch.randn(3, 6, 4, 4)


def segment(decoder, episode):
    features, masks, queries = episode
    return decoder.decode(queries, decoder.condition(features, masks))


def test_the_query_is_guided_by_the_mean_of_the_shots(episode):
    """Fresh projections are the identity."""
    features, masks, queries = episode
    guided = torch.stack([naive(query, features.mean(0)) for query in queries])
    prototypes = class_prototypes(features, masks)  # of the support as it is, not re-weighted
    expected = 10 * torch.stack([F.cosine_similarity(guided, p[None, :, None, None]) for p in prototypes], dim=1)
    for shared in (True, False):
        found = segment(MutualGuidanceDecoder(6, shared, cos_scale=10.0), episode)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_printed_guidance_is_not_normalised(episode):
    features, masks, queries = episode
    guided = torch.stack([naive(query, features.mean(0), normalise=False) for query in queries])
    prototypes = class_prototypes(features, masks)
    expected = torch.stack([F.cosine_similarity(guided, p[None, :, None, None]) for p in prototypes], dim=1)
    found = segment(MutualGuidanceDecoder(6, shared=False, normalise=False, cos_scale=1.0), episode)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_projection_is_one_and_separate_ones_are_two(episode, shared):
    decoder = MutualGuidanceDecoder(6, shared)
    assert len(list(decoder.parameters())) == (2 if shared else 4)
    before = decoder.condition(*episode[:2])["prototypes"]
    torch.nn.init.normal_(decoder.query_projection.weight)
    moved = (decoder.condition(*episode[:2])["prototypes"] - before).abs().max() > 0.1
    assert moved == shared
