"""The configs: what MONAI asks of them, keys that overlays name, networks that script, settings that build."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out
from monai.networks.nets import BasicUNet

from common.engine import ObjectiveTrainer, save_atomic
from common.networks.vnet import VNet
from common.semi_supervised import CopyPaste

pytestmark = pytest.mark.usefixtures("restored")
CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "transmedseg_ssl" / "configs"
META = str(CONFIGS / "metadata.json")
COMPARISONS = ("compare", "compare_hippocampus", "compare_la")
# keys of train.json to attributes of the augmentation
NAMES = {f"tsa_{name}": name for name in ("strength", "direction", "mean_shift", "confidence", "match_confidence")}
IMAGE = "_meta_::network_data_format::inputs::image::spatial_shape"
# overlays of inference.json, the keyword of verify_net_in_out for the size, and two image sizes
NETWORKS = {
    "2d": ([], {}, [(2, 1, 32, 32), (1, 1, 45, 70)]),
    "3d": (["volume_inference"], {IMAGE: ["32*n", "32*n", "16*n"]}, [(2, 1, 32, 32, 16), (1, 1, 37, 34, 20)]),
}


def config(*names):
    return [str(CONFIGS / f"{name}.json") for name in names]


def read(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(tmp_path, scans, name):
    kind = "train" if name == "train" else "infer"
    places = {"dataset_dir": str(scans), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    workflow = ConfigWorkflow(config(name)[0], META, workflow_type=kind, width=4, patch_size=[32, 32], **places)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_network_takes_and_gives_what_metadata_says(kind):
    overlays, shape, _ = NETWORKS[kind]
    verify_net_in_out("network_def", META, config("inference", *overlays), device="cpu", **shape)


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_exported_network_equals_the_eager_one(tmp_path, kind):
    overlays, _, sizes = NETWORKS[kind]
    files = config("inference", *overlays)
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["width"] = 8
    network = parser.get_parsed_content("network_def").eval()
    save_atomic(network.state_dict(), tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ckpt_export("network_def", str(tmp_path / "model.ts"), str(tmp_path / "model.pt"), META, files, width=8)
        loaded = torch.jit.load(tmp_path / "model.ts")
    for size in sizes:
        image = torch.rand(size)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(loaded(image), expected, rtol=0, atol=1e-5)
        assert expected.shape == (size[0], 4, *size[2:]) and expected.abs().max() > 0.1


def paths(settings, before=""):
    """Every name in a config as an override spells it."""
    for key, value in settings.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths(value, f"{before}{key}::")


def test_overlays_name_only_keys_of_what_they_lie_over():
    known = set(paths(read("train")))
    for overlay in ("evaluate", "paper", "volume", "multi_gpu_train"):
        assert read(overlay).keys() - {"is_rank0"} <= known, overlay
    assert read("volume_inference").keys() <= set(paths(read("inference")))
    for name in COMPARISONS:
        compare = read(name)
        settings = [compare["overrides"], compare["grid"], *(s for group in groups_of(compare) for s in group.values())]
        assert all(setting.keys() - {"config"} <= known for setting in settings), name


def test_inference_uses_the_inferer_and_the_network_of_training():
    assert read("train")["validate"]["inferer"] == read("inference")["inferer"]
    train, inference = read("volume"), read("volume_inference")
    assert train["validate::inferer"] == inference["inferer"]
    for key in ("spatial_dims", "patch_size", "width"):
        assert train[key] == inference[key]
    network = {**train["network_def"], "out_channels": None}
    assert network == {**inference["network_def"], "out_channels": None}


def groups_of(compare):
    return [compare[key] for key in ("variants", "ablation", "sweep") if key in compare]


def build(tmp_path, data, files, settings):
    """The trainer of these settings at a tiny size; nothing is trained."""
    parser = ConfigParser(ConfigParser.load_config_files(config("train", *files)))
    places = {"dataset_dir": str(data), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    parser.update({**settings, **places, "width": 4})
    return parser.get_parsed_content("train::trainer")


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_setting_of_a_comparison_builds(tmp_path, write_scans, name):
    """Into a trainer whose objective has what the setting names."""
    data = write_scans(tmp_path / "set", training=3, unlabeled=1, validation=1)
    compare = read(name)
    settings = {json.dumps(setting): setting for group in groups_of(compare) for setting in group.values()}
    for setting in settings.values():
        files = [setting["config"].removesuffix(".json")] if "config" in setting else []
        own = {key: value for key, value in setting.items() if key != "config"}
        sizes = {"patch_size": [32] * (2 + len(files))}
        trainer = build(tmp_path, data, files, compare["overrides"] | sizes | own)
        assert isinstance(trainer, ObjectiveTrainer) and isinstance(trainer.network, VNet if files else BasicUNet)
        objective, base = trainer.loss_function, setting.get("base", "bcp")
        assert objective.base.needs_teacher == (base != "supervised")
        assert isinstance(objective.base, CopyPaste) == (base == "bcp")
        assert getattr(objective.base, "passes", 0) == (4 if base == "uamt" else 0)
        assert (objective.augmentation is None) == ("loss::augmentation" in setting)
        if objective.augmentation is not None:
            found = {key: getattr(objective.augmentation, NAMES[key]) for key in setting.keys() & NAMES}
            assert found == {key: setting[key] for key in found}
            assert objective.augmentation_weight == setting.get("tsa_weight", 1.0)
