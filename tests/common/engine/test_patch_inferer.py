"""Whole images by patches: volumes, slices of volumes and photographs through one class."""

import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from common.engine import PatchInferer


class Border(nn.Module):
    """Two classes; sums over the patch, so that the place of each window shows."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, patch):
        self.shapes.append(tuple(patch.shape))
        return torch.cat([patch.cumsum(-1), patch.cumsum(-2)], 1)


def image(*size, seed=0):
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(seed))


def gaussian(length):
    """Of one axis: sigma is an eighth of the window."""
    places = np.arange(length) - (length - 1) / 2
    return np.exp(-0.5 * (places / (length / 8)) ** 2)


def by_hand(picture, patch):
    """One window of each image after the other, half overlapping, Gaussian weights."""
    sizes = picture.shape[2:]
    starts = [sorted({min(start, size - length) for start in range(0, size, max(length // 2, 1))})
              for size, length in zip(sizes, patch, strict=True)]  # fmt: skip
    weight = torch.from_numpy(np.outer(*(gaussian(length) for length in patch))).clamp(min=1e-3)
    total, weights = 0, torch.zeros(sizes, dtype=torch.float64)
    for y in starts[0]:
        for x in starts[1]:
            place = (..., slice(y, y + patch[0]), slice(x, x + patch[1]))
            found = Border()(picture[place]).double() * weight
            whole = torch.zeros(*found.shape[:2], *sizes, dtype=torch.float64)
            whole[place] = found
            total, weights[place] = total + whole, weights[place] + weight
    return (total / weights).float()


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (13, 11)])
def test_a_photograph_goes_through_in_half_overlapping_windows(size):
    picture = image(*size)
    found = PatchInferer([8, 8])(picture, Border())
    assert found.shape == (2, 2, *size)
    torch.testing.assert_close(found, by_hand(picture, (8, 8)), rtol=1e-3, atol=1e-3)


def test_slices_of_a_volume_are_photographs():
    volume, network = image(13, 11, 5), Border()
    found = PatchInferer([8, 6])(volume, network)
    assert found.shape == (2, 2, 13, 11, 5) and {shape[1:] for shape in network.shapes} == {(1, 8, 6)}
    for place in range(5):
        alone = PatchInferer([8, 6])(volume[..., place], Border())
        torch.testing.assert_close(found[..., place], alone, rtol=1e-4, atol=1e-5)
        if place in (0, 4):
            expected = SlidingWindowInferer((8, 6), 16, 0.5, "gaussian")(volume[..., place], Border())
            torch.testing.assert_close(alone, expected, rtol=0, atol=0)


def test_a_volume_by_patches_of_three_axes():
    volume, network = image(9, 8, 7), Border()
    found = PatchInferer([4, 6, 5])(volume, network)
    assert {shape[1:] for shape in network.shapes} == {(1, 4, 6, 5)} and max(s[0] for s in network.shapes) <= 4
    expected = SlidingWindowInferer((4, 6, 5), 2, 0.5, "gaussian")(volume, Border())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_one_inferer_takes_images_of_both_kinds_in_any_order():
    inferer, volume, photograph = PatchInferer([8, 8]), image(12, 10, 3), image(12, 10, seed=1)
    found = [inferer(one, Border()) for one in (photograph, volume, photograph, volume)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert torch.equal(found[0], PatchInferer([8, 8])(photograph, Border()))


@pytest.mark.parametrize("size", [(3, 12), (3, 12, 2)])
def test_an_image_smaller_than_the_patch_comes_back_at_its_size(size):
    assert PatchInferer((8, 8))(image(*size), Border()).shape == (2, 2, *size)


@pytest.mark.parametrize(("patch", "size"), [((8, 8, 8), (8, 8)), ((8, 8), (8, 8, 8, 8))])
def test_other_numbers_of_axes_are_refused(patch, size):
    with pytest.raises(RuntimeError):
        PatchInferer(patch)(image(*size), Border())


@pytest.mark.parametrize("size", [
    16, "$[16, 16]", "16", {"_target_": "os.getcwd"}, [16], [16, 0], [16, 1.5], [16, "16"], [8, 8, 8, 8], [True, 16],
    None,
])  # fmt: skip
def test_what_is_no_size_of_a_patch_is_refused(size):
    with pytest.raises(ValueError, match="patch_size: expected a list of two or three lengths"):
        PatchInferer(size)
