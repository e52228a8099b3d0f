"""Every row of the comparisons: it trains a step, and its objective has what the row names."""

import pytest
from torch import nn

from common.description import describe
from common.networks.vnet import VNet
from common.semi_supervised import CopyPaste, MeanTeacherConsistency, Supervised
from transmedseg_ssl.network import UNet

pytestmark = pytest.mark.usefixtures("restored")
COMPARISONS = ("compare", "compare_hippocampus", "compare_la")
BASES = {"mean_teacher": MeanTeacherConsistency, "uamt": MeanTeacherConsistency, "supervised": Supervised}
# keys of train.json to where the description of the objective has them
PLACES = {"tsa_weight": "augmentation_weight", "tsa_strength": "augmentation::strength"}


def look_up(description, key):
    for part in PLACES.get(key, key.removeprefix("feature_")).split("::"):
        description = description[part]
    return description


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_row_of_a_comparison_trains(bundle, tmp_path, name):
    data = bundle.write(tmp_path / "set", training=3, unlabeled=1, validation=1)
    overrides, rows = bundle.rows(name)
    short = {"max_epochs": 1, "iterations_per_epoch": 1, "batch_size": 2, "network_def::width": 4, "amp": False}
    losses = set()
    for number, (overlays, own) in enumerate(rows):
        volumes = "volume" in overlays
        # the first step already sees unlabelled images
        pretrain = {} if {*overlays} & {*BASES} else {"base::pretrain": 0.0}
        options = overrides | short | {"patch_size": [16] * 3 if volumes else [32, 32]} | pretrain | own
        trainer = bundle.build(tmp_path / str(number), data, overlays, **options)
        assert isinstance(trainer.network, VNet if volumes else UNet)
        objective = trainer.loss_function
        (kind,) = {BASES[overlay] for overlay in overlays if overlay in BASES} or {CopyPaste}
        assert type(objective.base) is kind and (objective.teacher is None) == (kind is Supervised)
        assert getattr(objective.base, "passes", 0) == (4 if "uamt" in overlays else 0)
        description = describe(objective, strict=False)
        assert {key: look_up(description, key) for key in own} == own
        trainer.run()
        assert all(value.isfinite().all() for value in trainer.network.state_dict().values())
        assert ("tsa" in trainer.state.output) == (objective.augmentation is not None)
        losses.add(trainer.state.output["loss"].item())
    assert len(losses) > 3


def test_without_the_augmentation_there_is_none(bundle, tmp_path):
    """Neither in rivals nor among labels alone."""
    for overlays, options in ((["supervised"], {}), ([], {"feature_augmentation": None})):
        objective = bundle.build(tmp_path, overlays=overlays, **bundle.sizes | options).loss_function
        assert objective.augmentation is None and isinstance(objective.base, nn.Module)
