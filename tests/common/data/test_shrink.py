import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, Invertd

from common.data import InvertToLabelMapd, Preprocessing, ShrinkByAread, ZoomByAread
from common.data.shrink import enlarge, largest_class


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


def test_largest_class_is_the_lowest_of_equal_ones():
    logits = torch.tensor([[0.0, 2, 1, 5], [1, 2, 0, 5], [1, 1, 3, 5]])[:, None]
    label_map = largest_class(iter(logits))
    assert label_map.dtype == torch.uint8 and label_map.tolist() == [[1, 0, 2, 0]]


@pytest.mark.parametrize("count", [0, 257])
def test_classes_that_a_label_map_cannot_hold_are_refused(count):
    with pytest.raises(ValueError, match="expected"):
        largest_class(torch.zeros(count, 1, 1))


@pytest.mark.parametrize(
    "options", [{"zoom": 0.5}, {"orientation": "SPL"}, {"image_size": [5, 7], "slices": "thickest"}]
)
def test_a_label_map_class_by_class_is_that_of_all_at_once(tmp_path, options):
    rng = np.random.default_rng(0)
    affine = np.diag([-1.0, 2.0, 4.0, 1.0])[[0, 2, 1, 3]]
    nib.save(nib.Nifti1Image(rng.normal(size=(12, 9, 10)).astype(np.float32), affine), tmp_path / "scan.nii.gz")
    steps = Preprocessing(**options).inference()
    item = steps({"image": str(tmp_path / "scan.nii.gz")})
    item["pred"] = MetaTensor(torch.randn(5, *item["image"].shape[1:], generator=torch.Generator().manual_seed(1)))
    at_once = Compose([Invertd("pred", steps, "image", nearest_interp=False), AsDiscreted("pred", argmax=True)])
    expected, found = at_once(dict(item))["pred"], InvertToLabelMapd("pred", steps)(dict(item))["pred"]
    assert found.shape == (1, 12, 9, 10) and found.dtype == torch.uint8
    assert torch.equal(found.as_tensor(), expected.as_tensor().to(torch.uint8))
    np.testing.assert_allclose(found.affine, expected.affine)
