"""The bundle as its users start it, where it is not as the other semi-supervised ones: tiny runs of its configs."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from common.data import read_dataset
from common.engine import load_checkpoint, root_cause
from common.losses import ClassStatistics
from common.networks import VNet
from common.semi_supervised import MeanTeacher
from transmedseg_ssl.network import UNet

pytestmark = pytest.mark.usefixtures("restored")


def counts_of(checkpoint):
    """Updates of the teacher; features in the teacher's memory, of all classes."""
    state = checkpoint["objects"]["objective"]
    return [int(state[name].sum()) for name in ("teacher.average.n_averaged", "augmentation.teacher.count")]


def test_uncertainty_and_dropout_resume_bit_for_bit(bundle, tmp_path):
    """UA-MT draws noise and dropout for student and teacher; the second half has the first half's memories too."""
    options = {"overlay": ["uamt"], "network_def::dropout": 0.3, "base::passes": 2, "iterations_per_epoch": 2}
    whole = bundle.train(tmp_path / "whole", **options)
    first = bundle.train(tmp_path / "halves", max_epochs=2, **options)
    halves = bundle.train(tmp_path / "halves", resume=True, **options)
    updates, features = counts_of(first[0])
    assert updates == 4 and features > 256 and counts_of(halves[0]) > [8, features]
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)
    other = bundle.train(tmp_path / "other", **{**options, "network_def::dropout": 0.0})
    assert not torch.equal(other[1]["final_conv.weight"], whole[1]["final_conv.weight"])


@pytest.mark.parametrize("overlay", [[], ["mean_teacher"], ["uamt"]], ids=["bcp", "mean_teacher", "uamt"])
def test_every_base_with_a_teacher_trains_in_both_directions(bundle, tmp_path, overlay):
    """The direction changes what is learnt."""
    options = {"max_epochs": 1, "tsa_strength": 1.0} | ({} if overlay else {"base::pretrain": 0.0})
    models = []
    for direction in ("source_to_target", "teacher_to_student"):
        more = {"feature_augmentation::direction": direction}
        checkpoint, model = bundle.train(tmp_path / direction, overlay=overlay, **options | more)
        updates, features = counts_of(checkpoint)
        assert updates == 3 and features > 0
        assert min(float(row["dice"]) for row in bundle.cases(tmp_path / direction)) > 0.1
        models.append(model["final_conv.weight"])
    assert not torch.equal(*models)


# what is built: networks, teachers, memories of classes, optimizers; MONAI drops overrides that are None
BUILT = [([], {}, [1, 1, 2, 1]), (["mean_teacher"], {}, [1, 1, 2, 1]),
         ([], {"feature_augmentation": "$None"}, [1, 1, 0, 1]),
         (["supervised"], {}, [1, 0, 0, 1]),
         (["volume", "supervised"], {"patch_size": [16, 16, 16]}, [1, 0, 0, 1])]  # fmt: skip


@pytest.mark.parametrize(("overlay", "options", "built"), BUILT)
def test_a_run_builds_what_it_uses(bundle, tmp_path, monkeypatch, overlay, options, built):
    made = []
    for kind in (UNet, VNet, MeanTeacher, ClassStatistics, torch.optim.Optimizer):
        monkeypatch.setattr(kind, "__init__", lambda self, *args, kind=kind, start=kind.__init__, **more: (
            made.append(kind), start(self, *args, **more))[1])  # fmt: skip
    short = {"max_epochs": 1, "iterations_per_epoch": 1, "batch_size": 2}
    checkpoint, _ = bundle.train(tmp_path, overlay=overlay, **short | options)
    networks = made.count(UNet) + made.count(VNet)
    assert [networks, *(made.count(kind) for kind in (MeanTeacher, ClassStatistics, torch.optim.Optimizer))] == built
    names = {name.split(".")[0] for name in checkpoint["objects"]["objective"]}
    assert names - {"_extra_state"} == {*["teacher"] * built[1], *["augmentation"] * built[2]}


def test_two_processes_keep_the_same_network_and_memories(bundle, tmp_path, two_processes):
    """Each sees images of its own; with a batch of 2 an epoch adds so many features a process."""
    options = {"base::pretrain": 0.0, "max_epochs": 1, "val_interval": 1, "batch_size": 2}
    parts = ("@network.module", "@teacher", "@loss.augmentation")
    ranks = two_processes(bundle.configs, tmp_path, parts, **bundle.options(tmp_path, **options))
    torch.testing.assert_close(*ranks, rtol=0, atol=0)
    assert ranks[0][2]["teacher.count"].sum() > 256 and not ranks[0][2]["teacher.new_count"].any()
    checkpoint, _ = bundle.train(tmp_path, resume=True, **options | {"max_epochs": 2})
    assert (checkpoint["epoch"], checkpoint["iteration"]) == (2, 6)


