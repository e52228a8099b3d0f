"""What a header says doubtfully of geometry is refused or told of, and a sound one passes in silence."""

import warnings

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_cases
from common.data.dataset import DataError

AFFINE = np.diag([1.0, 1.5, 3.0, 1.0])


def write(folder, sform=1, qform=1, affine=AFFINE, other=None, unit="mm", voxels=None):
    voxels = np.random.default_rng(0).normal(100, 10, (6, 5, 4)).astype(np.float32) if voxels is None else voxels
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, sform)
    image.set_qform(affine if other is None else other, qform)
    image.header.set_xyzt_units(unit)
    nib.save(image, folder / "scan.nii.gz")
    return [{"image": str(folder / "scan.nii.gz"), "case": "scan"}]


def said(cases):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        check_cases(cases, {})
    return "\n".join(str(one.message) for one in seen)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 2)])
@pytest.mark.parametrize("unit", ["mm", "unknown"])
def test_a_sound_header_passes_in_silence(tmp_path, sform, qform, unit):
    assert said(write(tmp_path, sform, qform, unit=unit)) == ""


def test_no_orientation_is_told(tmp_path):
    text = said(write(tmp_path, 0, 0))
    assert "scan.nii.gz: expected an orientation, found none (qform_code and sform_code are 0)" in text


def test_two_matrices_that_disagree_are_told_with_their_distance(tmp_path):
    moved = AFFINE.copy()
    moved[2, 3] = 12
    assert "found corners that lie 12 mm apart; the sform is used" in said(write(tmp_path, other=moved))
    assert said(write(tmp_path, qform=0, other=moved)) == ""  # then there is one alone
    moved[2, 3] = 0.05  # a twentieth of a voxel is rounding
    assert said(write(tmp_path, other=moved)) == ""


def test_a_shear_is_told(tmp_path):
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.3
    assert "expected axes at right angles, found a shear" in said(write(tmp_path, qform=0, affine=sheared))
    turned = AFFINE.copy()
    turned[:2, :2] = np.array([[0.8, -0.6], [0.6, 0.8]]) * [1.0, 1.5]
    assert said(write(tmp_path, affine=turned)) == ""


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_other_units_are_refused(tmp_path, unit):
    with pytest.raises(DataError, match=f"expected a spacing in millimetres, found the unit {unit}; convert it"):
        said(write(tmp_path, unit=unit))


@pytest.mark.parametrize(
    ("fill", "dtype", "outcome"),
    [
        (np.finfo(np.float32).min, np.float32, "a fill value: set these voxels to"),
        (-1e20, np.float32, "a fill value: set these voxels to"),
        (1e300, np.float64, "voxels beyond float32|beyond float32"),
        (-3024, np.float32, "if it is a fill value, set these voxels to"),
        (0, np.float32, ""),
    ],
)
def test_fill_values_are_named_with_the_remedy(tmp_path, fill, dtype, outcome):
    voxels = np.random.default_rng(1).normal(100, 10, (8, 8, 4)).astype(dtype)
    voxels[:2] = fill
    cases = write(tmp_path, voxels=voxels)
    if fill in (-3024, 0):
        text = said(cases)
        assert outcome in text and bool(text) == bool(outcome)
    else:
        with pytest.raises(DataError, match=outcome) as refused:
            said(cases)
        assert str(refused.value).startswith("1 problem ")  # a fault is told once


@pytest.mark.parametrize("scale", [1e17, 1e25, -1e25])
def test_values_whose_squares_do_not_fit_float32_are_refused_at_once(tmp_path, scale):
    """They are finite, and no fill values; a standard deviation would be infinite, after all work but the last step."""
    voxels = (np.random.default_rng(1).normal(100, 10, (8, 8, 4)) * scale).astype(np.float32)
    with pytest.raises(DataError, match="intensities within 1e.15 of zero, to be normalised in float32, found val"):
        said(write(tmp_path, voxels=voxels))
    voxels[1:, :, :] = 100  # a single row of them
    with pytest.raises(DataError, match="intensities within 1e.15 of zero"):
        said(write(tmp_path, voxels=voxels))


def test_large_values_that_fit_are_accepted(tmp_path):
    voxels = (np.random.default_rng(1).normal(100, 10, (8, 8, 4)) * 1e10).astype(np.float32)
    assert said(write(tmp_path, voxels=voxels)) == ""


def test_one_bright_voxel_is_no_fill_value(tmp_path):
    voxels = np.random.default_rng(1).normal(100, 10, (8, 8, 4)).astype(np.float32)
    voxels[0, 0, 0] = 1e7
    assert said(write(tmp_path, voxels=voxels)) == ""


def test_padding_of_a_ct_is_usual(tmp_path):
    voxels = np.random.default_rng(1).uniform(-1024, 2000, (8, 8, 4)).astype(np.int16)
    voxels[:2] = -3024
    assert said(write(tmp_path, voxels=voxels)) == ""
