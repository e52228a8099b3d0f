"""Synapse in the layout of the public download; the organs are blocks at known millimetres."""

import nibabel as nib
import numpy as np
import pytest

from common.data.dataset import read_dataset
from tools.prepare import prepare

pytestmark = pytest.mark.filterwarnings("ignore:.*expected .* scans, found")

def write_ct(root, number, places, size=512, training="Training"):
    """A CT of BTCV: first axis to the left or right, 0.8 mm pixels, 3 mm slices, air at -1024."""
    affine = np.array([[0.8, 0, 0, -200], [0, 0.8, 0, -210], [0, 0, 3, 50], [0, 0, 0, 1.0]])
    image, label = np.full((size, size, 6), -1024, np.int16), np.zeros((size, size, 6), np.uint8)
    for k, place in places.items():
        i, j, s = np.rint(np.linalg.solve(affine, [*place, 1])[:3]).astype(int)
        image[i - 12:i + 13, j - 12:j + 13, s - 1:s + 2], label[i - 12:i + 13, j - 12:j + 13, s - 1:s + 2] = 75, k
    for kind, array in (("img", image), ("label", label)):
        folder = root / "RawData" / training / kind
        folder.mkdir(parents=True, exist_ok=True)
        nib.Nifti1Image(array, affine).to_filename(folder / f"{kind}{number:04d}.nii.gz")


CT_PLACES = {1: (80.0, 30, 56), 6: (-70, 10, 59), 13: (15, -60, 59)}


def test_synapse_organs_stay_where_they_are(tmp_path, load, assert_at):
    write_ct(tmp_path / "in", 21, CT_PLACES)
    write_ct(tmp_path / "in", 3, {6: CT_PLACES[6]})
    write_ct(tmp_path / "in", 61, CT_PLACES, training="Testing")
    prepare("synapse", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    assert [item["case"] for item in found.training] == ["synapse_03", "synapse_21"] and len(found.labels) == 13
    label, affine = load(found.training[1], "label")
    image, _ = load(found.training[1], "image")
    assert label.shape == (256, 256, 6) and nib.aff2axcodes(affine) == ("L", "A", "S")
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), (1.4, 1.4, 3), atol=1e-4)
    assert_at(label, affine, CT_PLACES, (1.4, 1.4, 0.1))
    assert np.median(image[label == 6]) == 128 and image[0, 0, 0] == 0  # 75 HU is (75 + 125) / 400 of 255
    # the picture is centred where the 448 x 448 it was made of was
    np.testing.assert_allclose(nib.affines.apply_affine(affine, [127.5, 127.5, 0])[:2], (-200 + 255.5 * 0.8,
                                                                                         -210 + 255.5 * 0.8), atol=0.8)


def test_synapse_refuses_slices_of_another_size_and_files_without_partner(tmp_path):
    write_ct(tmp_path / "in", 1, CT_PLACES)
    write_ct(tmp_path / "in", 2, {}, size=256)
    (tmp_path / "in" / "RawData" / "Training" / "img" / "img0001.nii.gz").unlink()
    with pytest.raises(SystemExit) as caught:
        prepare("synapse", str(tmp_path / "in"), str(tmp_path / "out"))
    assert "label0001.nii.gz: expected img0001.nii.gz" in str(caught.value)
    assert "img0002.nii.gz: expected slices of 512 x 512, found 256 x 256" in str(caught.value)