def test_photographs(bundle, tmp_path):
    """They are slices: trained on, scored in pixels, and segmented into files of their own kind and size."""
    data = bundle.write_photographs(tmp_path / "set")
    options = {"iterations_per_epoch": 10, "val_interval": 4, "distances": True, "zoom": [1.0, 0.8]}
    bundle.train(tmp_path, data, **options, **{"base::pretrain": 0.0, "preprocessing_def::kinds": ["photographs"]})
    rows = bundle.cases(tmp_path)
    assert np.mean([float(row["dice"]) for row in rows]) > 0.7 and all(row["hd95_px"] for row in rows)
    bundle.infer(tmp_path, data)
    for name in ("validation_1", "validation_2"):
        files = tmp_path / "eval" / f"{name}_seg.png", data / f"{name}_label.png"
        found, truth = (np.asarray(Image.open(file)) for file in files)
        dice = [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2)]
        scored = [float(row["dice"]) for row in rows if row["case"] == name]
        assert found.shape == truth.shape and found.dtype == np.uint8
        np.testing.assert_allclose(dice, scored, atol=1e-3)


def test_a_classifier_too_narrow_for_the_augmentation_is_refused_before_the_first_update(bundle, tmp_path):
    options = bundle.tiny | {"patch_size": [32, 32, 16], "network_def::width": 3, "batch_size": 2, "max_epochs": 1,
                             "base::pretrain": 0.9}  # fmt: skip
    bundle.build(tmp_path / "without", overlays=["volume"], **options, feature_augmentation=None).run()
    trainer = bundle.build(tmp_path, overlays=["volume"], **options)
    with pytest.raises(ValueError, match="with no more inputs than outputs: give the network more channels"):
        trainer.run()
    assert trainer.state.iteration == 1


def test_photographs_are_no_volumes(bundle, tmp_path):
    data = bundle.write_photographs(tmp_path / "set")
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, data, overlay=["volume"], patch_size=[32, 32, 16])
    text = str(root_cause(error.value))
    assert "6 images, such as" in text
    assert "expected scans (NIfTI), as the preprocessing of this model or config takes (`kinds`)" in text


def test_volumes(bundle, tmp_path):
    """Three axes, a depth below the patch's, and half the voxels along two axes."""
    sizes = {"patch_size": [32, 32, 16], "zoom": [0.5, 0.5, 1.0], "base::pretrain": 0.0}
    options = {"batch_size": 2, "iterations_per_epoch": 2, "max_epochs": 1, "distances": True}
    checkpoint, model = bundle.train(tmp_path, overlay=["volume"], val_interval=1, **sizes, **options)
    assert model["classifier.weight"].shape == (3, 4, 1, 1, 1) and counts_of(checkpoint)[0] == 2
    rows = bundle.cases(tmp_path)
    assert len(rows) == 2 * 2 and all(float(row["truth_ml"]) > 0 for row in rows)
    image = read_dataset(bundle.data).training[0]["image"]
    bundle.infer(tmp_path, images=image)
    found, shown = nib.load(tmp_path / "eval" / "training_1_seg.nii.gz"), nib.load(image)
    assert found.shape == shown.shape and set(np.unique(found.dataobj)) <= {0, 1, 2}
    np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)
    assert (tmp_path / "eval" / "found_training_1.png").is_file()


def test_as_published_and_a_patch_that_is_no_square(bundle, tmp_path):
    sizes = {"patch_size": [32, 48], "network_def::width": 4, "batch_size": 4, "base::pretrain": 0.0}
    options = {"iterations_per_epoch": 2, "max_epochs": 1, "distances": False, "pictures": 0}
    bundle.run(["train", "paper"], tmp_path, **sizes, **options)
    objects = load_checkpoint(tmp_path / "models" / "checkpoint.pt")["objects"]
    group = objects["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.9, 0.0001, 0.01)
    running = [value for key, value in objects["network"].items() if key.endswith("running_mean")]
    assert running and all(value.any() for value in running)
    assert len(bundle.cases(tmp_path)) == 4


def test_volumes_as_published(bundle, tmp_path):
    trainer = bundle.build(tmp_path, overlays=["volume", "volume_paper"])
    objective = trainer.loss_function
    assert (objective.base.start(objective.total_steps), objective.total_steps) == (2000, 17000)
    assert trainer.network.classifier.in_channels == 16 and isinstance(trainer.optimizer, torch.optim.SGD)
    item = trainer.data_loader.dataset[0, 0, 0]
    assert item["image"].shape == item["unlabeled"].shape == (1, 112, 112, 80)
