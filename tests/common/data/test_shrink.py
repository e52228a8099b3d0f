import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from common.data import ShrinkByAread, ZoomByAread
from common.data.shrink import enlarge


@pytest.mark.parametrize(
    ("shape", "size", "mode"), [((9, 12), [4, 5], "bilinear"), ((9, 12, 6), [4, 5, 6], "trilinear")]
)
def test_there_by_area_and_back_linearly(shape, size, mode):
    torch.manual_seed(0)
    image = MetaTensor(torch.rand(2, *shape), affine=np.eye(4))
    there = Compose([ShrinkByAread("image", size)])
    done = there({"image": image})
    torch.testing.assert_close(done["image"].as_tensor(), F.adaptive_avg_pool3d(image.as_tensor(), size)
                               if len(size) == 3 else F.adaptive_avg_pool2d(image.as_tensor(), size))  # fmt: skip
    logits = MetaTensor(torch.randn(3, *size))
    back = Invertd("pred", there, "image", nearest_interp=False, to_tensor=True)({**done, "pred": logits})["pred"]
    expected = F.interpolate(logits.as_tensor()[None], shape, mode=mode, align_corners=False)[0]
    torch.testing.assert_close(back.as_tensor(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(enlarge(logits.as_tensor(), shape), expected)


def test_zoom_leaves_an_axis_of_which_nothing_would_be_left_as_it_is():
    """And only there: one transform serves scans of one slice and of many."""
    zoom = ZoomByAread("image", 0.5)
    for size, zoomed in (((8, 6, 1), (4, 3, 1)), ((8, 6, 4), (4, 3, 2)), ((1, 6, 4), (1, 3, 2))):
        found = zoom({"image": MetaTensor(torch.rand(1, *size))})
        assert found["image"].shape == (1, *zoomed)
        assert zoom.inverse(found)["image"].shape == (1, *size)


def test_enlarging_keeps_what_lies_where():
    """A ramp of voxel centres stays that ramp: every voxel becomes two, a quarter of it to either side."""
    ramp = torch.arange(4.0)[None, None].expand(1, 3, 4)
    expected = torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    torch.testing.assert_close(enlarge(ramp, (3, 8)), expected.expand(1, 3, 8))
    assert torch.equal(enlarge(ramp, torch.Size([3, 4])), ramp)
