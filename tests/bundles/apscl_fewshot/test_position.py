import math

import numpy as np
import pytest
import torch

from apscl_fewshot.position import PositionPrior, body_frame

WHOLE = torch.tensor([[0.0, 1.0, 0.0, 1.0]])


def naive_frame(image, threshold=0.12, tail=0.02):
    """The first and last row and column between which all but ``tail`` of the body lies, counted one by one."""
    body = image.mean(0) > image.mean(0).min() + threshold * (image.mean(0).max() - image.mean(0).min())
    sides = []
    for counts in (body.sum(1), body.sum(0)):
        seen, first, last = 0.0, None, None
        for index, count in enumerate(counts):
            seen += count / body.sum()
            first = index if first is None and seen > tail else first
            last = index if last is None and seen >= 1 - tail else last
        sides += [first / len(counts), (last + 1) / len(counts)]
    return sides


def boxed(height, width, *box):
    image = torch.zeros(1, 1, height, width)
    image[0, 0, box[0] : box[1], box[2] : box[3]] = 1
    return image


def disc(height, width, row, column, radius):
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    return ((rows - row) ** 2 + (columns - column) ** 2 < radius**2)[None, None].float()


def test_frame_of_a_box_is_the_box():
    expected = torch.tensor([[10 / 64, 50 / 64, 20 / 80, 60 / 80]])
    torch.testing.assert_close(body_frame(boxed(64, 80, 10, 50, 20, 60)), expected)
    torch.testing.assert_close(body_frame(boxed(64, 80, 10, 50, 20, 60).repeat(1, 3, 1, 1) * 70 - 40), expected)


def test_frame_leaves_out_arms_and_noise_below_the_threshold():
    image = boxed(64, 80, 10, 50, 20, 60)
    expected = body_frame(image)
    image[0, 0, 60:62, 70:75] = 1  # 10 of 1610 pixels
    image += 0.1 * torch.rand(1, 1, 64, 80)
    torch.testing.assert_close(body_frame(image), expected)


def test_frame_same_as_the_naive_loop():
    y, x = np.mgrid[:48, :56]
    images = np.random.default_rng(0).normal(0, 0.02, (4, 2, 48, 56))
    bodies = [(20, 30, 13, 20), (25, 20, 18, 11), (10, 40, 9, 14), (24, 28, 30, 30)]
    for i, (row, column, high, wide) in enumerate(bodies):
        images[i] += np.clip(1.3 - ((y - row) / high) ** 2 - ((x - column) / wide) ** 2, 0, 1)
    expected = torch.tensor([naive_frame(image) for image in images])
    torch.testing.assert_close(body_frame(torch.from_numpy(images)), expected.float())


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 64, 64), torch.full((1, 1, 64, 64), -3.0)])
def test_an_image_without_contrast_keeps_its_borders(image):
    torch.testing.assert_close(body_frame(image), WHOLE, rtol=0, atol=0.03)


@pytest.mark.parametrize("size", [(64, 64), (200, 120)])
def test_the_organ_is_looked_for_where_it_lies_in_the_moved_and_scaled_body(size):
    support = boxed(64, 64, 8, 48, 8, 48)
    organ = disc(64, 64, 8 + 0.25 * 40, 8 + 0.7 * 40, 4)  # a quarter down, seven tenths across the body
    query = boxed(64, 64, 20, 50, 30, 60)
    prior = PositionPrior()
    found = prior(prior.condition(organ, body_frame(support)), body_frame(query), list(size))
    row, column = divmod(int(found[0].argmax()), size[1])
    assert found.shape == (1, *size)
    assert abs((row + 0.5) / size[0] - (20 + 0.25 * 30) / 64) < 1.5 / 64
    assert abs((column + 0.5) / size[1] - (30 + 0.7 * 30) / 64) < 1.5 / 64
    inside = disc(64, 64, 20 + 0.25 * 30, 30 + 0.7 * 30, 3)[0, 0].bool()
    near = prior(prior.condition(organ, body_frame(support)), body_frame(query), [64, 64])[0]
    assert near[inside].min() > 0 > near[0].max()


