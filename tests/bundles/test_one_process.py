"""All bundles one after another in one process, on one data set."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from common.data import read_dataset
from common.data.write import Case, write_dataset
from common.engine import root_cause
from tools.bundles import home_of, put_on_path
from tools.check import check

ROOT = Path(__file__).resolve().parents[2]
BUNDLES = ["apscl_fewshot", "sgcg_dg", "transmedseg_ssl", "diffcl_ssl"]
SMALL = {
    "apscl_fewshot": {"image_size": [32, 32], "train::dataset::min_fg": 4},
    "sgcg_dg": {"image_size": [32, 32]},
    "transmedseg_ssl": {"labelled": 3, "patch_size": [32, 32]},
    "diffcl_ssl": {"labelled": 3, "patch_size": [16, 16, 16]},
}
TOGETHER = """
import sys
from monai.bundle import run
from monai.utils import set_determinism
folder, data, *order = sys.argv[1:]
common = {"dataset_dir": data, "max_epochs": 1, "pictures": 0, "distances": False}
settings = {
    "apscl_fewshot": {"iterations_per_epoch": 2, "image_size": [32, 32], "network_def::encoder::feat_dim": 8,
                      "network_def::encoder::width": 8, "train::dataset::min_fg": 4, "protocols": ["parts3"],
                      "adaptation::steps": 1},
    "sgcg_dg": {"iterations_per_epoch": 1, "batch_size": 6, "image_size": [32, 32], "network_def::width": 4},
    "transmedseg_ssl": {"iterations_per_epoch": 1, "batch_size": 4, "patch_size": [32, 32], "network_def::width": 8,
                        "labelled": 3, "base::pretrain": 0.0},
    "diffcl_ssl": {"iterations_per_epoch": 1, "batch_size": 2, "patch_size": [16, 16, 16], "network_def::width": 8,
                   "labelled": 3},
}
for bundle in order:
    files = ["train", "volume"] if bundle == "sgcg_dg" else ["train"]
    run(config_file=[f"bundles/{bundle}/configs/{name}.json" for name in files],
        ckpt_dir=f"{folder}/{bundle}/models", output_dir=f"{folder}/{bundle}/eval", **common, **settings[bundle])
    set_determinism(None)
    print("done", bundle)
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans that every bundle can learn from: three structures, three domains, labels on half of them asked for."""

    def scan(number):
        rng = np.random.default_rng(number)
        label = np.zeros((40, 40, 9), np.uint8)
        label[8:18, 8:20, 2:8], label[22:34, 10:30, 1:7] = 1, 2
        label[4:7, 24:36, 2:8] = 3
        image = 100 + 40 * label + rng.integers(0, 30, label.shape)
        return Case(f"scan_{number}", image.astype(np.uint8), label, np.diag([2.0, 2.0, 5.0, 1.0]), "abc"[number % 3])

    folder = tmp_path_factory.mktemp("scans") / "sample_data"
    return write_dataset(folder, "boxes", {"0": "MRI"}, {1: "a", 2: "b", 3: "c"}, training=map(scan, range(6)),
                         validation=map(scan, range(6, 9)))  # fmt: skip


def configs_of(bundle):
    """Of a training on scans."""
    names = ["train", "volume"] if bundle == "sgcg_dg" else ["train"]
    return [str(ROOT / "bundles" / bundle / "configs" / f"{name}.json") for name in names]


@pytest.mark.parametrize(("bundle", "overrides", "bad", "text"), [
    ("apscl_fewshot", {}, {"novel_labels": [9]}, "novel_labels: expected some of"),
    ("apscl_fewshot", {}, {"novel_labels": "kidney"}, "novel_labels: expected some of .*found kidney"),
    ("sgcg_dg", {"regions": {"a": [1]}}, {"regions": {"a": [9]}}, "region a: expected label ids"),
    ("sgcg_dg", {"regions": {"a": [1]}}, {"regions": "disc"}, "regions: expected a name and"),
    ("transmedseg_ssl", {"labelled": 3}, {"labelled": None}, "expected unlabelled cases, found none"),
    ("transmedseg_ssl", {"labelled": 3}, {"labelled": "two"}, "labelled: expected 1 to 6.*found two"),
    ("diffcl_ssl", {"labelled": 3}, {"patch_size": [16, 16]}, "patch_size: expected 3 lengths"),
])  # fmt: skip
def test_the_data_check_is_that_of_the_bundle(scans, capsys, bundle, overrides, bad, text):
    """Each has demands of its own: known novel labels, known regions, unlabelled images, patches of three lengths."""
    check(bundle, str(scans), configs_of(bundle), overrides)
    summary = capsys.readouterr().out
    assert "boxes: no problem found" in summary and "  label 3     c: in " in summary
    with pytest.raises(SystemExit, match=text):
        check(bundle, str(scans), configs_of(bundle), {**overrides, **bad})


@pytest.mark.parametrize("bundle", BUNDLES)
def test_sample_data_are_not_mixed_with_other_peoples_scans(scans, bundle):
    """MONAI Label replaces the labelled images alone; a model of other classes would come out of it."""
    items = [{key: item[key] for key in ("image", "label")} for item in read_dataset(scans).training]
    options = {"dataset_dir": str(scans), "train::dataset::data": items, **SMALL[bundle]}

    def dataset(**more):
        parser = ConfigParser()
        parser.read_config(configs_of(bundle))
        parser.update({**options, **more})
        return parser.get_parsed_content("train::dataset")

    check(bundle, str(scans), configs_of(bundle), SMALL[bundle])  # puts the bundle's folder on the path
    assert len(dataset()) > 0
    with pytest.raises(RuntimeError) as error:
        dataset(bundle_root=str(scans.parent))
    assert "expected labelled images of the sample data" in str(root_cause(error.value))
    assert f"found {items[0]['image']}; set `dataset_dir`" in str(root_cause(error.value))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_folder_for_reports_that_is_none_is_named(tmp_path, bundle):
    (tmp_path / "eval").touch()
    put_on_path(home_of(bundle))
    parser = ConfigParser()
    parser.read_config(home_of(bundle) / "configs" / "train.json")
    parser.update({"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")})
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("run")  # all of it: the folders are tried first
    text = f"{tmp_path / 'eval'}: expected a folder to write into, found a file there or on the way to it; choose"
    assert str(root_cause(error.value)).startswith(f"{text} another folder")


@pytest.mark.parametrize("order", [BUNDLES, BUNDLES[::-1]], ids="-".join)
def test_the_bundles_in_one_process(tmp_path, scans, order):
    """With nothing set: each run puts its own folder on the path, and all share `common`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TOGETHER, str(tmp_path), str(scans), *order]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("done")] == [f"done {name}" for name in order]
    for name in order:
        assert {file.name for file in (tmp_path / name).rglob("*")} >= {"model.pt", "checkpoint.pt", "cases.csv"}
