"""Whatever its size, spacing, orientation, channels and classes: a scan is segmented where it lies, and trained on.

Or it is refused in our words. ``EXAMPLES`` sets the number of examples of each bundle (3 where nothing is said).
"""

import os
import warnings
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pytest
import torch

from common.data import DataError
from common.data.write import Case, write_dataset
from common.engine import root_cause

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import Phase, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# axis (a permutation) and direction (a sign) of each of a scan's axes
ORIENTATIONS = [np.array([axes, signs]).T for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
# an example that fails is shown as it was drawn: to look for a smaller one takes minutes
RUN = settings(deadline=None, derandomize=True, database=None, max_examples=int(os.environ.get("EXAMPLES", "3")),
               phases=[Phase.generate])  # fmt: skip
STRUCTURES = {1: "one", 2: "two", 3: "three", 4: "four"}

scans = {
    "size": st.tuples(*[st.integers(1, 70)] * 3),
    "spacing": st.tuples(*[st.floats(0.2, 8)] * 3),
    "orientation": st.sampled_from(ORIENTATIONS),
}


def scan_of(size, spacing, orientation, seed=0):
    """A bright block in noise, somewhere in it; the scan, and what belongs to the block."""
    rng = np.random.default_rng(seed)
    starts = [int(rng.integers(0, 1 + length // 2)) for length in size]
    inside = np.zeros(size, bool)
    inside[tuple(slice(start, start + (length + 1) // 2) for start, length in zip(starts, size, strict=True))] = True
    image = rng.normal(100, 10, size).astype(np.float32) + 200 * inside
    return [nib.Nifti1Image(array, np.diag([*spacing, 1])).as_reoriented(orientation)
            for array in (image.astype(np.float32), inside.astype(np.uint8))]  # fmt: skip


def refusal(error):
    """The text of a refusal; any other error is a fault."""
    cause = root_cause(error)
    assert isinstance(cause, DataError), repr(cause)
    return str(cause)


@RUN
@given(**scans)
def test_a_map_lies_where_its_scan_does(doors, size, spacing, orientation):
    """On its grid; what is bright in the scan is labelled, to the voxel where the bundle does not resize slices."""
    scan, inside = scan_of(size, spacing, orientation)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(folder)
        scan.header.set_xyzt_units("mm")
        nib.save(scan, folder / "scan.nii.gz")
        (file,) = doors.infer_bright([str(folder / "scan.nii.gz")], folder / "out")
        found = nib.load(file)
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
        labelled, expected = np.asarray(found.dataobj) > 0, np.asarray(inside.dataobj) > 0
    if expected.all():  # nothing is darker
        return
    if doors.resizes:
        slack = [1 + 2 * length / 32 for length in scan.shape]  # slices of 32 pixels
        for places in (np.min, np.max):
            ends = [places(np.argwhere(mask), axis=0) for mask in (labelled, expected)]
            assert (np.abs(ends[0] - ends[1]) <= slack).all(), ends
    else:
        np.testing.assert_array_equal(labelled, expected)


@RUN
@given(**scans, channels=st.integers(1, 3), classes=st.integers(1, 4))
def test_a_step_of_training(doors, size, spacing, orientation, channels, classes):
    """A first loss that is finite, or a refusal."""
    channels = 1 if doors.name in doors.ONE_CHANNEL else channels
    names = {label: STRUCTURES[label] for label in range(1, classes + 1)}
    cases = []
    for seed, name in enumerate(("a1", "a2", "b1", "b2", "c1", "c2")):
        scan, inside = scan_of(size, spacing, orientation, seed)
        image, label, affine = np.asarray(scan.dataobj), np.asarray(inside.dataobj), scan.affine
        label[label > 0] = 1 + np.arange(label.sum()) * classes // label.sum()
        image = image if channels == 1 else np.stack([image] * channels, -1)
        cases.append(Case(name, image, label, affine, domain=name[0]))
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = write_dataset(Path(folder) / "set", "set", {str(c): "MRI" for c in range(channels)}, names,
                             training=cases, unlabeled=[Case("u1", cases[0].image + 1, None, affine)],
                             dtype=np.float32)  # fmt: skip
        try:
            loss = doors.first_loss(data, channels=channels, labels=names)
        except Exception as error:
            assert refusal(error)
        else:
            assert torch.isfinite(loss).all()
