"""The bundle as its users start it, where it is not as the other semi-supervised ones: tiny runs of its configs."""

import pytest
import torch

from common.engine import load_checkpoint, root_cause

pytestmark = pytest.mark.usefixtures("restored")
SHORT = {"max_epochs": 1, "iterations_per_epoch": 2, "val_interval": 1}
CROSS = {"ds_enabled": False, "mamba_stages": [], "eta": 0}
SWITCHES = {
    "second V-Net": {"ds_enabled": False}, "no Mamba": {"mamba_stages": []}, "no high-pass": {"hf_filter": "none"},
    "no contrast": {"eta": 0}, "cross supervision": CROSS,
    "first weights all random": {"ds_zero_start": False},
    "confident pseudo-labels": {"pseudo_confidence": 0.4},
}  # fmt: skip


def moved(objects, name="optimizer"):
    """How many parameters an optimizer has moved."""
    return len(objects[name]["state"])


def has(objects, *part):
    """Whether there is such a part of the base in the state."""
    return any(name.startswith(".".join(("base", *part, ""))) for name in objects["objective"])


@pytest.mark.parametrize("base", ["supervised", "mean_teacher", "uamt", "bcp"])
def test_every_other_base_trains_the_student_alone(bundle, tmp_path, base):
    checkpoint, _ = bundle.train(tmp_path, base=base, pretrain=0.0, uncertainty_passes=2, **SHORT)
    objects = checkpoint["objects"]
    assert objects["objective"]["step"] == 2 and not has(objects)
    assert objects["objective"]["teacher.average.n_averaged"] == (0 if base == "supervised" else 2)
    assert moved(objects) > 0 and moved(objects, "peer_optimizer") == 0
    assert len(bundle.rows(tmp_path)) == 4


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_trains_both_networks(bundle, tmp_path, name):
    setting = SWITCHES[name]
    checkpoint, model = bundle.train(tmp_path, **SHORT, **setting)
    objects = checkpoint["objects"]
    assert objects["objective"]["step"] == 2 and moved(objects) > 0 and moved(objects, "peer_optimizer") > 0
    assert has(objects, "peer", "network")
    assert has(objects, "peer", "network", "time") == setting.get("ds_enabled", True)
    assert any("mamba" in key for key in model) == (setting.get("mamba_stages") != [])
    assert has(objects, "propagation") == (setting.get("eta") != 0)
    assert len(bundle.rows(tmp_path)) == 4


def test_as_published(bundle, tmp_path):
    short = {"iterations_per_epoch": 2, "max_epochs": 1, "distances": False, "pictures": 0}
    bundle.run(["train", "paper"], tmp_path, **bundle.sizes, **short)
    objects = load_checkpoint(tmp_path / "models" / "checkpoint.pt")["objects"]
    for name in ("optimizer", "peer_optimizer"):
        groups = objects[name]["param_groups"]
        for group in groups:
            assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.9, 0.0001, 0.01)
        assert moved(objects, name) == sum(len(group["params"]) for group in groups)
    for place, state in (("", objects["network"]), ("base.peer.network.", objects["objective"])):
        running = [value for key, value in state.items() if key.startswith(place) and key.endswith("running_mean")]
        assert len(running) > 20 and all(value.any() for value in running)
    assert len(bundle.rows(tmp_path)) == 4


def test_two_processes_keep_the_same_networks_and_one_goes_on_alone(bundle, tmp_path, two_processes):
    """Each sees images of its own. The wrappers leave no trace in the names of what is saved."""
    parts = ("@network.module", "@peer_network.module", "@propagation")
    ranks = two_processes(bundle.configs, tmp_path, parts, **bundle.options(tmp_path, **SHORT))
    torch.testing.assert_close(ranks[0][:2], ranks[1][:2], rtol=0, atol=0)
    assert not torch.equal(ranks[0][2]["prototypes.prototypes"], ranks[1][2]["prototypes.prototypes"])
    checkpoint, _ = bundle.train(tmp_path, resume=True, **{**SHORT, "max_epochs": 2})
    assert checkpoint["epoch"] == 2 and checkpoint["objects"]["objective"]["step"] == 4


def test_slices_are_refused(bundle, tmp_path):
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, spatial_dims=2, patch_size=[32, 32])
    assert "spatial_dims: expected 3, found 2; transmedseg_ssl takes slices" in str(root_cause(error.value))
