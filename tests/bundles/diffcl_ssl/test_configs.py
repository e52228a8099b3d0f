"""Every row of the comparisons: it trains a step, and its parts are what the row names."""

import pytest
import torch

from common.description import describe
from common.networks import HighFrequencyMamba
from common.semi_supervised import CopyPaste, MeanTeacherConsistency, Mixer, Supervised
from diffcl_ssl.network import ConvolutionalNetwork
from diffcl_ssl.objective import CrossSupervision
from diffcl_ssl.peers import DiffusionPeer, PlainPeer

pytestmark = pytest.mark.usefixtures("restored")
BASES = {"supervised": Supervised, "mean_teacher": MeanTeacherConsistency, "uamt": MeanTeacherConsistency,
         "bcp": CopyPaste}  # fmt: skip
PEERS = {"second_vnet": PlainPeer, "cross_supervision": PlainPeer}


def check_parts(trainer, overlay, own):
    """The objective of a row has what overlay and overrides say."""
    objective, base = trainer.loss_function, trainer.loss_function.base
    assert type(base) is BASES.get(overlay, CrossSupervision)
    assert (objective.teacher is not None) == (overlay in ("mean_teacher", "uamt", "bcp"))
    assert getattr(base, "passes", 0) == (4 if overlay == "uamt" else 0)
    plain = overlay in {*BASES, "cross_supervision"}  # without Mamba blocks
    stages = own.get("network_def::mamba_stages", [] if plain else [4, 5])
    blocks = [module for module in trainer.network.modules() if isinstance(module, HighFrequencyMamba)]
    assert type(trainer.network) is ConvolutionalNetwork and len(blocks) == len(stages)
    assert {block.high_pass.kind for block in blocks} <= {own.get("network_def::high_pass", "fft_gaussian")}
    if overlay in BASES:
        return
    assert type(base.peer) is PEERS.get(overlay, DiffusionPeer)
    assert (base.propagation is None) == ("propagation" in own or overlay == "cross_supervision")
    assert isinstance(base.mixer, Mixer) == ("base::mixer" in own)
    if "base::mixer" in own:
        assert base.start(1000) == 300 and base.mixer.box == 2 / 3 and base.propagation_start == 0.2
    if "peer_network_def::zero_start" in own:
        assert describe(base.peer, strict=False)["network"]["zero_start"] is False


@pytest.mark.parametrize("name", ["compare", "compare_hippocampus"])
def test_every_row_of_a_comparison_trains(bundle, tmp_path, name):
    """From the same first student."""
    data = bundle.write(tmp_path / "set", training=4, unlabeled=1, validation=1)
    overrides, rows = bundle.rows(name)
    short = {"iterations_per_epoch": 1, "batch_size": 2} | bundle.sizes
    classifiers, losses = [], set()
    for number, (overlays, own) in enumerate(rows):
        folder = tmp_path / str(number)
        torch.manual_seed(0)
        # the only step already sees unlabelled images
        first = {"base::mixer::pretrain": 0.0} if "base::mixer" in own else {}
        first |= {"base::pretrain": 0.0} if overlays == ["bcp"] else {}
        check_parts(bundle.build(folder, data, overlays, **overrides | short | own), *overlays or [""], own)
        torch.manual_seed(0)
        trainer = bundle.build(folder, data, overlays, **overrides | short | own | {"max_epochs": 1} | first)
        classifiers.append(trainer.network.classifier.weight.clone())
        trainer.run()
        learning = [each for group in trainer.optimizer.param_groups for each in group["params"]]
        assert all(each.grad is not None and each.isfinite().all() for each in learning)
        losses.add(trainer.state.output["loss"].item())
    labelled = len({item["case"] for item in trainer.data_loader.dataset.labelled})
    assert labelled == overrides.get("labelled", 4) and all(map(torch.equal, classifiers, classifiers[:1] * len(rows)))
    # the same in the first step are the blocks, which are silent then, and runs of another length
    assert len(rows) > 8 and len(losses) >= 7


@pytest.mark.parametrize("overlay", ["paper", "cross_supervision", "second_vnet"])
def test_the_peer_is_built_as_the_student_is(bundle, tmp_path, overlay):
    """The peer of another overlay too, whatever the width and the norm."""
    data = bundle.write(tmp_path / "set", training=1, unlabeled=1, validation=1)
    options = {"network_def::width": 4, "network_def::d_state": 2, "patch_size": [16, 16, 16]}
    trainer = bundle.build(tmp_path, data, list(dict.fromkeys(["paper", overlay])), **options)
    student, peer = describe(trainer.network), describe(trainer.loss_function.base.peer, strict=False)["network"]
    shared = ("spatial_dims", "in_channels", "out_channels", "width", "norm", "dropout")
    assert {key: peer[key] for key in shared} == {key: student[key] for key in shared}
    assert (student["norm"], student["dropout"]) == ("batch", 0.5)
