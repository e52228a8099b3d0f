"""What the tests of the bundle share: a narrow U-Net and its objective, photographs of painted discs, tiny runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.losses import DiceCELoss

from common.data.write import Case, write_dataset
from common.engine import load_checkpoint
from common.losses import ClassStatistics, GaussianContrastiveLoss, SymmetricKLLoss
from sgcg_dg import sample
from sgcg_dg.network import UNet
from sgcg_dg.objective import FeatureContrast, GeneralisationObjective, RegionLoss
from sgcg_dg.restoration import RestorationDecoder

REGIONS = {"cup": [2], "disc": [1, 2]}
LABELS = {1: "rim", 2: "cup"}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def make_network(**options):
    """The U-Net at width 4; every call gives the same weights."""
    torch.manual_seed(1)
    return UNet(**{"width": 4, **options})


def paint(case, size=(28, 20), channels=3, labels=(1, 2)):
    """A disc with a cup, off the middle and smaller than the image, and its label map; each case has its own noise.

    Args:
        size: rows and columns, and slices of a scan.
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
    """A data set on disk with so many photographs (or scans, by ``size``) of each domain: a_1, a_2, ..., b_1, ..."""

    def cases(counts, before):
        for domain, count in counts.items():
            first = before.get(domain, 0) + 1
            for number in range(first, first + count):
                case = paint(f"{domain}_{number}", **options)
                affine = np.diag([-1.5, -1.5, 4.0, 1.0]) if case.label.ndim == 3 else np.eye(4)  # scans are not in RAS
                yield Case(case.name, case.image, case.label, affine, domain=domain)

    splits = {"training": cases(training, {}), "validation": cases(validation or {}, training)}
    return write_dataset(directory, "discs", {"0": "photograph"}, LABELS, **splits)


def region_loss(regions=REGIONS):
    """As train.json builds it."""
    return RegionLoss(DiceCELoss(sigmoid=True, squared_pred=True, batch=True), regions)


def make_contrast(dim=8, **options):
    return FeatureContrast(ClassStatistics(3, dim, groups=3), GaussianContrastiveLoss(), 3, **options)


def make_objective(**options):
    torch.manual_seed(3)
    parts = {"consistency": SymmetricKLLoss(), "restoration": RestorationDecoder(width=4, domains=3),
             "contrast": make_contrast()}  # fmt: skip
    return GeneralisationObjective(region_loss(), **{**parts, **options}).train()


class Bundle:
    """The bundle's configs, and runs of seconds on 32 x 32 pixels."""

    def __init__(self):
        self.configs = Path(__file__).resolve().parents[3] / "bundles" / "sgcg_dg" / "configs"
        self.meta = str(self.configs / "metadata.json")
        self.sizes = {"image_size": [32, 32], "network_def::width": 4}
        self.report = {"pictures": 0, "distances": False}
        self.tiny = {**self.sizes, **self.report, "batch_size": 6, "iterations_per_epoch": 3, "max_epochs": 4,
                     "val_interval": 2}  # fmt: skip

    def config(self, *names):
        return [str(self.configs / f"{name}.json") for name in names]

    def read(self, name):
        return json.loads((self.configs / f"{name}.json").read_text())

    @staticmethod
    def places(folder, data):
        """Where a run reads and writes."""
        return {"dataset_dir": str(data), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}

    def run(self, configs, **overrides):
        """With no other overrides than these."""
        run(config_file=self.config(*configs), **overrides)

    def train(self, folder, data, overlays=(), **overrides):
        """A tiny training; the full state and the model that it leaves, as tensors and numbers to compare."""
        self.run(["train", *overlays], **self.tiny | self.places(folder, data) | overrides)
        state, model = (load_checkpoint(folder / "models" / name) for name in ("checkpoint.pt", "model.pt"))
        return [{key: value for key, value in state.items() if key != "settings"}, model]

    def evaluate(self, folder, data, **overrides):
        """With what lies beside the model, and the report of a tiny training."""
        self.run(["train", "evaluate"], **self.report | self.places(folder, data) | overrides)

    def build(self, folder, data, overlays=(), **overrides):
        """The parser of a training with these settings, of which parts can be asked for; nothing is trained."""
        parser = ConfigParser(ConfigParser.load_config_files(self.config("train", *overlays)))
        parser.update(self.places(folder, data) | overrides)
        return parser

    @staticmethod
    def rows(folder):
        with open(folder / "eval" / "cases.csv", newline="") as file:
            return list(csv.DictReader(file))

    @staticmethod
    def summary(folder):
        return (folder / "eval" / "summary.md").read_text()


@pytest.fixture(scope="session")
def bundle():
    return Bundle()


@pytest.fixture
def batch():
    """Seven images of three domains, of two, three and two; a disc with a cup in each."""
    torch.manual_seed(5)
    label = torch.zeros(7, 1, 32, 48, dtype=torch.int64)
    for i in range(7):
        label[i, 0, 4 + i : 20 + i, 6:26] = 1
        label[i, 0, 8 + i : 15 + i, 10:20] = 2
    image = (0.2 + 0.3 * label + 0.1 * torch.rand(7, 3, 32, 48)).clamp(0, 1)
    return {"image": image, "image_ram": (0.8 * image + 0.1 * torch.rand(7, 3, 1, 1)).clamp(0, 1), "label": label,
            "domain": torch.tensor([0, 0, 1, 1, 1, 2, 2])}  # fmt: skip


@pytest.fixture(scope="session", name="region_loss")
def _region_loss():
    return region_loss


@pytest.fixture(scope="session", name="make_contrast")
def _make_contrast():
    return make_contrast


@pytest.fixture(scope="session", name="make_objective")
def _make_objective():
    return make_objective


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