@pytest.mark.parametrize("weight", [2.0, 0.5])
def test_values_run_from_the_floor_to_even_odds(weight):
    prior = PositionPrior(weight=weight, floor=0.05)
    found = prior.condition(disc(64, 64, 32, 32, 12), WHOLE)
    assert found.max().item() == pytest.approx(weight * (math.log(1.05) - math.log(0.5)), abs=1e-4)
    assert found.min().item() == pytest.approx(weight * (math.log(0.05) - math.log(0.5)), abs=1e-3)


def naive_map(masks, frames, sigma=0.05, floor=0.02):
    """The mean mask on a grid around the body box, blurred and turned into log-odds, in float64."""
    places = [(i + 0.5) / 64 * 1.5 - 0.25 for i in range(64)]
    total = np.zeros((64, 64))
    for mask, (top, bottom, left, right) in zip(masks[:, 0].numpy(), frames.numpy(), strict=True):
        padded = np.pad(mask, 1)
        for i, j in np.ndindex(64, 64):
            y = (top + places[i] * (bottom - top)) * mask.shape[0] + 0.5  # in pixels of the padded mask
            x = (left + places[j] * (right - left)) * mask.shape[1] + 0.5
            y, x = min(max(y, 0), padded.shape[0] - 1.001), min(max(x, 0), padded.shape[1] - 1.001)
            (r, u), (c, v) = (int(y), y - int(y)), (int(x), x - int(x))
            corner = padded[r : r + 2, c : c + 2]
            total[i, j] += np.array([1 - u, u]) @ corner @ np.array([1 - v, v])
    kernel = np.array([[math.exp(-0.5 * ((a - b) / sigma) ** 2) for b in places] for a in places])
    kernel /= kernel.sum(1, keepdims=True)
    smooth = kernel @ total @ kernel.T
    return 2 * (np.log(smooth / smooth.max() + floor) - math.log(0.5))


def test_map_same_as_the_naive_loop():
    masks = torch.cat([disc(50, 40, 20, 15, 8), disc(50, 40, 30, 22, 6)])
    frames = torch.tensor([[0.1, 0.8, 0.2, 0.9], [0.2, 1.0, 0.1, 0.7]])
    found = PositionPrior().condition(masks, frames)
    torch.testing.assert_close(found.double(), torch.from_numpy(naive_map(masks, frames)), rtol=1e-3, atol=1e-3)


def test_an_organ_of_few_pixels_is_not_lost_between_the_points_of_the_map():
    prior, frame = PositionPrior(), torch.tensor([[0.1, 0.9, 0.1, 0.9]])
    for place in range(200, 224):
        mask = boxed(512, 512, place, place + 4, place + 50, place + 54)
        assert prior.condition(mask, frame).max() > 0


def test_an_empty_mask_gives_a_finite_map():
    assert torch.isfinite(PositionPrior().condition(torch.zeros(1, 1, 32, 32), WHOLE)).all()


def test_it_acts_in_evaluation_alone(make_network, make_scan):
    scan = make_scan()
    plain, with_prior = make_network(position=False, prior=False), make_network(prior=False)
    images, masks = scan["image"][3:5], (scan["label"][3:4] == 1)[:, None].float()
    frames = body_frame(images)
    for mode in (True, False):
        logits = []
        for network in (plain.train(mode), with_prior.train(mode)):
            features = network.encoder(images)
            code = network.condition(features[:1], frames[:1], masks)
            logits.append(network.decode(features[1:], frames[1:], code, [40, 36]))
        added = logits[1] - logits[0]
        if mode:
            assert added.abs().max() == 0
        else:
            expected = with_prior.position(code["position"], frames[1:], [40, 36])
            torch.testing.assert_close(added[:, 1], expected, rtol=0, atol=1e-5)
            assert added[:, 0].abs().max() == 0 and expected.abs().max() > 1


def test_weight_zero_switches_it_off(make_scan):
    scan = make_scan()
    masks = (scan["label"][3:4] == 1)[:, None].float()
    assert PositionPrior(weight=0.0).condition(masks, WHOLE).abs().max() == 0


def test_it_has_nothing_to_train_or_to_save():
    assert not list(PositionPrior().parameters()) and not PositionPrior().state_dict()
