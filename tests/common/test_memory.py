"""Memory of what whole scans go through: it grows with the voxels, not with the structures."""

import subprocess
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("no resource module here", allow_module_level=True)

CODE = """
import resource, sys
import nibabel as nib, numpy as np, torch
from common.data import InvertToLabelMapd, Preprocessing
from common.data.cleanup import make_cleanup
from common.data.shrink import enlarge, largest_class
from common.report.cases import case_rows
from monai.data import MetaTensor

def files(folder, shape, label):
    nib.save(nib.Nifti1Image(np.arange(np.prod(shape)).reshape(shape).astype(np.int16), np.eye(4)), folder + "/i.nii")
    nib.save(nib.Nifti1Image(label, np.eye(4)), folder + "/l.nii")
    return {"image": folder + "/i.nii", "label": folder + "/l.nii"}

def parts(classes, folder, shape):
    label = np.random.default_rng(0).integers(0, classes + 1, shape, dtype=np.uint8)
    scan = files(folder, shape, label)
    Preprocessing(zoom=0.5).training(classes + 1)(scan)
    case_rows("a", label, label, {k: str(k) for k in range(1, classes + 1)}, (1, 1, 1), distances=False)
    make_cleanup(["largest"])(torch.from_numpy(label)[None])
    steps = Preprocessing(zoom=0.25).inference()
    item = steps({"image": scan["image"]})
    logits = torch.zeros(classes + 1, *item["image"].shape[1:])
    largest_class(enlarge(own[None], shape) for own in logits)
    InvertToLabelMapd("pred", steps)({**item, "pred": MetaTensor(logits)})

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

torch.set_num_threads(1)
classes, folder, shape = int(sys.argv[1]), sys.argv[2], tuple(int(length) for length in sys.argv[3].split(","))
parts(2, folder, (16, 16, 16))  # libraries that are loaded when they are needed
before = peak()
parts(classes, folder, shape)
print((peak() - before) / np.prod(shape))
"""


def bytes_a_voxel(classes, folder, shape=(128, 128, 64)):
    command = [sys.executable, "-c", CODE, str(classes), str(folder), ",".join(map(str, shape))]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def test_memory_does_not_grow_with_the_structures(tmp_path):
    """Some 70 bytes a voxel; 64 structures at once, in uint8 alone, would be 64 more."""
    assert bytes_a_voxel(64, tmp_path) < 100
