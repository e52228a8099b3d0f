"""What the tests share: an encoder of two convolutions, scans with box-shaped organs, sample data, tiny trainings."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from monai.bundle import run
from torch import nn

from apscl_fewshot.guidance import MutualGuidanceDecoder
from apscl_fewshot.latent import FeatureEnhancement, LatentBlock
from apscl_fewshot.network import AnatomicalPrior, FewShotNetwork
from apscl_fewshot.position import PositionPrior
from apscl_fewshot.sample import generate_sample_data
from common.data.write import Case, write_dataset
from common.description import described
from common.engine import load_checkpoint

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "apscl_fewshot" / "configs"
WIDTH, LATENT = 8, 4
REPORT = {"protocols": ["parts3"], "adaptation::steps": 2, "pictures": 1, "distances": False}
TINY = {**REPORT, "image_size": [32, 32], "network_def::encoder::feat_dim": 8, "network_def::encoder::width": 8,
        "train::dataset::min_fg": 4, "iterations_per_epoch": 2, "max_epochs": 4, "val_interval": 2}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@described()
class TinyEncoder(nn.Module):
    """Two strided convolutions: ``(B, 1, H, W)`` to ``(B, 8, H / 4, W / 4)``."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, WIDTH, 3, 2, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(image)))


def make_prior():
    block = LatentBlock(WIDTH, LATENT, hidden=(16, 16), pool=2)
    return AnatomicalPrior(block, FeatureEnhancement(WIDTH, LATENT, hidden=16))


def make_network(decoder=None, prior=True, position=True):
    """The whole method at width 8; every call gives the same weights."""
    torch.manual_seed(1)
    parts = {"prior": make_prior() if prior else None, "position": PositionPrior() if position else None}
    return FewShotNetwork(TinyEncoder(), MutualGuidanceDecoder(WIDTH) if decoder is None else decoder, **parts)


# what each organ covers of a slice (top, bottom, left, right, in 32nds) and how bright it is
ORGANS = {1: ((8, 18, 6, 14), 2.0), 2: ((8, 16, 19, 26), 3.0), 3: ((19, 26, 8, 18), 4.0), 4: ((20, 27, 21, 27), 5.0)}


def make_scan(case="scan", extents=None, depth=9, size=32, native=(40, 36), seed=0):
    """A scan as :func:`apscl_fewshot.data.as_slices` gives it: a bright body with organs in slices ``extents``.

    Args:
        extents: organ to its first and last slice.
        native: height and width of label and native image, which may differ from the network's ``size``.
    """
    extents = {1: (1, 7), 2: (2, 6), 3: (3, 5)} if extents is None else extents
    rng = np.random.default_rng([seed, *case.encode()])

    def draw(height, width):
        image, label = np.zeros((depth, height, width), np.float32), np.zeros((depth, height, width), np.uint8)
        rows, columns = (np.arange(height) + 0.5) * 32 / height, (np.arange(width) + 0.5) * 32 / width
        image[:, ((rows > 3) & (rows < 29))[:, None] & ((columns > 3) & (columns < 29))] = 1
        for organ, (first, last) in extents.items():
            (top, bottom, left, right), value = ORGANS[organ]
            inside = ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))
            image[first : last + 1, inside], label[first : last + 1, inside] = value, organ
        return image, label

    image, (original, label) = draw(size, size)[0], draw(*native)
    noisy = image + 0.1 * rng.standard_normal(image.shape).astype(np.float32)
    return {
        "image": torch.from_numpy((noisy - noisy.mean()) / noisy.std())[:, None],
        "label": torch.from_numpy(label),
        "native": torch.from_numpy(original).permute(1, 2, 0),
        "affine": np.diag([2.0, 2.0, 5.0, 1.0]),
        "spacing": [2.0, 2.0, 5.0],
        "case": case,
        "scan": case,
    }


def write_scans(directory, cases, spacing=2.0, extents=None, **splits):
    """A data set on disk of ``make_scan``'s scans; ``splits`` as for ``write_dataset``."""
    affine = np.diag([spacing, spacing, 5.0, 1.0])

    def load(name):
        scan = make_scan(name, extents)
        image = 1000 + 100 * scan["native"].numpy()
        image[0, 0, 0] += crc32(name.encode()) % 997  # no scan is a copy of another
        return Case(name, image, scan["label"].permute(1, 2, 0).numpy(), affine)

    splits = {key: value if key == "folds" else [load(name) for name in value] for key, value in splits.items()}
    labels = {1: "left box", 2: "right box", 3: "low box"}
    return write_dataset(directory, "boxes", {"0": "CT"}, labels, training=[load(name) for name in cases],
                         dtype=np.int16, **splits)


@pytest.fixture(scope="session", name="make_network")
def _make_network():
    return make_network


@pytest.fixture(scope="session", name="make_scan")
def _make_scan():
    return make_scan


@pytest.fixture(scope="session", name="write_scans")
def _write_scans():
    return write_scans


@pytest.fixture
def network():
    return make_network().eval()


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory):
    """The bundle's own sample data, generated once."""
    return generate_sample_data(tmp_path_factory.mktemp("sample") / "sample_data")


def places_of(folder, data):
    """Where a run reads and writes."""
    return {"dataset_dir": str(data), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}


def run_tiny_training(folder, data, overlays=(), **overrides):
    """The full state and the model that it leaves, as tensors and numbers to compare."""
    files = [str(CONFIGS / f"{name}.json") for name in ("train", *overlays)]
    run(config_file=files, **{**TINY, **places_of(folder, data), **overrides})
    state, model = (load_checkpoint(folder / "models" / name) for name in ("checkpoint.pt", "model.pt"))
    return [{key: value for key, value in state.items() if key != "settings"}, model]


@pytest.fixture(scope="session")
def tiny():
    """The overrides of a tiny training."""
    return dict(TINY)


@pytest.fixture(scope="session")
def report():
    """What a tiny report leaves out, in training and in evaluation."""
    return dict(REPORT)


@pytest.fixture(scope="session")
def places():
    return places_of


@pytest.fixture(scope="session")
def train():
    return run_tiny_training


@pytest.fixture(scope="session")
def trained(tmp_path_factory, sample_data):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_tiny_training(folder, sample_data)
