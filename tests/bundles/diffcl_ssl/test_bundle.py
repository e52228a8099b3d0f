"""The bundle as its users start it, where it is not as the other semi-supervised ones: tiny runs of its configs."""

import pytest
import torch

from common.engine import load_checkpoint
from common.networks import VNet
from common.semi_supervised import MeanTeacher
from diffcl_ssl.propagation import LabelPropagation

pytestmark = pytest.mark.usefixtures("restored")
SHORT = {"max_epochs": 1, "iterations_per_epoch": 2, "val_interval": 1}
# overlay, override, and what is built: networks, teachers, contrasts, optimizers
BUILT = [
    ([], {}, [2, 0, 1, 1]), (["second_vnet"], {}, [2, 0, 1, 1]), (["cross_supervision"], {}, [2, 0, 0, 1]),
    ([], {"propagation": "$None"}, [2, 0, 0, 1]), (["bcp"], {"base::pretrain": 0.0}, [1, 1, 0, 1]),
    (["mean_teacher"], {}, [1, 1, 0, 1]), (["uamt"], {}, [1, 1, 0, 1]), (["supervised"], {}, [1, 0, 0, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("overlay", "options", "built"), BUILT)
def test_a_run_builds_what_it_uses(bundle, tmp_path, monkeypatch, overlay, options, built):
    """And trains it; a rival has neither a second network nor its optimizer."""
    made = []
    for kind in (VNet, MeanTeacher, LabelPropagation, torch.optim.Optimizer):
        monkeypatch.setattr(kind, "__init__", lambda self, *args, kind=kind, start=kind.__init__, **more: (
            made.append(kind), start(self, *args, **more))[1])  # fmt: skip
    objects = bundle.train(tmp_path, overlay=overlay, **SHORT | options)[0]["objects"]
    assert [made.count(kind) for kind in (VNet, MeanTeacher, LabelPropagation, torch.optim.Optimizer)] == built
    names = {".".join(name.split(".")[: 2 if name.startswith("base") else 1]) for name in objects["objective"]}
    parts = {*["base.peer"] * (built[0] - 1), *["teacher"] * built[1], *["base.propagation"] * built[2]}
    assert names - {"_extra_state"} == parts
    learning = sum(len(group["params"]) for group in objects["optimizer"]["param_groups"])
    assert len(objects["optimizer"]["state"]) == learning  # each has had a gradient
    assert objects["objective"].get("teacher.average.n_averaged") == (2 if built[1] else None)
    assert len(bundle.cases(tmp_path)) == 4


def test_as_published(bundle, tmp_path):
    short = {"iterations_per_epoch": 2, "max_epochs": 1, "distances": False, "pictures": 0}
    bundle.run(["train", "paper"], tmp_path, **bundle.sizes, **short)
    objects = load_checkpoint(tmp_path / "models" / "checkpoint.pt")["objects"]
    (group,) = objects["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.9, 0.0001, 0.01)
    assert len(objects["optimizer"]["state"]) == len(group["params"])
    for place, state in (("", objects["network"]), ("base.peer.network.", objects["objective"])):
        running = [value for key, value in state.items() if key.startswith(place) and key.endswith("running_mean")]
        assert len(running) > 20 and all(value.any() for value in running)
    assert len(bundle.cases(tmp_path)) == 4


def test_two_processes_keep_the_same_networks_and_one_goes_on_alone(bundle, tmp_path, two_processes):
    """Each sees images of its own. The wrappers leave no trace in the names of what is saved."""
    parts = ("@network.module", "@peer_network.module", "@propagation")
    ranks = two_processes(bundle.configs, tmp_path, parts, **bundle.options(tmp_path, **SHORT))
    torch.testing.assert_close(ranks[0][:2], ranks[1][:2], rtol=0, atol=0)
    assert not torch.equal(ranks[0][2]["prototypes.prototypes"], ranks[1][2]["prototypes.prototypes"])
    checkpoint, _ = bundle.train(tmp_path, resume=True, **{**SHORT, "max_epochs": 2})
    assert (checkpoint["epoch"], checkpoint["iteration"]) == (2, 4)
