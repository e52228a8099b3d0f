import math

import numpy as np
import pytest
import torch

from apscl_fewshot import decoders
from apscl_fewshot.decoders import (
    ADNetDecoder,
    ALPNetDecoder,
    PANetDecoder,
    class_prototypes,
    cosine_logits,
    shrink_mask,
)

DECODERS = [PANetDecoder, ALPNetDecoder, ADNetDecoder]


@pytest.fixture
def episode():
    """Features (2, 5, 8, 8) and masks (2, 1, 32, 32) of two supports, features of two queries."""
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, 3:20, 5:22] = 1
    masks[1, 0, 10:31, 1:13] = 1
    return torch.randn(2, 5, 8, 8) + 0.5, masks, torch.randn(2, 5, 8, 8) + 0.5


def cosine(a, b):
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def covered(mask, height, width):
    """The share of each feature position that the mask covers."""
    step = mask.shape[0] // height, mask.shape[1] // width
    cells = [[mask[i * step[0] : (i + 1) * step[0], j * step[1] : (j + 1) * step[1]] for j in range(width)]
             for i in range(height)]  # fmt: skip
    return np.array([[cell.mean() for cell in row] for row in cells])


def naive_prototypes(features, masks):
    """Background and foreground: the weighted mean of each support, then the mean over supports."""
    found = []
    for foreground in (False, True):
        means = []
        for image, mask in zip(features.double().numpy(), masks[:, 0].double().numpy(), strict=True):
            weights = covered(mask, *image.shape[1:])
            weights = weights if foreground else 1 - weights
            total = sum(weight * image[:, i, j] for (i, j), weight in np.ndenumerate(weights))
            means.append(total / (weights.sum() + 1e-5))
        found.append(sum(means) / len(means))
    return found


def naive_local(features, masks, cell, threshold):
    """SSL-ALPNet: means over grid cells that the class covers; the class has its global prototype besides."""
    background, foreground = naive_prototypes(features, masks)
    found = {False: [], True: []}
    for image, mask in zip(features.double().numpy(), masks[:, 0].double().numpy(), strict=True):
        share = covered(mask, *image.shape[1:])
        for i in range(0, image.shape[1], cell):
            for j in range(0, image.shape[2], cell):
                place = slice(i, i + cell), slice(j, j + cell)
                part, inside = image[(slice(None), *place)].mean((1, 2)), share[place].mean()
                found[True] += [part] if inside > threshold else []
                found[False] += [part] if 1 - inside > threshold else []
    return found[False] or [background], found[True] + [foreground]


def per_position(features, score):
    """``score`` of every position of the queries, ``(Q, 2, h, w)``."""
    queries = features.double().numpy()
    places = [(q, i, j) for q in range(len(queries)) for i in range(queries.shape[2]) for j in range(queries.shape[3])]
    found = np.zeros((len(queries), 2, *queries.shape[2:]))
    for q, i, j in places:
        found[q, :, i, j] = score(queries[q, :, i, j])
    return torch.from_numpy(found)


def assert_same(found, expected):
    assert (found - expected).abs().max() < 1e-5


def test_panet_same_as_the_naive_loop(episode):
    features, masks, queries = episode
    background, foreground = naive_prototypes(features, masks)
    decoder = PANetDecoder()
    expected = per_position(queries, lambda x: (20 * cosine(x, background), 20 * cosine(x, foreground)))
    assert_same(decoder.decode(queries, decoder.condition(features, masks)), expected)


@pytest.mark.parametrize("threshold", [0.95, 0.6, 0.999])
def test_alp_same_as_the_naive_loop(episode, threshold, monkeypatch):
    monkeypatch.setattr(decoders, "CELLS", 4)  # of 2 x 2 positions
    features, masks, queries = episode
    groups = naive_local(features, masks, 2, threshold)
    assert len(groups[0]) > 1

    def score(x):
        pairs = []
        for group in groups:
            similar = [20 * cosine(x, prototype) for prototype in group]
            weights = [math.exp(s - max(similar)) for s in similar]
            pairs.append(sum(w * s for w, s in zip(weights, similar, strict=True)) / sum(weights))
        return pairs

    decoder = ALPNetDecoder(threshold)
    code = decoder.condition(features, masks)
    assert [len(code[name]) for name in ("background", "foreground")] == [len(group) for group in groups]
    assert_same(decoder.decode(queries, code), per_position(queries, score))


