"""Dice and cross-entropy where labels are known, against loops and MONAI."""

import math

import pytest
import torch
from monai.losses import DiceCELoss

from common.losses import DiceCERegionLoss


def draw(size=(6, 5), batch=2, classes=3, unknown=0.0, seed=0):
    """Logits ``(B, K, *size)`` and labels ``(B, *size)``, -1 with the probability ``unknown``."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, *size, generator=rng)
    labels = torch.randint(0, classes, (batch, *size), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < unknown] = -1
    return logits, labels


def naive(logits, labels, smooth=1e-5):
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
    dice = [(2 * shared[k] + smooth) / (squares[k] + sizes[k] + smooth) for k in range(classes)]
    return (cross / count + 1 - sum(dice) / len(dice)) / 2


@pytest.mark.parametrize("size", [(6, 5), (4, 3, 5)])
def test_half_of_monais_sum_where_all_labels_are_known(size):
    logits, labels = draw(size)
    reference = DiceCELoss(to_onehot_y=True, softmax=True, squared_pred=True, batch=True)
    found, expected = DiceCERegionLoss()(logits, labels), reference(logits, labels[:, None])
    assert found.item() == pytest.approx(expected.item() / 2, rel=1e-6)


@pytest.mark.parametrize("unknown", [0.0, 0.4, 0.9])
def test_the_formula_voxel_by_voxel(unknown):
    logits, labels = draw(unknown=unknown, size=(4, 3, 5), batch=3)
    assert DiceCERegionLoss()(logits, labels).item() == pytest.approx(naive(logits, labels), rel=1e-5)


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
