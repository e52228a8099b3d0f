import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, CopyItemsd, EnsureChannelFirstd, LoadImaged, Resized

from common.data import Case, write_dataset
from common.data.whole_cases import CaseDataset

READ = [LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"]), CopyItemsd("image", names="native")]


def paint(size, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, size).astype(np.uint8), (rng.random(size) > 0.6).astype(np.uint8)


def save_volume(folder, name, size=(12, 10, 4), seed=0):
    """The paths of an image and its label, voxels of 2 x 3 x 5 mm."""
    folder.mkdir(parents=True, exist_ok=True)
    item = {}
    for key, voxels in zip(("image", "label"), paint(size, seed), strict=True):
        item[key] = str(folder / f"{name}{'_label' * (key == 'label')}.nii.gz")
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 5.0, 1.0])), item[key])
    return item


def test_a_photograph_keeps_its_own_grid(tmp_path):
    """MONAI reads photographs with x first; label and native image are read alike."""
    size, colour = (28, 20), np.random.default_rng(1).integers(0, 255, (28, 20, 3)).astype(np.uint8)
    _, label = paint(size)
    cases = [Case(f"d_{i}", colour, label if i == 2 else 1 - label) for i in (1, 2)]
    folder = write_dataset(tmp_path / "set", "set", {"0": "photograph"}, {1: "disc"}, training=cases)
    items = [{"image": str(folder / f"images/d_{i}.png"), "label": str(folder / f"labels/d_{i}.png"), "case": f"d_{i}",
              "domain": "d"} for i in (1, 2)]  # fmt: skip
    data = CaseDataset(items, Compose([*READ, Resized("image", (16, 16), mode="area")]))
    case = data[1]
    assert len(data) == 2 and (case["case"], case["domain"], case["unit"]) == ("d_2", "d", "px")
    assert case["image"].shape == (3, 16, 16) and type(case["image"]) is torch.Tensor
    assert case["label"].dtype == torch.uint8 and np.array_equal(case["label"].numpy().T, label)
    assert np.array_equal(case["native"].numpy(), colour.transpose(2, 1, 0))
    assert case["spacing"] == [1.0, 1.0] and case["affine"] is None and case["scan"] == "d_2"


def test_a_volume_has_millimetres(tmp_path):
    item = save_volume(tmp_path, "v")
    image, label = paint((12, 10, 4))
    case = CaseDataset([item], Compose([*READ, Resized("image", (16, 16, -1), mode="area")]))[0]
    assert case["image"].shape == (1, 16, 16, 4) and np.array_equal(case["label"].numpy(), label)
    assert np.array_equal(case["native"].numpy()[0], image) and case["image"].dtype == torch.float32
    assert case["spacing"] == [2.0, 3.0, 5.0] and case["unit"] == "mm"
    assert np.array_equal(case["affine"], np.diag([2.0, 3.0, 5.0, 1.0]))
    assert case["domain"] == "unknown" and case["case"] == case["scan"] == "v"


@pytest.mark.parametrize(
    ("files", "scans"),
    [
        (["p1_frame01", "p1_frame09", "p2_frame01"], ["p1_frame01", "p1_frame09", "p2_frame01"]),
        # the files of a patient's two time points have one name
        (["p1/ed/image", "p1/es/image", "p2/ed/image"], ["p1_ed_image", "p1_es_image", "p2_ed_image"]),
    ],
)
def test_images_of_one_case_are_told_apart(tmp_path, files, scans):
    items = [{**save_volume((tmp_path / file).parent, file.rpartition("/")[2], seed=i), "case": file[:2]}
             for i, file in enumerate(files)]  # fmt: skip
    data = CaseDataset(items, Compose(READ))
    found = [data[i] for i in range(3)]
    assert [case["case"] for case in found] == ["p1", "p1", "p2"] and [case["scan"] for case in found] == scans
    assert CaseDataset([], Compose(READ)).scans == []