def test_adnet_same_as_the_naive_loop(episode):
    features, masks, queries = episode
    prototype = naive_prototypes(features, masks)[1]
    decoder = ADNetDecoder(threshold=-7.0)

    def score(x):
        anomaly = -20 * cosine(x, prototype)
        share = 1 - 1 / (1 + math.exp(-0.5 * (anomaly + 7)))
        return 1 - share, share

    found = decoder.decode(queries, decoder.condition(features, masks)).softmax(1)
    assert_same(found, per_position(queries, score))


def test_adnet_keeps_its_threshold_tight():
    decoder = ADNetDecoder()
    assert decoder.regulariser().item() == pytest.approx(-10 / 20)
    decoder.regulariser().backward()
    assert decoder.threshold.grad > 0  # a step down the gradient lowers T: fewer places count as the class


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_organ_of_one_pixel_keeps_its_place(decoder):
    features, mask = torch.randn(1, 6, 8, 8), torch.zeros(1, 1, 64, 64)
    mask[0, 0, 29, 45] = 1
    weights = shrink_mask(mask, [8, 8])
    assert weights[0, 0, 3, 5] == pytest.approx(1 / 64) and weights.sum() == pytest.approx(1 / 64)
    prototype = class_prototypes(features, mask)[1]
    torch.testing.assert_close(prototype / prototype.norm(), features[0, :, 3, 5] / features[0, :, 3, 5].norm())
    code = decoder().condition(features, mask)
    foreground = decoder().decode(features, code)[0, 1].flatten()
    assert foreground.argmax() == 3 * 8 + 5


def test_masks_of_any_size_keep_their_area():
    mask = torch.zeros(1, 1, 37, 50)
    mask[0, 0, 5:20, 10:41] = 1
    weights = shrink_mask(mask, [8, 8])
    assert weights.shape == (1, 1, 8, 8) and 0 <= weights.min() and weights.max() == 1
    assert weights.mean().item() == pytest.approx(mask.mean().item(), abs=0.02)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_cosines_are_scaled(episode, scale):
    features, _, _ = episode
    prototypes = torch.stack([features[0, :, 0, 0], -features[0, :, 0, 0]])
    logits = cosine_logits(features, prototypes, scale)
    torch.testing.assert_close(logits[0, :, 0, 0], torch.tensor([scale, -scale]))
    assert logits.abs().max() <= scale * (1 + 1e-6)
    torch.testing.assert_close(cosine_logits(7 * features, 0.1 * prototypes, scale), logits)
    # the printed scale of 1 leaves a probability of e / (e + 1 / e) at best
    assert logits.softmax(1).max().item() == pytest.approx(1 / (1 + math.exp(-2 * scale)), rel=1e-5)


def test_cosines_are_float32_under_autocast(episode):
    features, masks, queries = episode
    decoder = PANetDecoder()
    with torch.autocast("cpu", torch.bfloat16):
        logits = decoder.decode(queries, decoder.condition(features, masks))
    expected = decoder.decode(queries, decoder.condition(features, masks))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_support_that_does_not_show_the_class_has_no_say_in_its_prototype(episode):
    features, masks, _ = episode
    masks[1] = 0
    both, one = class_prototypes(features, masks), class_prototypes(features[:1], masks[:1])
    torch.testing.assert_close(both[1], one[1])
    assert (both[0] - one[0]).abs().max() > 0.01  # but it does show background


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_or_full_mask_gives_finite_logits_and_gradients(decoder, value, episode):
    features, masks, queries = episode
    features.requires_grad_()
    logits = decoder().decode(queries, decoder().condition(features, torch.full_like(masks, value)))
    logits.square().sum().backward()
    assert logits.shape == (2, 2, 8, 8) and torch.isfinite(logits).all() and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_shots_have_no_order_and_queries_no_neighbours(decoder, episode):
    features, masks, queries = episode
    decoder = decoder()
    logits = decoder.decode(queries, decoder.condition(features, masks))
    turned = decoder.decode(queries, decoder.condition(features.flip(0), masks.flip(0)))
    torch.testing.assert_close(turned, logits)
    alone = torch.cat([decoder.decode(q[None], decoder.condition(features, masks)) for q in queries])
    torch.testing.assert_close(alone, logits)
