"""The configs, where they are not as those of the other semi-supervised bundles: volumes, settings that build."""

import pytest
from monai.networks.nets import BasicUNet

from common.engine import ObjectiveTrainer
from common.networks.vnet import VNet
from common.semi_supervised import CopyPaste

pytestmark = pytest.mark.usefixtures("restored")
COMPARISONS = ("compare", "compare_hippocampus", "compare_la")
# keys of train.json to attributes of the augmentation
NAMES = {f"tsa_{name}": name for name in ("strength", "direction", "mean_shift", "confidence", "match_confidence")}


def test_inference_of_volumes_uses_the_inferer_and_the_network_of_training(bundle):
    train, inference = bundle.read("volume"), bundle.read("volume_inference")
    assert train["validate::inferer"] == inference["inferer"]
    assert train["spatial_dims"] == inference["spatial_dims"]
    for key in ("patch_size", "width"):
        assert f"$@trained.get('{key}', {train[key]})" == inference[key]
    network = {**train["network_def"], "out_channels": None}
    assert network == {**inference["network_def"], "out_channels": None}


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_setting_of_a_comparison_builds(bundle, tmp_path, name):
    """Into a trainer whose objective has what the setting names."""
    data = bundle.write(tmp_path / "set", training=3, unlabeled=1, validation=1)
    overrides, settings = bundle.settings(name)
    for setting in settings:
        files = [setting["config"].removesuffix(".json")] if "config" in setting else []
        own = {key: value for key, value in setting.items() if key != "config"}
        sizes = {"patch_size": [32] * (2 + len(files)), "width": 4}
        trainer = bundle.build(tmp_path, data, files, **overrides | sizes | own)
        assert isinstance(trainer, ObjectiveTrainer) and isinstance(trainer.network, VNet if files else BasicUNet)
        objective, base = trainer.loss_function, setting.get("base", "bcp")
        assert objective.base.needs_teacher == (base != "supervised")
        assert isinstance(objective.base, CopyPaste) == (base == "bcp")
        assert getattr(objective.base, "passes", 0) == (4 if base == "uamt" else 0)
        found = {key: getattr(objective.augmentation, NAMES[key]) for key in setting.keys() & NAMES}
        assert found == {key: setting[key] for key in found}
        assert objective.augmentation_weight == setting.get("tsa_weight", 1.0)
        cov, kind = objective.augmentation.student.cov, setting.get("tsa_covariance", "full")
        assert (None if cov is None else cov.ndim) == {"full": 4, "diag": 3, "none": None}[kind]
        assert objective.augmentation.loss.reduction == setting.get("tsa_reduction", "mean")
