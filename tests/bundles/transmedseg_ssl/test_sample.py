import nibabel as nib
import numpy as np
import pytest

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from common.phantoms.heart import STACK, draw_cases
from transmedseg_ssl.sample import generate_sample_data


@pytest.fixture(autouse=True)
def few_subjects(monkeypatch):
    """One subject in each split; the whole set is tested with the phantom."""
    few = {split: (number, 1, (0.2, 0.6)) for number, split in enumerate(("training", "unlabeled", "validation"), 1)}
    monkeypatch.setattr("common.phantoms.heart.sample.SPLITS", few)


def test_hearts_in_the_bundles_format(tmp_path):
    data = read_dataset(generate_sample_data(tmp_path / "data"))
    check_dataset(data)
    assert data.name == "heart_phantom"
    assert data.labels == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    assert (len(data.training), len(data.unlabeled), len(data.validation), len(data.test)) == (1, 1, 1, 0)
    for item in data.training + data.unlabeled + data.validation:
        image = nib.load(item["image"])
        assert image.shape == (64, 64, 12) and nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_allclose(image.header.get_zooms(), (2.5, 2.5, 8))


@pytest.mark.parametrize(("seed", "options"), [(0, {}), (1, {"seed": 1})])
def test_the_seed_is_0_unless_given(tmp_path, seed, options):
    (item,) = read_dataset(generate_sample_data(tmp_path / "data", **options)).validation
    wanted = [next(draw_cases("validation", number, STACK)).label for number in (seed, 1 - seed)]
    found = np.asarray(nib.load(item["label"]).dataobj)
    assert np.array_equal(found, wanted[0]) and not np.array_equal(found, wanted[1])
