"""A bundle that trains nothing and a data set of three tiny volumes."""

import json
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

TRAIN = {
    "bundle_root": {"_target_": "toy_bundle.bundle_root"},
    "dataset_dir": ".", "ckpt_dir": "models", "output_dir": "eval",
    "seed": 0, "resume": False, "max_epochs": 1, "fold": 0, "novel_labels": [1], "target": "", "labelled": None,
    "section": {"depth": 1},
    "score": {"_target_": "toy_bundle.Score", "gain": 0.0, "note": "plain"},
    "run": ["$@score(@ckpt_dir, @output_dir, @resume, @seed, @fold, @novel_labels, @target)"],
}  # fmt: skip
COMPARE = {
    "variants": {"ours": {"score::gain": 0.25}, "theirs": {}, "overlay": {"config": "other.json", "score::note": None}},
    "pair": {"ours": {"score::gain": 0.25}, "theirs": {}},
    "fixed": {"ours": {"fold": 0}},
    "overrides": {"max_epochs": 3},
    "grid": {"seed": [0, 1], "fold": "each fold", "novel_labels": "each label"},
    "tables": [{"measure": "dice", "columns": ["protocol", "structure"]}],
    "floor": {"name": "copy", "measures": {"dice": "copy_dice"}},
}  # fmt: skip
DOMAINS = {
    "variants": COMPARE["pair"], "overrides": {}, "grid": {"seed": [0, 1], "target": "each domain"},
    "tables": [{"measure": "dice", "columns": ["protocol", "domain"]},
               {"measure": "asd", "columns": ["domain"], "less_is_better": True},
               {"measure": "scatter", "columns": ["domain"]}],
}  # fmt: skip
# dice = 0.25 + gain + 0.125 seed + 0.0625 for the liver - 0.03125 (fold), of one case for each fold; ep2 is half of it,
# and domain B has 0.125 less;# asd_px = 10 - 8 dice; scatter = dice / 64, once a run
PACKAGE = '''
import csv, os, signal
from pathlib import Path

def bundle_root():
    return str(Path(__file__).parents[1])

class Score:
    def __init__(self, gain, note):
        self.gain, self.note = gain, note

    def __call__(self, ckpt_dir, output_dir, resume, seed, fold, labels, target):
        folder = Path(output_dir)
        orders = Path(__file__).parents[1] / "orders.txt"  # lines such as: fail theirs 1
        orders = orders.read_text().splitlines() if orders.exists() else []
        print("scored with", self.gain, self.note, "resume", resume)
        with (folder.parent / "calls").open("a") as file:
            file.write("call\\n")
        if f"kill {folder.parent.name} {seed} {fold} {labels[0]}" in orders:
            os.kill(os.getpid(), signal.SIGKILL)
        if f"fail {folder.parent.name} {seed} {fold} {labels[0]}" in orders:
            raise RuntimeError("loss is nan")
        checkpoint = Path(ckpt_dir) / "checkpoint.pt"
        if resume and checkpoint.read_text() == "damaged":
            raise ValueError(f"{checkpoint}: not a readable checkpoint")
        if resume and checkpoint.read_text() == "no data":
            raise ValueError("the data is gone")
        dice = 0.25 + self.gain + 0.125 * seed + 0.0625 * (labels == [1]) - 0.03125 * fold - 0.125 * (target == "B")
        names = {1: "liver", 2: "spleen"}
        rows = [["case", "support", "protocol", "structure", "dice", "copy_dice", "domain", "asd_px", "scatter"]]
        case, structure = f"case_{fold}{target}", names[labels[0]]
        for protocol, score in (("parts3", dice), ("ep2", dice / 2)):
            rows += [[case, "s", protocol, structure, score, 0.125, target, 10 - 8 * score, ""]]
        rows += [["", "", "", "", "", "", target, "", dice / 64]]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "cases.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
'''


@pytest.fixture
def bundles(tmp_path, monkeypatch):
    """A folder of bundles that holds ``toy_bundle``."""
    home = tmp_path / "bundles" / "toy_bundle"
    (home / "configs").mkdir(parents=True)
    other = {"score": TRAIN["score"] | {"gain": 0.5}}
    for name, content in (("train", TRAIN), ("compare", COMPARE), ("domains", DOMAINS), ("other", other)):
        (home / "configs" / f"{name}.json").write_text(json.dumps(content))
    (home / "toy_bundle").mkdir()
    (home / "toy_bundle" / "__init__.py").write_text(PACKAGE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "bundles"
    for name in ("toy_bundle", "toy_bundle.data"):
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    folder, items = tmp_path / "data", []
    folder.mkdir()
    for i in range(3):
        image, label = np.random.default_rng(i).normal(size=(6, 5, 4)), np.zeros((6, 5, 4), np.uint8)
        label[0], label[1] = 1, 2
        for name, voxels in ((f"case_{i}.nii.gz", image), (f"label_{i}.nii.gz", label)):
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / name)
        items.append({"image": f"case_{i}.nii.gz", "label": f"label_{i}.nii.gz", "domain": "BA"[i % 2]})
    content = {"name": "three", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "spleen"},
               "training": items, "folds": [["case_0"], ["case_1", "case_2"]]}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def screen(capfd):
    """``capfd``; inside of ``direct()`` Python's streams are on the file descriptors, as they are without pytest."""

    @contextmanager
    def direct():
        with open(1, "w", buffering=1, closefd=False) as out, open(2, "w", buffering=1, closefd=False) as err:
            with redirect_stdout(out), redirect_stderr(err):
                yield

    return SimpleNamespace(readouterr=capfd.readouterr, direct=direct)
