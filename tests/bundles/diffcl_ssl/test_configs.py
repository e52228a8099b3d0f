"""The configs, where they are not as those of the other semi-supervised bundles: settings that build."""

import pytest
import torch

from common.engine import ObjectiveTrainer
from common.networks import HighFrequencyMamba
from common.semi_supervised import CopyPaste, Mixer
from diffcl_ssl.network import ConvolutionalNetwork
from diffcl_ssl.trainer import CrossSupervision, DiffusionPeer

pytestmark = pytest.mark.usefixtures("restored")


def test_every_setting_of_a_comparison_builds(bundle, tmp_path):
    """Into a trainer that has what the setting names, and a student that starts as that of every other setting."""
    (overrides, settings), heads = bundle.settings("compare"), []
    for setting in settings:
        torch.manual_seed(0)
        trainer = bundle.build(tmp_path, **overrides | bundle.sizes | setting)
        network, base = trainer.network, trainer.loss_function.base
        assert isinstance(trainer, ObjectiveTrainer) and isinstance(network, ConvolutionalNetwork)
        blocks = [module for module in network.modules() if isinstance(module, HighFrequencyMamba)]
        assert len(blocks) == len(setting.get("mamba_stages", [4, 5]))
        assert {block.high_pass.kind for block in blocks} <= {setting.get("hf_filter", "fft_gaussian")}
        heads.append(network.head.weight)
        kind = setting.get("base", "diffcl")
        assert isinstance(base, CrossSupervision) == (kind == "diffcl") and base.needs_teacher == (kind != "supervised")
        assert isinstance(base, CopyPaste) == (kind == "bcp")
        assert getattr(base, "passes", 0) == (4 if kind == "uamt" else 0)
        if kind == "diffcl":
            assert isinstance(base.peer, DiffusionPeer) == setting.get("ds_enabled", True)
            assert (base.propagation is None) == (setting.get("eta") == 0)
            assert base.mixer == (Mixer(pretrain=0.3, box=2 / 3) if setting.get("copy_paste") else None)
        held = [sum(map(len, (group["params"] for group in each.param_groups))) for each in trainer.optimizers]
        assert len(held) == 2 and min(held) > 20
    assert len(heads) == len(settings) > 8 and all(torch.equal(head, heads[0]) for head in heads)


def test_hippocampi_are_compared_by_the_same_settings(bundle, tmp_path):
    data = bundle.write(tmp_path / "set", training=4)
    overrides, settings = bundle.settings("compare_hippocampus")
    of_time = bundle.read("compare")["equal_time"].values()  # what takes the same time on left atria does not here
    assert settings == [setting for setting in bundle.settings("compare")[1] if setting not in of_time]
    trainer = bundle.build(tmp_path, data, **overrides | bundle.sizes)
    assert len({item["case"] for item in trainer.data_loader.dataset.labelled}) == overrides["labelled"]
