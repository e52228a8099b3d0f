"""What the tests of the bundle share: a narrow U-Net, photographs of painted discs, a small set of sample data."""

import numpy as np
import pytest
import torch

from common.data.write import Case, write_dataset
from sgcg_dg import sample
from sgcg_dg.network import UNet

REGIONS = {"cup": [2], "disc": [1, 2]}
LABELS = {1: "rim", 2: "cup"}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make_network(cls=UNet, **options):
    """The U-Net at width 4; every call gives the same weights."""
    torch.manual_seed(1)
    return cls(**{"width": 4, **options})


def paint(case, size=(28, 20), channels=3, labels=(1, 2)):
    """A disc with a cup, off the middle and smaller than the image, and its label map; each case has its own noise.

    Args:
        size: rows and columns, and slices of a volume.
    """
    rng = np.random.default_rng([*case.encode()])
    rows, columns = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(rows - 0.4 * size[0], columns - 0.55 * size[1]) / min(size[:2])
    label = np.zeros(size, np.uint8)
    for value, radius in ((1, 0.38), (2, 0.22)):
        if value in labels:
            label[distance < radius] = value
    image = 40 + 60 * label + rng.integers(0, 30, size)
    if channels == 3:
        image = np.stack([image, image // 2, image // 3], -1)
    return Case(case, image.astype(np.uint8), label)


def write_photos(directory, training, validation=None, **options):
    """A data set on disk with so many photographs (or volumes, by ``size``) of each domain: a_1, a_2, ..., b_1, ..."""

    def cases(counts, before):
        for domain, count in counts.items():
            first = before.get(domain, 0) + 1
            for number in range(first, first + count):
                case = paint(f"{domain}_{number}", **options)
                yield Case(case.name, case.image, case.label, domain=domain)

    splits = {"training": cases(training, {}), "validation": cases(validation or {}, training)}
    return write_dataset(directory, "discs", {"0": "photograph"}, LABELS, **splits)


@pytest.fixture(scope="session", name="make_network")
def _make_network():
    return make_network


@pytest.fixture(scope="session", name="paint")
def _paint():
    return paint


@pytest.fixture(scope="session", name="write_photos")
def _write_photos():
    return write_photos


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory):
    """The bundle's own sample data with few images of each centre; generated once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "SIZES", {centre: (5, 2) for centre in sample.CENTRES})
        return sample.generate_sample_data(tmp_path_factory.mktemp("sample") / "sample_data")
