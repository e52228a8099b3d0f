import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from common.data import ShrinkByAread


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
