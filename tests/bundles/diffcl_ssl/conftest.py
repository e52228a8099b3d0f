"""What the tests of the bundle share: volumes of two nested structures, labelled and not."""

import numpy as np
import pytest

from common.data.write import Case, write_dataset

LABELS = {1: "wall", 2: "cavity"}
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])


def draw_volume(name, size=(22, 20, 14)):
    """A ball within a ball, of brightness 1 and 2, in noise of its own; the place varies a little."""
    rng = np.random.default_rng([*name.encode()])
    middle = np.array(size) * (0.45 + 0.1 * rng.random(3))
    places = np.stack(np.mgrid[tuple(slice(length) for length in size)], -1)
    distance = (((places - middle) / size) ** 2).sum(-1) ** 0.5
    label = np.sum([distance < radius for radius in (0.42, 0.26)], 0).astype(np.uint8)
    return 40 + 50 * label + rng.integers(0, 20, size).astype(np.uint8), label


def write_volumes(directory, training=2, unlabeled=2, validation=2, test=0, **options):
    """A data set on disk with so many volumes of each kind, named after it; the unlabelled come without a label."""

    def cases(kind, count):
        for number in range(1, count + 1):
            name = f"{kind}_{number}"
            image, label = draw_volume(name, **options)
            yield Case(name, image, None if kind == "unlabeled" else label, AFFINE)

    counts = {"training": training, "unlabeled": unlabeled, "validation": validation, "test": test}
    splits = {kind: cases(kind, count) for kind, count in counts.items()}
    return write_dataset(directory, "balls", {"0": "MRI"}, LABELS, **splits)


@pytest.fixture(scope="session", name="write_volumes")
def _write_volumes():
    return write_volumes


@pytest.fixture(scope="session")
def volumes(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("volumes") / "set")
