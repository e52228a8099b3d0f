import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from apscl_fewshot.decoders import PANetDecoder
from apscl_fewshot.guidance import MutualGuidance, MutualGuidanceDecoder

LITERAL = {"norm": "none", "center": False}


def naive(query, support, norm="fro", center=True, side="left", aggregate="sum"):
    """Eq. 9-10 for one query: alpha entry by entry, then alpha times the map."""
    channels, positions = query.shape[0], query[0].numel()
    z_q, z_s = (t.double().numpy().reshape(channels, -1) for t in (query, support))
    inner = [np.array([row - row.mean() for row in z]) for z in (z_q, z_s)] if center else [z_q, z_s]
    alpha = np.zeros((channels, channels))
    for i in range(channels):
        for j in range(channels):
            own = sum(inner[0][i, m] * inner[0][j, m] for m in range(positions))
            cross = sum(inner[1][i, m] * inner[0][j, m] for m in range(positions))
            alpha[i, j] = own + cross if aggregate == "sum" else own * cross
    if norm == "fro":
        alpha /= math.sqrt((alpha**2).sum())
    elif norm == "mean":
        alpha /= positions
    elif norm == "softmax":
        alpha = np.array([np.exp(row) / np.exp(row).sum() for row in alpha / math.sqrt(positions)])
    result = z_q.copy()
    for i in range(channels):
        for j in range(channels):
            result[i] += (alpha[i, j] if side == "left" else alpha[j, i]) * z_q[j]
    return torch.from_numpy(result.reshape(query.shape))


@pytest.mark.parametrize(
    "options",
    [
        LITERAL,
        {},
        {"center": False},
        {"norm": "mean"},
        {"norm": "softmax"},
        {"side": "right"},
        {"aggregate": "product"},
        {**LITERAL, "side": "right", "aggregate": "product"},
    ],
)
def test_same_as_the_naive_loop(options):
    queries, support = torch.randn(2, 5, 4, 3) + 0.5, torch.randn(5, 4, 3) + 0.5
    found = MutualGuidance(**options)(queries, support)
    for query, result in zip(queries, found, strict=True):
        torch.testing.assert_close(result.double(), naive(query, support, **options), rtol=1e-5, atol=1e-5)


def test_the_left_side_brings_the_supports_content_in_and_the_right_one_does_not():
    """Support and query live in different channels: only Eq. 10's side fills the query's empty ones."""
    query, support = torch.randn(1, 4, 6, 6), torch.randn(4, 6, 6)
    query[:, 2:], support[:2] = 0, 0
    left, right = (MutualGuidance(norm="none", center=False, side=side)(query, support) for side in ("left", "right"))
    assert left[:, 2:].abs().max() > 0.1 and right[:, 2:].abs().max() == 0


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
def test_rank_survives_a_channel_mean_when_centred_and_normalised_and_collapses_as_printed(mean):
    query, support = tissues(mean)
    before = effective_rank(query[0])
    assert before > 4
    assert effective_rank(MutualGuidance()(query, support)[0]) > 0.8 * before
    printed = MutualGuidance(**LITERAL)(query, support)[0]
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
    expected = naive(query[0], support[:, :1, :1].expand(5, 4, 6), center=False)
    torch.testing.assert_close(MutualGuidance(center=False)(query, support)[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learned", [True, False])
def test_gate(learned):
    module, query, support = MutualGuidance(gate=learned), torch.randn(1, 3, 4, 4), torch.randn(3, 4, 4)
    assert [p.requires_grad for p in module.parameters()] == [learned] and module.gate == 1
    with torch.no_grad():
        module.gate.zero_()
    torch.testing.assert_close(module(query, support), query)


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


@pytest.mark.parametrize("projection", ["none", "shared"])
def test_without_guidance_a_fresh_decoder_is_plain_prototypes(episode, projection):
    """A shared projection starts at the identity."""
    decoder = MutualGuidanceDecoder(None, 6, 6, projection)
    torch.testing.assert_close(segment(decoder, episode), segment(PANetDecoder(), episode))
    assert len(list(decoder.parameters())) == (2 if projection == "shared" else 0)


def test_a_shared_projection_is_one_and_separate_ones_are_two(episode):
    shared, separate = (MutualGuidanceDecoder(None, 6, 6, kind) for kind in ("shared", "separate"))
    assert shared.support_projection is shared.query_projection
    assert separate.support_projection is not separate.query_projection
    # both start as the identity
    torch.testing.assert_close(segment(separate, episode), segment(PANetDecoder(), episode))
    torch.nn.init.normal_(separate.query_projection.weight)
    assert (segment(separate, episode) - segment(PANetDecoder(), episode)).abs().max() > 0.1
    wide = MutualGuidanceDecoder(MutualGuidance(), 6, mgd_dim=10, projection="separate")
    assert wide.condition(*episode[:2])["prototypes"].shape == (2, 10) and segment(wide, episode).shape == (3, 2, 4, 4)


def test_the_decoder_guides_the_query_by_the_mean_of_its_shots(episode):
    features, masks, queries = episode
    decoder = MutualGuidanceDecoder(MutualGuidance(), 6, 6, projection="none", cos_scale=10.0)
    code = decoder.condition(features, masks)
    guided = torch.stack([naive(query, features.mean(0)) for query in queries])
    prototypes = PANetDecoder().condition(features, masks)["prototypes"]  # of the support as it is, not re-weighted
    expected = 10 * torch.stack([F.cosine_similarity(guided, p[None, :, None, None]) for p in prototypes], dim=1)
    torch.testing.assert_close(decoder.decode(queries, code).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"norm": "l2"}, {"side": "both"}, {"aggregate": "mean"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="norm must be one of .* side left or right, aggregate sum or product; got"):
        MutualGuidance(**options)
    with pytest.raises(ValueError, match="projection must be one of .* got 'both'"):
        MutualGuidanceDecoder(projection="both")
