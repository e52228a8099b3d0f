"""Dice and cross-entropy where labels are known, against loops and MONAI; the filter of pseudo-labels."""

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from scipy import ndimage

from common.semi_supervised.region_loss import DiceCERegionLoss, PseudoLabels


def draw(size=(6, 5), batch=2, classes=3, unknown=0.0, seed=0):
    """Logits ``(B, K, *size)`` and labels ``(B, *size)``, -1 with the probability ``unknown``."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, *size, generator=rng)
    labels = torch.randint(0, classes, (batch, *size), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < unknown] = -1
    return logits, labels


def naive(logits, labels, first=0, smooth=1e-5):
    """The formula with Python's floats, one voxel after the other."""
    classes = logits.shape[1]
    shared, squares, sizes, cross, count = [0.0] * classes, [0.0] * classes, [0.0] * classes, 0.0, 0
    voxels = logits.double().movedim(1, -1).reshape(-1, classes).tolist()
    for scores, y in zip(voxels, labels.flatten().tolist(), strict=True):
        if y < 0:
            continue
        weights = [math.exp(score) for score in scores]
        chances = [weight / sum(weights) for weight in weights]
        cross -= math.log(chances[y])
        count += 1
        for k, p in enumerate(chances):
            shared[k] += p * (k == y)
            squares[k] += p * p
            sizes[k] += k == y
    dice = [(2 * shared[k] + smooth) / (squares[k] + sizes[k] + smooth) for k in range(first, classes)]
    return (cross / count + 1 - sum(dice) / len(dice)) / 2


# --- the loss ---


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("size", [(6, 5), (4, 3, 5)])
def test_half_of_monais_sum_where_all_labels_are_known(background, size):
    logits, labels = draw(size)
    reference = DiceCELoss(include_background=background, to_onehot_y=True, softmax=True, squared_pred=True, batch=True)
    found, expected = DiceCERegionLoss(background)(logits, labels), reference(logits, labels[:, None])
    assert found.item() == pytest.approx(expected.item() / 2, rel=1e-6)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(("unknown", "smooth"), [(0.0, 1e-5), (0.4, 1e-5), (0.9, 1.0)])
def test_the_formula_voxel_by_voxel(background, unknown, smooth):
    logits, labels = draw(unknown=unknown, size=(4, 3, 5), batch=3)
    found = DiceCERegionLoss(background, smooth)(logits, labels)
    assert found.item() == pytest.approx(naive(logits, labels, int(not background), smooth), rel=1e-5)


def test_worked_by_hand():
    """Four voxels of chance one half, labels 0, 0, 1 and unknown: overlaps 1 and 1/2, squares 3/4 each."""
    found = DiceCERegionLoss()(torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 0], [1, -1]]]))
    dice = (2 * 1 / (0.75 + 2) + 2 * 0.5 / (0.75 + 1)) / 2
    assert found.item() == pytest.approx((math.log(2) + 1 - dice) / 2, rel=1e-4)


def test_unknown_voxels_have_no_say():
    logits, labels = draw(unknown=0.5)
    moved = torch.where(labels[:, None] < 0, -logits + 3, logits)
    assert torch.equal(DiceCERegionLoss()(moved, labels), DiceCERegionLoss()(logits, labels))
    loss = DiceCERegionLoss()(logits.requires_grad_(), labels)
    (slope,) = torch.autograd.grad(loss, logits)
    assert (slope.abs().sum(1) == 0).equal(labels < 0)


def test_every_negative_label_is_unknown():
    logits, labels = draw(unknown=0.5)
    other = torch.where(labels < 0, torch.tensor([-100, -2, -1, -7, -3]), labels)
    assert torch.equal(DiceCERegionLoss()(logits, other), DiceCERegionLoss()(logits, labels))


def test_zero_with_zero_gradient_where_nothing_is_known():
    logits = draw()[0].requires_grad_()
    loss = DiceCERegionLoss()(logits, torch.full((2, 6, 5), -1))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("label", [0, 2])
