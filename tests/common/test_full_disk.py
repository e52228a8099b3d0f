"""A disk that takes no more: one text with the file and what to do, and what was there before is whole."""

import errno
import gzip
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.data import SaveMapd, write_dataset
from common.data.temporary import replaced, writing
from common.data.write import Case
from common.engine import load_checkpoint, save_atomic
from common.report import save_overlay, write_cases_csv

resource = pytest.importorskip("resource")
NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)


@contextmanager
def full_disk(most):
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_map(folder, suffix):
    meta = {"filename_or_obj": str(folder / "scan.nii.gz")}
    found = torch.from_numpy(NOISE[None] if suffix == ".nii.gz" else NOISE[None, ..., :1])
    SaveMapd("pred", str(folder / "maps"), suffix)({"pred": MetaTensor(found, meta=meta)})


WRITERS = {
    "model.pt": lambda folder: save_atomic({"weights": torch.zeros(5000)}, folder / "model.pt"),
    "cases.csv": lambda folder: write_cases_csv([{"case": "c" * 5000}], folder / "cases.csv"),
    "overlay.png": lambda folder: save_overlay(folder / "overlay.png", NOISE, NOISE[..., 0] % 2, None, {1: "one"}),
    "maps/scan_seg.nii.gz": lambda folder: save_map(folder, ".nii.gz"),
    "maps/scan_seg.png": lambda folder: save_map(folder, ".png"),
    "set": lambda folder: write_dataset(folder / "set", "set", {"0": "MRI"}, {}, unlabeled=[Case("a", NOISE)]),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_told_of_with_the_file(name, tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(NOISE, np.eye(4)).to_bytes()))
    (tmp_path / "maps").mkdir()
    before = {*tmp_path.rglob("*")}
    with full_disk(1000), pytest.raises(OSError, match="expected to write it, found: File too large") as error:
        WRITERS[name](tmp_path)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and "Make room there" in str(error.value)
    assert {*tmp_path.rglob("*")} - {tmp_path / name} == before  # nothing is left that was being written
    WRITERS[name](tmp_path)
    assert (tmp_path / name).exists()


def test_the_checkpoint_of_before_is_whole(tmp_path):
    save_atomic({"epoch": 1}, tmp_path / "checkpoint.pt")
    with full_disk(1000), pytest.raises(OSError, match="What was there before is whole"):
        save_atomic({"epoch": 2, "weights": torch.zeros(5000)}, tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path / "checkpoint.pt") == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such"), writing(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such", "scan.nii.gz")
    with pytest.raises(ValueError, match="bad"), replaced(tmp_path / "a"):
        raise ValueError("bad")
    assert not any(tmp_path.iterdir())
