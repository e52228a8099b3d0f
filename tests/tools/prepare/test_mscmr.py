"""MS-CMRSeg in the layout of the public download; the heart is a few blocks at known millimetres."""

import nibabel as nib
import numpy as np
import pytest

from common.data.dataset import read_dataset
from tools.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*expected .* scans, found")

HEART = {1: (10.0, 40, 5), 2: (-35, 5, 15), 3: (30, -30, -15)}  # millimetres along the scan's own axes, from its centre


def write_heart(root, number, values=(200, 500, 600), shape=(140, 150, 8), spacing=(1.0, 1.0, 10.0), mask=True):
    """A bSSFP scan in a double-oblique plane, as short axes are."""
    turn = np.linalg.qr(np.array([[0.7, 0.5, 0.5], [-0.6, 0.8, 0.1], [-0.4, -0.3, 0.87]]))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = [12, -40, 70] - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    along = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, spacing, strict=True)],
                                 indexing="ij"), axis=-1)
    image, label = np.full(shape, 50, np.int16), np.zeros(shape, np.int16)
    for k, place in HEART.items():
        inside = (np.abs(along - place) <= (13, 13, 16)).all(-1)
        image[inside], label[inside] = 200 * k, values[k - 1]
    for folder in ("c0t2lge", "c0gt"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(image, affine).to_filename(root / "c0t2lge" / f"patient{number}_C0.nii.gz")
    nib.Nifti1Image(image, affine).to_filename(root / "c0t2lge" / f"patient{number}_T2.nii.gz")
    if mask:
        nib.Nifti1Image(label, affine).to_filename(root / "c0gt" / f"patient{number}_C0_manual.nii.gz")
    return {k: nib.affines.apply_affine(affine, np.argwhere(label == v).mean(0))
            for k, v in zip(HEART, values, strict=True) if (label == v).any()}


def test_mscmr_oblique_hearts_stay_where_they_are(tmp_path, load, assert_at):
    places = write_heart(tmp_path / "in", 2)
    write_heart(tmp_path / "in", 11)
    write_heart(tmp_path / "in", 40, mask=False)  # of the ten patients without masks
    prepare("mscmr", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    assert [item["case"] for item in found.training] == ["mscmr_c0_02", "mscmr_c0_11"]
    assert found.labels == {1: "myocardium", 2: "left ventricle", 3: "right ventricle"}
    label, affine = load(found.training[0], "label")
    image, _ = load(found.training[0], "image")
    assert label.shape[:2] == (256, 256)
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (1.25, 1.25, 7.99), atol=1e-3)
    assert_at(label, affine, places, 3.0)
    for k, place in places.items():
        centre = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), place)).astype(int)
        assert abs(int(image[tuple(centre)]) - (200 * k - 50) / 550 * 255) <= 1


def test_mscmr_lists_every_bad_file(tmp_path):
    for number in (1, 2, 4, 5):
        write_heart(tmp_path / "in", number, values=(200, 501, 600) if number == 2 else (200, 500, 600))
    write_heart(tmp_path / "in", 3, spacing=(10.0, 1.0, 1.0))
    (tmp_path / "in" / "c0gt" / "patient1_C0_manual.nii.gz").unlink()
    damaged = tmp_path / "in" / "c0t2lge" / "patient4_C0.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:500])
    moved = tmp_path / "in" / "c0gt" / "patient5_C0_manual.nii.gz"
    nib.Nifti1Image(np.asarray(nib.load(moved).dataobj), np.eye(4)).to_filename(moved)
    with pytest.raises(SystemExit) as caught:
        prepare("mscmr", str(tmp_path / "in"), str(tmp_path / "out"))
    text = str(caught.value)
    for part in ("patient1_C0.nii.gz: expected patient1_C0_manual.nii.gz",
                 "patient2_C0_manual.nii.gz: expected the label values 0, 200, 500, 600, found [501]",
                 "patient3_C0.nii.gz: expected thick slices", "patient4_C0.nii.gz: expected a NIfTI file",
                 "patient5_C0_manual.nii.gz: expected the grid of patient5_C0.nii.gz"):
        assert part in text, part
    assert text.startswith("5 problems") and not (tmp_path / "out").exists()
