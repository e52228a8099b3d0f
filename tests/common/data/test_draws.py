from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flip

from common.data import DataError
from common.data.draws import drawing, endless, plain, slices


def test_one_thread_no_metadata_and_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    flip, image = Flip(0), MetaTensor(torch.rand(1, 3, 2))
    try:
        with drawing():
            assert torch.get_num_threads() == 1
            flipped = flip(image)
        assert type(flipped) is torch.Tensor and torch.equal(flipped, image.as_tensor().flip(1))
        assert torch.get_num_threads() == 2 and isinstance(flip(image), MetaTensor)
        with pytest.raises(KeyError), drawing():
            raise KeyError
        assert torch.get_num_threads() == 2 and isinstance(flip(image), MetaTensor)
    finally:
        torch.set_num_threads(before)


def test_endless_is_one_shuffle_after_the_other():
    members = np.array([3, 5, 8, 9])
    stream = list(islice(endless(members, np.random.default_rng(0)), 400))
    passes = [stream[i : i + 4] for i in range(0, 400, 4)]
    assert all(sorted(one) == [3, 5, 8, 9] for one in passes) and all(type(member) is int for member in stream)
    assert sum(one != other for one, other in pairwise(passes)) > 80  # 1 in 24 orders repeats by chance
    again = endless(members, np.random.default_rng(0))
    assert list(islice(again, 400)) == stream
    assert list(islice(endless(members, np.random.default_rng(1)), 400)) != stream


def test_slices_of_volumes_and_whole_images():
    image, label = torch.rand(2, 6, 5, 4), torch.randint(0, 3, (1, 6, 5, 4))
    found = slices(image, label, 2)
    assert len(found) == 4
    for z, (view, mask) in enumerate(found):
        assert torch.equal(view, image[..., z]) and torch.equal(mask, label[..., z])
        assert view.is_contiguous() and mask.is_contiguous()
    assert slices(image, label, 3) == [(image, label)] and slices(image[..., 0], label[..., 0], 2)[0][0].ndim == 3


def test_slices_without_a_label():
    image = torch.rand(1, 6, 5, 3)
    assert [mask for _, mask in slices(image, None, 2)] == [None] * 3 and slices(image, None, 3) == [(image, None)]


@pytest.mark.parametrize(("axes", "wanted", "expected"), [
    (2, 3, "expected volumes of 3 axes, found 2 axes; train with spatial_dims 2 (slices)."),
    (4, 3, "expected volumes of 3 axes, found 4 axes; convert the images."),
    (4, 2, "expected images of 2 axes, or volumes of 3 that are cut into slices, found 4 axes; convert the images."),
    (1, 2, "expected images of 2 axes, or volumes of 3 that are cut into slices, found 1 axes; convert the images."),
])  # fmt: skip
def test_another_number_of_axes_is_refused(axes, wanted, expected):
    """A bundle for slices alone has no key spatial_dims: it is named where it helps only."""
    image = torch.rand(1, *[2] * axes)
    with pytest.raises(DataError) as caught:
        slices(image, image, wanted)
    assert str(caught.value) == expected


def test_plain_leaves_tensors_alone():
    given = MetaTensor(torch.rand(1, 3), affine=np.eye(4))
    assert type(plain(given)) is torch.Tensor and torch.equal(plain(given), given.as_tensor())
    assert type(plain(np.ones(2))) is torch.Tensor
