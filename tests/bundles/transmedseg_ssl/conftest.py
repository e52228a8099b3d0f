"""What the tests of the bundle share: scans of two nested structures, labelled and not."""

import numpy as np
import pytest

from common.data.write import Case, write_dataset

LABELS = {1: "wall", 2: "cavity"}
AFFINE = np.diag([-1.5, -1.5, 8.0, 1.0])


def draw_scan(name, size=(36, 34, 4)):
    """A disc within a disc, of brightness 1 and 2, in noise of its own; the place varies a little."""
    rng = np.random.default_rng([*name.encode()])
    middle = np.array(size[:2]) * (0.45 + 0.1 * rng.random(2))
    rows, columns, _ = np.mgrid[: size[0], : size[1], : size[2]]
    distance = np.hypot(rows - middle[0], columns - middle[1]) / min(size[:2])
    label = np.sum([distance < radius for radius in (0.4, 0.24)], 0).astype(np.uint8)
    return 40 + 50 * label + rng.integers(0, 20, size).astype(np.uint8), label


def write_scans(directory, training=2, unlabeled=2, validation=2, test=0, **options):
    """A data set on disk with so many scans of each kind, named after it; the unlabelled ones come without a label."""

    def cases(kind, count):
        for number in range(1, count + 1):
            name = f"{kind}_{number}"
            image, label = draw_scan(name, **options)
            yield Case(name, image, None if kind == "unlabeled" else label, AFFINE)

    counts = {"training": training, "unlabeled": unlabeled, "validation": validation, "test": test}
    splits = {kind: cases(kind, count) for kind, count in counts.items()}
    return write_dataset(directory, "discs", {"0": "MRI"}, LABELS, **splits)


@pytest.fixture(scope="session", name="write_scans")
def _write_scans():
    return write_scans


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    return write_scans(tmp_path_factory.mktemp("scans") / "set")