def test_finite_with_one_class_alone_and_at_the_extremes(label):
    labels = torch.full((2, 6, 5), label)
    for logits in (200 * draw()[0], draw()[0].bfloat16()):
        loss = DiceCERegionLoss()(logits.requires_grad_(), labels)
        loss.backward()
        assert loss.isfinite() and loss.dtype == torch.float32 and logits.grad.isfinite().all()


def test_nothing_left_to_learn_is_zero():
    labels = draw()[1]
    right = 50.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert DiceCERegionLoss()(right, labels).item() == pytest.approx(0, abs=1e-6)


def test_autocast_changes_nothing():
    logits, labels = draw(unknown=0.3)
    logits = logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = DiceCERegionLoss()(logits, labels)
    assert found.dtype == torch.float32 and torch.equal(found, DiceCERegionLoss()(logits.float(), labels))


# --- pseudo-labels ---


def painted(*boxes, size=(6, 8), classes=3, height=3.0):
    """Logits that favour the class of each box, (class, slices, height), and background elsewhere."""
    logits = torch.zeros(1, classes, *size)
    logits[:, 0] = 1.0
    for label, *place in boxes:
        logits[(0, label, *place)] = height
    return logits


def test_the_largest_component_of_each_class_stays():
    big, small = (slice(0, 3), slice(0, 3)), (slice(4, 6), slice(0, 2))
    other, speck = (slice(0, 6), slice(6, 7)), (slice(5, 6), slice(4, 5))
    logits = painted((1, *big), (1, *small), (2, *other), (2, *speck))
    labels, confidence = PseudoLabels()(logits)
    expected = torch.zeros(1, 6, 8, dtype=torch.int64)
    expected[(0, *big)], expected[(0, *other)] = 1, 2
    assert torch.equal(labels, expected) and labels.dtype == torch.int64 and type(labels) is torch.Tensor
    total = math.e + 1 + math.exp(3)
    assert confidence[0, 0, 0].item() == pytest.approx(math.exp(3) / total)
    assert confidence[0, 3, 4].item() == pytest.approx(math.e / (math.e + 2))
    assert confidence[0, 5, 0].item() == pytest.approx(math.e / total)  # background now, and not likely


def test_without_the_filter_it_is_the_highest_probability():
    logits = draw()[0]
    labels, confidence = PseudoLabels(largest_component=False)(logits)
    chances = logits.softmax(1).numpy()
    np.testing.assert_array_equal(labels.numpy(), chances.argmax(1))
    np.testing.assert_allclose(confidence.numpy(), chances.max(1), rtol=1e-6)


@pytest.mark.parametrize("size", [(14, 15), (7, 8, 9)])
def test_each_image_by_itself_as_scipy_finds_components(size):
    """Corner to corner is one component."""
    logits = draw(size, batch=3, seed=1)[0]
    logits[:, 0] += 2.5  # so that the classes fall apart
    labels = PseudoLabels()(logits)[0].numpy()
    for one, top in zip(labels, logits.argmax(1).numpy(), strict=True):
        for k in (1, 2):
            parts, count = ndimage.label(top == k, np.ones([3] * len(size)))
            volumes = np.bincount(parts.ravel())[1:]
            assert count > 1
            kept = one == k
            assert kept.sum() == volumes.max() and len(set(parts[kept])) == 1 and parts[kept].all()


def test_background_alone_and_one_class_alone():
    for label in (0, 1):
        logits = torch.zeros(2, 3, 4, 4)
        logits[:, label] = 1
        labels, confidence = PseudoLabels()(logits)
        assert (labels == label).all() and torch.allclose(confidence, torch.tensor(math.e / (math.e + 2)))


def test_no_gradient_and_the_logits_stay(recwarn):
    logits = draw(size=(14, 15))[0].requires_grad_()
    before = logits.detach().clone()
    labels, confidence = PseudoLabels()(logits)
    assert not confidence.requires_grad and torch.equal(logits.detach(), before)
    assert not recwarn.list


def test_pseudo_labels_of_bfloat16():
    logits = draw(size=(14, 15))[0].bfloat16()
    labels, confidence = PseudoLabels()(logits)
    again = PseudoLabels()(logits.float())
    assert confidence.dtype == torch.float32 and torch.equal(labels, again[0]) and torch.equal(confidence, again[1])
