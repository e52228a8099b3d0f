"""Slices are cut as they were acquired, whichever way a scan is stored, and maps find their way back."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from common.data import Preprocessing
from common.data.orient import axis_codes

ORDERS = itertools.permutations(("LR", "PA", "IS"))
CODES = ["".join(turned) for order in ORDERS for turned in itertools.product(*order)]


def affine_of(codes, edges):
    """Of a scan whose axes run as the codes say, with one edge length for each."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (code, edge) in enumerate(zip(codes, edges, strict=True)):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[row, axis] = edge if code in "RAS" else -edge
    return affine


@pytest.mark.parametrize("codes", CODES)
def test_all_48_orientations_with_the_thick_axis_anywhere(codes):
    for thick in range(3):
        edges = [5.0 if axis == thick else 1.0 for axis in range(3)]
        letter = next(c for c in "RAS" for pair in ("LR", "PA", "IS") if c in pair and codes[thick] in pair)
        rest = [c for c in "RAS" if c != letter]
        affine = affine_of(codes, edges)
        assert axis_codes(affine, "RAS", "thickest") == "".join([*rest, letter])
        kept = [c for i, c in enumerate(codes) if i != thick]
        assert axis_codes(affine, None, "thickest") == "".join([*kept, codes[thick]])
        assert axis_codes(affine, "RAS", "coronal") == "RSA" and axis_codes(affine, "RAS", None) == "RAS"
        assert axis_codes(affine, None, None) == codes


def test_of_equal_axes_the_last_one_stays():
    assert axis_codes(affine_of("RAS", (1, 1, 1)), "RAS", "thickest") == "RAS"
    assert axis_codes(affine_of("LPS", (3, 3, 1)), None, "thickest") == "LSP"
    assert axis_codes(affine_of("RAS", (1.004, 1, 1)), "RAS", "thickest") == "RAS"  # rounding of a header


@pytest.mark.parametrize("codes", ["RAS", "PIR", "ASL"])
def test_a_sagittal_scan_is_cut_along_its_own_slices_and_goes_back(tmp_path, codes):
    """The step alone: voxels that count along the thick axis come out constant in each slice."""
    thick = next(axis for axis, code in enumerate(codes) if code in "LR")
    shape = [7, 6, 5]
    voxels = np.broadcast_to(np.arange(shape[thick]).reshape([-1 if a == thick else 1 for a in range(3)]), shape)
    affine = affine_of(codes, [4.0 if axis == thick else 1.0 for axis in range(3)])
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), affine), tmp_path / "scan.nii.gz")
    transform = Preprocessing(slices="thickest", intensity=[]).inference()
    item = transform({"image": str(tmp_path / "scan.nii.gz")})
    turned = np.asarray(item["image"][0])
    assert turned.shape[2] == shape[thick] and (turned.min((0, 1)) == turned.max((0, 1))).all()
    back = transform.inverse(item)["image"]
    np.testing.assert_array_equal(np.asarray(back[0]), voxels)
    np.testing.assert_allclose(back.affine, affine)


def test_an_unknown_plane_is_refused():
    with pytest.raises(ValueError, match="slices: expected thickest, sagittal, coronal, axial or null, found 'sagi'"):
        Preprocessing(slices="sagi")
