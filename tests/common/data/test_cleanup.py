"""What is taken away from a prediction, against scipy's components and holes."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from common.data.cleanup import describe_cleanup, make_cleanup

SIZES = [(15, 14), (8, 7, 6)]


def largest(mask):
    """The largest component, neighbours across edges and corners; all that are as large where several are."""
    components, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    sizes = [(components == k).sum() for k in range(1, count + 1)]
    return mask & np.isin(components, [k for k, size in enumerate(sizes, 1) if size == max(sizes)])


def reference(label_map, step):
    """The label map, one structure after the other."""
    if step == "largest_together":
        return np.where(largest(label_map > 0), label_map, 0)
    done = np.zeros_like(label_map)
    for label in np.unique(label_map[label_map > 0]):
        mask = label_map == label
        done[largest(mask) if step == "largest" else ndimage.binary_fill_holes(mask)] = label
    return done


def has_one_largest(mask):
    components, count = ndimage.label(largest(mask), np.ones([3] * mask.ndim))
    return count <= 1


def draw(size, labels, seed, share):
    """Ragged blobs of each label with many strays; no two largest components of one size."""
    rng = np.random.default_rng(seed)
    while True:
        label_map = np.where(rng.random(size) < share, rng.integers(1, labels + 1, size), 0).astype(np.uint8)
        masks = [label_map > 0, *(label_map == label for label in range(1, labels + 1))]
        if all(has_one_largest(mask) for mask in masks):
            return label_map


def clean(label_map, *steps, dtype=torch.uint8):
    return np.asarray(make_cleanup(list(steps))(torch.from_numpy(label_map.copy())[None].to(dtype)))[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", ["largest_together", "largest"])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_components_of_a_label_map(step, size, seed):
    label_map = draw(size, 3, seed, share=0.4 if len(size) == 2 else 0.1)
    found = clean(label_map, step)
    assert np.array_equal(found, reference(label_map, step)) and not np.array_equal(found, label_map)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_holes_of_a_mask(dtype, size):
    filled = 0
    for seed in range(30):
        mask = np.random.default_rng(seed).random(size) < (0.6, 0.7, 0.8)[seed % 3]
        found, expected = clean(mask, "fill_holes", dtype=dtype), ndimage.binary_fill_holes(mask)
        assert np.array_equal(found, expected) and found.dtype == np.dtype(str(dtype).removeprefix("torch."))
        filled += (expected & ~mask).sum()
    assert filled > 100


@pytest.mark.parametrize("size", SIZES)
def test_holes_of_structures_side_by_side(size):
    """Each with holes of its own, none of which holds another structure."""
    masks = [np.random.default_rng(seed).random(size) < 0.75 for seed in range(3)]
    label_map = np.concatenate([label * mask for label, mask in zip((1, 2, 7), masks, strict=True)]).astype(np.uint8)
    label_map[[size[0] - 1, size[0], 2 * size[0] - 1, 2 * size[0]]] = 0  # a gap between them
    found = clean(label_map, "fill_holes")
    assert np.array_equal(found, reference(label_map, "fill_holes")) and (found != label_map).sum() > 10


def test_a_structure_inside_another_is_filled_too():
    """As the documentation warns."""
    label_map = np.zeros((7, 7), np.uint8)
    label_map[1:6, 1:6], label_map[2:5, 2:5], label_map[3, 3] = 1, 2, 0
    assert np.array_equal(clean(label_map, "fill_holes"), np.pad(np.ones((5, 5)), 1))


def test_the_steps_follow_one_another():
    mask = np.zeros((9, 9), np.uint8)
    mask[1:6, 1:6], mask[3, 3], mask[8] = 1, 0, 1
    mask[2:5, 2:5] = np.pad([[1]], 1)  # a stray in the hole of the ring
    kept = clean(mask, "largest", "fill_holes")
    assert np.array_equal(kept, np.pad(np.ones((5, 5)), ((1, 3), (1, 3)))) and kept.sum() == 25
    assert np.array_equal(clean(mask), mask)


@pytest.mark.parametrize("steps", [[], ["largest"], ["largest_together"], ["fill_holes"], ["largest", "fill_holes"]])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_nothing_stays_nothing_and_all_stays_all(size, steps, dtype):
    for value in (0, 1):
        whole = np.full(size, value, np.uint8)
        found = clean(whole, *steps, dtype=dtype)
        assert found.shape == size and np.array_equal(found, whole)


@pytest.mark.parametrize("steps", ["largest", ["biggest"], ["largest", "$x"], True, None, [["largest"]], [{}]])
def test_other_steps_are_refused(steps):
    with pytest.raises(ValueError, match="cleanup: expected a list out of largest_together, largest, fill_holes, f"):
        make_cleanup(steps)


def test_in_words():
    assert describe_cleanup([]) == ""
    assert describe_cleanup(["largest", "fill_holes"]) == "of each structure the largest component, then holes filled"
