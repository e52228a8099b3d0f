"""The filter of pseudo-labels, against paintings and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.semi_supervised import PseudoLabels


def draw(size=(6, 5), batch=2, classes=3, seed=0):
    """Logits ``(B, K, *size)``."""
    return 2 * torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(seed))


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
    logits = draw()
    labels, confidence = PseudoLabels(largest_component=False)(logits)
    chances = logits.softmax(1).numpy()
    np.testing.assert_array_equal(labels.numpy(), chances.argmax(1))
    np.testing.assert_allclose(confidence.numpy(), chances.max(1), rtol=1e-6)


@pytest.mark.parametrize("size", [(14, 15), (7, 8, 9)])
def test_each_image_by_itself_as_scipy_finds_components(size):
    """Corner to corner is one component."""
    logits = draw(size, batch=3, seed=1)
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
    logits = draw(size=(14, 15)).requires_grad_()
    before = logits.detach().clone()
    labels, confidence = PseudoLabels()(logits)
    assert not confidence.requires_grad and torch.equal(logits.detach(), before)
    assert not recwarn.list


def test_pseudo_labels_of_bfloat16():
    logits = draw(size=(14, 15)).bfloat16()
    labels, confidence = PseudoLabels()(logits)
    again = PseudoLabels()(logits.float())
    assert confidence.dtype == torch.float32 and torch.equal(labels, again[0]) and torch.equal(confidence, again[1])
