"""Prostate in the layout of the public archive; a block at known millimetres."""

import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from tools.prepare import prepare, prostate

pytestmark = pytest.mark.filterwarnings("ignore:.*expected .* scans, found")
AFFINE = np.array([[-0.6, 0, 0, 30], [0, -0.6, 0, 40], [0, 0, 3.6, -20], [0, 0, 0, 1.0]])
SHAPE = (24, 24, 5)
NAMES = ("Case{:02d}", "Case{:02d}_segmentation")


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    monkeypatch.setattr(prostate, "SIZE", 24)


def write(root, site, number, values=(1, 2), names=NAMES, shape=SHAPE, affine=AFFINE):
    """A scan whose voxels rise to 1000 but for one of 30000, and its two zones."""
    image = np.linspace(0, 1000, int(np.prod(shape))).reshape(shape).round().astype(np.int16)
    image[0, 0, 0] = 30000
    label = np.zeros(shape, np.float32)
    label[4:8, 6:14, 1:4], label[8:12, 6:14, 1:4] = values
    (root / site).mkdir(parents=True, exist_ok=True)
    for name, array, grid in ((names[0], image, AFFINE), (names[1], label, affine)):
        nib.Nifti1Image(array, grid).to_filename(root / site / f"{name.format(number)}.nii.gz")


def test_sites_are_domains_and_zones_are_merged(tmp_path, load, assert_at, capsys):
    write(tmp_path / "in", "RUNMC", 3)
    write(tmp_path / "in", "hk", 11, values=(1, 1), names=("case{:02d}", "Case{:02d}_Segmentation"))
    write(tmp_path / "in", "BIDMC", 0)
    write(tmp_path / "in", "elsewhere", 0)
    prepare("prostate", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    check_dataset(found)
    assert [(item["case"], item["domain"]) for item in found.training] == [
        ("prostate_RUNMC_03", "RUNMC"), ("prostate_BIDMC_00", "BIDMC"), ("prostate_HK_11", "HK")]
    assert found.labels == {1: "prostate"} and not found.validation and not found.folds
    for item in found.training:
        image, affine = load(item, "image")
        label, label_affine = load(item, "label")
        assert image.shape == label.shape == SHAPE and image.dtype == np.uint8
        np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
        np.testing.assert_allclose(label_affine, AFFINE, atol=1e-6)
        centre = nib.affines.apply_affine(AFFINE, (7.5, 9.5, 2))
        assert_at(label, affine, {1: centre}, 1e-4)
        assert (label == 1).sum() == 8 * 8 * 3
        # the one voxel of 30000 is within the clipped half per cent: 500 of about 995
        assert abs(int(image[12, 0, 0]) - 500 / 995 * 255) <= 2
    assert "CC BY 3.0" in capsys.readouterr().out


def test_published_counts(tmp_path):
    write(tmp_path / "in", "UCL", 1)
    text = ("RUNMC, training: expected 30 scans, found 0; BMC, training: expected 30 scans, found 0; "
            "I2CVB, training: expected 19 .* 13 scans, found 1; BIDMC.* 12 .* 12 scans, found 0; is the download")
    with pytest.warns(UserWarning, match=text):
        prepare("prostate", str(tmp_path / "in"), str(tmp_path / "out"))


def test_every_bad_file_in_one_error(tmp_path):
    root = tmp_path / "in"
    for number in range(7):
        write(root, "BMC", number, values={1: (1, 3), 2: (0, 0)}.get(number, (1, 2)))
    (root / "BMC" / "Case00_segmentation.nii.gz").unlink()
    (root / "BMC" / "Case03.nii.gz").unlink()
    (root / "BMC" / "Case04.nii.gz").write_bytes(b"no scan")
    write(root, "BMC", 5, affine=AFFINE + np.diag([0, 0, 1.0, 0]))
    (root / "BMC" / "case6.nii.gz").write_bytes(b"there twice")
    with pytest.raises(SystemExit) as caught:
        prepare("prostate", str(root), str(tmp_path / "out"))
    text = str(caught.value)
    for part in ("Case00.nii.gz: expected its mask Case00_segmentation.nii.gz",
                 "prostate_BMC_01, ", "Case01_segmentation.nii.gz: expected the label values 0, 1, 2, found [3.0]",
                 "Case02_segmentation.nii.gz: expected a prostate (1 or 2), found background only",
                 "Case03_segmentation.nii.gz: expected its scan Case03.nii.gz", "Case04.nii.gz: expected a NIfTI file",
                 "Case05_segmentation.nii.gz: expected the grid of Case05.nii.gz",
                 "case6.nii.gz: expected once, found"):
        assert part in text, part
    assert text.startswith("7 problems") and not (tmp_path / "out").exists()


def test_slices_of_another_size_warn(tmp_path):
    write(tmp_path / "in", "UCL", 1, shape=(5, 24, 24))
    with pytest.warns(UserWarning, match="prostate_UCL_01, .*Case01.nii.gz: expected slices of 24 x 24 along"):
        prepare("prostate", str(tmp_path / "in"), str(tmp_path / "out"))
