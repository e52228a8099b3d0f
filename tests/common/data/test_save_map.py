"""A map has the shape, the matrices with their codes, and the units of its scan."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Invertd

from common.data import DataError, Preprocessing, SaveMapd

AFFINE = np.array([[0, -1.5, 0, 3], [2, 0, 0, -4], [0, 0, 3, 5], [0, 0, 0, 1.0]])


def write(file, shape, sform, qform, unit):
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = nib.Nifti1Image(voxels, AFFINE)
    image.set_sform(AFFINE if sform else None, sform)
    image.set_qform(AFFINE if qform else None, qform)
    image.header.set_xyzt_units(unit)
    image.header["cal_max"] = 7
    nib.save(image, file)
    return nib.load(file)


@pytest.mark.parametrize("shape", [(12, 10, 8), (15, 14, 1), (1, 14, 9), (5, 1, 1)])
@pytest.mark.parametrize(("sform", "qform", "unit"), [(1, 1, "mm"), (0, 1, "mm"), (2, 0, "mm"), (0, 0, "unknown")])
def test_the_grid_of_the_scan(tmp_path, shape, sform, qform, unit):
    scan = write(tmp_path / "scan.nii.gz", shape, sform, qform, unit)
    before = Preprocessing().inference()
    item = before({"image": str(tmp_path / "scan.nii.gz")})
    item["pred"] = (item["image"] > 0).float()
    after = Compose([Invertd("pred", orig_keys="image", transform=before, nearest_interp=False),
                     SaveMapd("pred", str(tmp_path))])  # fmt: skip
    after(item)
    found = nib.load(tmp_path / "scan_seg.nii.gz")
    voxels = np.asarray(scan.dataobj)
    assert found.shape == shape and found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(found.dataobj), voxels > voxels.mean())
    for key in ("qform_code", "sform_code", "xyzt_units"):
        assert found.header[key] == scan.header[key]
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-6)
    np.testing.assert_allclose(found.get_qform(), scan.get_qform(), atol=1e-6)
    assert found.header["cal_max"] == 0
    assert {file.name for file in tmp_path.iterdir()} == {"scan.nii.gz", "scan_seg.nii.gz"}


def test_a_map_of_another_shape_is_refused(tmp_path):
    write(tmp_path / "scan.nii.gz", (6, 5, 4), 1, 1, "mm")
    item = Preprocessing(orientation=None).inference()({"image": str(tmp_path / "scan.nii.gz")})
    item["pred"] = item["image"][:, :3]
    with pytest.raises(DataError, match=r"expected a map of the scan's shape \(6, 5, 4\), found \(3, 5, 4\)"):
        SaveMapd("pred", str(tmp_path))(item)
    assert {file.name for file in tmp_path.iterdir()} == {"scan.nii.gz"}


def test_the_type_of_another_map(tmp_path):
    write(tmp_path / "scan.nii.gz", (6, 5, 4), 1, 1, "mm")
    item = Preprocessing(orientation=None).inference()({"image": str(tmp_path / "scan.nii.gz")})
    item["pred"] = torch.full_like(item["image"], 0.25)
    SaveMapd("pred", str(tmp_path), postfix="uncertainty", dtype=np.float32)(item)
    found = nib.load(tmp_path / "scan_uncertainty.nii.gz")
    assert found.get_data_dtype() == np.float32 and (np.asarray(found.dataobj) == 0.25).all()
