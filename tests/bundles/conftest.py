"""What the tests of all bundles share: a clean process after each run, runs in processes of their own, tiny runs."""

import csv
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ComponentLocator, ConfigParser, config_parser, run
from monai.utils import set_determinism
from PIL import Image

from common.data.write import Case, write_dataset
from common.engine import load_checkpoint, save_atomic, write_model_record
from tools.check import check

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
LABELS = {1: "wall", 2: "cavity"}


@pytest.fixture(name="restored")
def _restored():
    """MONAI sets up determinism and logging for the whole process."""
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    set_determinism(None)
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers


def start_bundle(*arguments, cwd, threads=1, **overrides):
    """A bundle run in a process of its own, with nothing set but the number of threads."""
    flags = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", *arguments, *flags],
        cwd=cwd, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def two_processes(monkeypatch):
    """Trains by two processes, with a folder's configs; each saves the ``state_dict`` of ``parts``, which come back."""

    def train(configs, folder, parts, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        if sys.platform == "linux":
            monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # the host's name need not resolve
        states = f"[part.state_dict() for part in ({', '.join(parts)},)]"
        keep = f"$torch.save({states}, '{folder}/' + os.environ['RANK'] + '.pt')"
        finalize = [keep, *json.loads((configs / "train.json").read_text())["finalize"]]
        files, processes = str([str(configs / f"{name}.json") for name in ("train", "multi_gpu_train")]), []
        try:
            for rank in ("0", "1"):
                monkeypatch.setenv("RANK", rank)
                monkeypatch.setenv("LOCAL_RANK", rank)
                processes.append(start_bundle("--config_file", files, cwd=folder, finalize=finalize, **options))
            for process in processes:
                output = process.communicate(timeout=600)[0]
                assert process.returncode == 0, output
        finally:
            for process in processes:
                process.kill()
        written = [*Path(options["output_dir"]).glob("events.out.tfevents*")]
        assert len(written) == 1, written  # the first process writes the curves
        return [load_checkpoint(folder / f"{rank}.pt") for rank in range(2)]

    return train


@pytest.fixture(scope="session", name="start_bundle")
def _start_bundle():
    return start_bundle


def draw_nested(name, size, axes):
    """A ball within a ball, of brightness 1 and 2, in noise of its own; the place varies a little.

    The last of two ``axes`` is left out: discs, the same in each slice.
    """
    rng = np.random.default_rng([*name.encode()])
    lengths = np.array(size[:axes])
    middle = lengths * (0.45 + 0.1 * rng.random(axes))
    places = np.stack(np.mgrid[tuple(slice(length) for length in size)][:axes], -1)
    distance = (((places - middle) / lengths) ** 2).sum(-1) ** 0.5
    label = np.sum([distance < radius for radius in (0.42, 0.26)], 0).astype(np.uint8)
    return 40 + 50 * label + rng.integers(0, 20, size).astype(np.uint8), label


class TinyBundle:
    """A semi-supervised bundle: its configs, data of two nested structures, and runs of seconds.

    Args:
        folder: for the data.
        sizes: overrides that make the network tiny; evaluation and inference have them from model.json.
        batch_size: of training.
        axes, size, spacing: of the scans.
    """

    def __init__(self, name, folder, sizes, batch_size, axes, size, spacing):
        self.name, self.sizes, self.configs = name, sizes, BUNDLES / name / "configs"
        self.axes, self.size, self.affine = axes, size, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        self.meta = str(self.configs / "metadata.json")
        self.tiny = {**sizes, "batch_size": batch_size, "iterations_per_epoch": 3, "max_epochs": 4,
                     "learning_rate": 0.01, "warmup_steps": 0, "val_interval": 2, "pictures": 0,
                     "distances": False}  # fmt: skip
        self.data = self.write(folder)

    def write(self, directory, training=2, unlabeled=2, validation=2, test=0, size=None):
        """A data set with so many scans of each kind, named after it; the unlabelled ones come without a label."""

        def cases(kind, count):
            for number in range(1, count + 1):
                name = f"{kind}_{number}"
                image, label = draw_nested(name, size or self.size, self.axes)
                yield Case(name, image, None if kind == "unlabeled" else label, self.affine)

        counts = {"training": training, "unlabeled": unlabeled, "validation": validation, "test": test}
        splits = {kind: cases(kind, count) for kind, count in counts.items()}
        return write_dataset(directory, "nested", {"0": "MRI"}, LABELS, **splits)

    @staticmethod
    def write_photographs(folder):
        """A data set of grey images, their rows first as files of that kind have them."""
        labels = {"0": "background"} | {str(label): name for label, name in LABELS.items()}
        index = {"name": "nested", "modality": {"0": "US"}, "labels": labels}
        folder.mkdir()
        for split in ("training", "unlabeled", "validation"):
            index[split] = [{"image": f"{split}_{i}.png", "label": f"{split}_{i}_label.png"} for i in (1, 2)]
            for item in index[split]:
                for key, array in zip(("image", "label"), draw_nested(item["image"], (40, 56, 1), 2), strict=True):
                    Image.fromarray(array[..., 0]).save(folder / item[key])
        index["unlabeled"] = [{"image": item["image"]} for item in index["unlabeled"]]
        (folder / "dataset.json").write_text(json.dumps(index))
        return folder

    def config(self, *names):
        return [str(self.configs / f"{name}.json") for name in names]

    def read(self, name):
        return json.loads((self.configs / f"{name}.json").read_text())

    def rows(self, name):
        """What all runs of a comparison set; and, of each different row, its overlays and its own overrides."""
        compare = self.read(name)
        groups = [value for key, value in compare.items() if key not in ("overrides", "grid", "tables")]
        different = {json.dumps(row): row for group in groups for row in group.values()}
        rows = []
        for row in different.values():
            files = row.get("config", [])
            overlays = [Path(file).stem for file in ([files] if isinstance(files, str) else files)]
            rows.append((overlays, {key: value for key, value in row.items() if key != "config"}))
        return compare["overrides"], rows

    def places(self, folder, data=None):
        """Where a run reads and writes."""
        data = str(data or self.data)
        return {"dataset_dir": data, "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}

    def options(self, folder, data=None, **overrides):
        """All overrides of a tiny training."""
        return self.tiny | self.places(folder, data) | overrides

    def run(self, configs, folder, data=None, **overrides):
        """With no other overrides than these."""
        run(config_file=self.config(*configs), **self.places(folder, data) | overrides)

    def train(self, folder, data=None, overlay=(), **overrides):
        """A tiny training; the full state and the model that it leaves."""
        self.run(["train", *overlay], folder, data, **self.tiny | overrides)
        return self.load(folder)

    @staticmethod
    def load(folder):
        """The full state and the model that a training left, as tensors and numbers to compare."""
        state, model = (load_checkpoint(folder / "models" / name) for name in ("checkpoint.pt", "model.pt"))
        return [{key: value for key, value in state.items() if key != "settings"}, model]

    def evaluate(self, folder, data=None, **overrides):
        """The model is as its model.json says."""
        self.run(["train", "evaluate"], folder, data, **{"pictures": 0, "distances": False} | overrides)

    def infer(self, folder, data=None, **overrides):
        """The model is as its model.json says."""
        self.run(["inference"], folder, data, **overrides)

    def parser(self, files, folder, data=None, **overrides):
        """Of these configs, to take parts from."""
        parser = ConfigParser(ConfigParser.load_config_files(self.config(*files)))
        parser.update(self.places(folder, data) | overrides)
        return parser

    def build(self, folder, data=None, overlays=(), **overrides):
        """The trainer of these settings; nothing is trained."""
        return self.parser(["train", *overlays], folder, data, **overrides).get_parsed_content("train::trainer")

    def save(self, folder, data=None, overlays=(), weights=None, **overrides):
        """A model as a training of these settings leaves it, with weights of another run; its network."""
        parser = self.parser(["train", *overlays], folder, data, **overrides)
        model = parser.get_parsed_content("model")
        save_atomic(model["network"].state_dict() if weights is None else weights, folder / "models" / "model.pt")
        write_model_record(folder / "models" / "model.pt", model, "last")
        return model["network"]

    @staticmethod
    def cases(folder):
        with open(folder / "eval" / "cases.csv", newline="") as file:
            return list(csv.DictReader(file))

    @staticmethod
    def summary(folder):
        return (folder / "eval" / "summary.md").read_text()


TINY = {
    "transmedseg_ssl": {
        "sizes": {"patch_size": [32, 32], "network_def::width": 4}, "batch_size": 4,
        "axes": 2, "size": (36, 34, 4), "spacing": (1.5, 1.5, 8.0),
    },
    "diffcl_ssl": {
        "sizes": {"patch_size": [16, 16, 16], "network_def::width": 4, "network_def::d_state": 2}, "batch_size": 2,
        "axes": 3, "size": (22, 20, 14), "spacing": (1.5, 1.5, 2.0),
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory):
    """Name to :class:`TinyBundle`, one for the whole session."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = TinyBundle(name, tmp_path_factory.mktemp(name) / "set", **TINY[name])
        return made[name]

    return get


@pytest.fixture(scope="module", params=TINY)
def bundle(request, tiny_bundle):
    """Each in turn; the folder of a bundle's own tests has its own."""
    return tiny_bundle(request.param)


class Bright(torch.nn.Module):
    """Logits of a bright structure and of another that is nowhere; of the background, where a map has one, zero."""

    def __init__(self, background):
        super().__init__()
        self.background = background

    def forward(self, image):
        bright = image[:, :1] - 0.55
        return torch.cat([0 * bright, bright, bright - 9] if self.background else [bright, bright - 9], 1)


class Doors:
    """The ways into a bundle, in this process: a training up to its first batch or step, the check, an inference.

    Args:
        name: of the bundle.
        folder: for a model with first weights.
        data: a data set of scans.
    """

    FILES = {"sgcg_dg": ("train", "volume")}
    SIZES = {
        "apscl_fewshot": {"image_size": [32, 32], "network_def::encoder::feat_dim": 8,
                          "network_def::encoder::width": 8, "train::dataset::min_fg": 1, "adaptation::steps": 1},
        "sgcg_dg": {"image_size": [32, 32], "network_def::width": 4, "batch_size": 4},
        "transmedseg_ssl": {"patch_size": [16, 16], "network_def::width": 8},
        "diffcl_ssl": {"patch_size": [16, 16, 16], "network_def::width": 4, "network_def::d_state": 2},
    }  # fmt: skip
    ONE_CHANNEL = ("apscl_fewshot",)  # it takes volumes of one channel
    TINY = {"iterations_per_epoch": 1, "max_epochs": 1, "val_interval": 9, "batch_size": 2, "pictures": 0,
            "distances": False, "device": "cpu"}  # fmt: skip

    def __init__(self, name, folder, data):
        self.name, self.folder, self.data = name, folder, data
        self.models = self.save_model(folder / "models", data)
        self.resizes = "image_size" in self.SIZES[name]

    def config(self, *names):
        return [str(BUNDLES / self.name / "configs" / f"{name}.json") for name in names]

    def training(self, data, **overrides):
        """The parser of a training, to take parts from; nothing is written."""
        parser = ConfigParser(ConfigParser.load_config_files(self.config(*self.FILES.get(self.name, ("train",)))))
        places = {"dataset_dir": data, "ckpt_dir": str(self.folder / "no"), "output_dir": str(self.folder / "no")}
        parser.update(self.TINY | self.SIZES[self.name] | {k: str(v) for k, v in places.items()} | overrides)
        return parser

    def first_batch(self, data, **overrides):
        return next(iter(self.training(data, **overrides).get_parsed_content("train::dataloader")))

    def first_loss(self, data, channels, labels, **overrides):
        """Of one step, with networks for so many channels and for these labels."""
        if self.name == "sgcg_dg":
            overrides |= {"regions": {name: [label] for label, name in labels.items()}, "allow_missing": True}
        if self.name not in self.ONE_CHANNEL:
            overrides |= {"preprocessing_def::channels": channels}
        overrides |= {"train::handlers": []}  # those of reports and files
        trainer = self.training(data, **overrides).get_parsed_content("train::trainer")
        trainer.run()
        return trainer.state.output["loss"].detach()

    def check(self, data, **overrides):
        check(self.name, str(data), self.config(*self.FILES.get(self.name, ("train",))),
              self.SIZES[self.name] | overrides)  # fmt: skip

    def save_model(self, folder, data, **overrides):
        """A model as a training of this data set leaves it, with first weights."""
        torch.manual_seed(0)
        model = self.training(data, **overrides).get_parsed_content("model")
        save_atomic(model["network"].state_dict(), folder / "model.pt")
        write_model_record(folder / "model.pt", model, "last")
        return folder

    def infer(self, images, output, models=None, **overrides):
        """The label maps of an inference; the supports of a few-shot model are the data set's."""
        parser = ConfigParser(ConfigParser.load_config_files(self.config("inference")))
        support = {}
        if self.name == "apscl_fewshot":
            support = {"support_dir": str(self.data), "adaptation::steps": 1}
        parser.update({"images": images, "ckpt_dir": str(models or self.models), "output_dir": str(output),
                       "device": "cpu", "overlay": False} | support | overrides)  # fmt: skip
        parser.get_parsed_content("evaluator").run()
        return sorted(Path(output).glob("*_seg.nii.gz"))

    def infer_bright(self, images, output):
        """The label maps where a voxel belongs to a structure if it is bright, whatever lies around it."""
        return self.infer(images, output, **{"network": Bright(self.name != "sgcg_dg"), "handlers": [],
                                             "preprocessing_def::intensity": ["percentiles"]})  # fmt: skip

    def run(self, config, data, output, **overrides):
        """A whole ``train``, ``evaluate`` or ``inference``, as by ``python -m monai.bundle run``."""
        places = {"dataset_dir": str(data), "ckpt_dir": str(self.models), "output_dir": str(output)}
        train = self.FILES.get(self.name, ("train",))
        names = {"train": train, "evaluate": (*train, "evaluate")}.get(config, (config,))
        if self.name == "apscl_fewshot":
            places["adaptation::steps"] = 1
        run(config_file=self.config(*names), **places | overrides)


@pytest.fixture(scope="session")
def six_scans(tmp_path_factory):
    """Two labelled scans of each of three domains, and an unlabelled one: what all four bundles train on."""
    affine = np.diag([-1.5, -1.5, 4.0, 1.0])
    scans = {name: draw_nested(name, (20, 18, 10), 3) for name in ("a1", "a2", "b1", "b2", "c1", "c2", "u1")}
    labelled = [Case(name, *scans[name], affine, domain=name[0]) for name in scans if name != "u1"]
    return write_dataset(tmp_path_factory.mktemp("six") / "set", "six", {"0": "MRI"}, LABELS, training=labelled,
                         unlabeled=[Case("u1", scans["u1"][0], None, affine)])  # fmt: skip


@pytest.fixture(scope="session", params=Doors.SIZES)
def doors(request, tmp_path_factory, six_scans):
    """Each bundle in turn; MONAI's table of its classes, which each parser makes anew, is made once."""
    table = ComponentLocator()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_parser, "ComponentLocator", lambda *_, **__: table)
        yield Doors(request.param, tmp_path_factory.mktemp(request.param), six_scans)
