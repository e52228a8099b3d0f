import nibabel as nib
import numpy as np
import pytest


@pytest.fixture(scope="session")
def load():
    """The voxels and the affine of a file of an item."""

    def load(item, key):
        volume = nib.load(item[key])
        return np.asarray(volume.dataobj), volume.affine

    return load


@pytest.fixture(scope="session")
def assert_at():
    """Every class of ``places`` has its centre at its place (RAS+ millimetres), and no other class occurs."""

    def assert_at(label, affine, places, tolerance):
        assert set(np.unique(label)) == {0, *places}
        for k, place in places.items():
            centre = nib.affines.apply_affine(affine, np.argwhere(label == k).mean(0))
            assert (np.abs(centre - place) <= tolerance).all(), f"class {k} is at {centre}, not at {place}"

    return assert_at
