"""The bundle as its users start it, where it is not as the other semi-supervised ones: tiny runs of its configs."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from common.data import read_dataset
from common.engine import load_checkpoint, root_cause
from transmedseg_ssl.inferer import SliceInferer

pytestmark = pytest.mark.usefixtures("restored")


def steps_of(checkpoint):
    """Steps of the objective; updates of the teacher; features in the teacher's memory, of all classes."""
    state = checkpoint["objects"]["objective"]
    return [int(state[name].sum()) for name in ("step", "teacher.average.n_averaged", "augmentation.teacher.count")]


def test_uncertainty_and_dropout_resume_bit_for_bit(bundle, tmp_path):
    """UA-MT draws noise and dropout for student and teacher; the second half has the first half's memories too."""
    options = {"base": "uamt", "dropout": 0.3, "uncertainty_passes": 2, "iterations_per_epoch": 2}
    whole = bundle.train(tmp_path / "whole", **options)
    first = bundle.train(tmp_path / "halves", max_epochs=2, **options)
    halves = bundle.train(tmp_path / "halves", resume=True, **options)
    steps, updates, features = steps_of(first[0])
    assert steps == updates == 4 and features > 256 and steps_of(halves[0])[2] > features
    torch.testing.assert_close(halves, whole, rtol=0, atol=0)
    other = bundle.train(tmp_path / "other", **{**options, "dropout": 0.0})
    assert not torch.equal(other[1]["final_conv.weight"], whole[1]["final_conv.weight"])


@pytest.mark.parametrize("base", ["supervised", "mean_teacher", "uamt", "bcp"])
def test_every_base_trains_in_both_directions(bundle, tmp_path, base):
    """The direction changes what is learnt wherever there is a teacher; without unlabelled images there is neither."""
    options = {"base": base, "pretrain": 0.0, "max_epochs": 1, "tsa_strength": 1.0, "tsa_weight": 1.0}
    models = []
    for direction in ("source_to_target", "teacher_to_student"):
        checkpoint, model = bundle.train(tmp_path / direction, tsa_direction=direction, **options)
        steps, updates, features = steps_of(checkpoint)
        assert (steps, updates, features > 0) == ((3, 0, False) if base == "supervised" else (3, 3, True))
        assert min(float(row["dice"]) for row in bundle.rows(tmp_path / direction)) > 0.1
        models.append(model["final_conv.weight"])
    assert torch.equal(*models) == (base == "supervised")


@pytest.mark.parametrize("base", ["mean_teacher", "bcp"])
def test_the_students_unlabelled_voxels_and_their_information(bundle, tmp_path, base):
    """Either changes what is learnt."""
    options = {"base": base, "pretrain": 0.0, "max_epochs": 1, "tsa_weight": 1.0}
    models = [bundle.train(tmp_path / str(number), **options, **more)[1]["final_conv.weight"] for number, more in
              enumerate(({}, {"tsa_on_unlabelled": True}, {"tsa_mi_weight": 0.1}))]  # fmt: skip
    assert not torch.equal(models[0], models[1]) and not torch.equal(models[0], models[2])
    assert all(model.isfinite().all() for model in models)


def test_two_processes_keep_the_same_network_and_memories(bundle, tmp_path, two_processes):
    """Each sees images of its own; with a batch of 2 an epoch adds so many features a process."""
    options = {"pretrain": 0.0, "max_epochs": 1, "val_interval": 1, "batch_size": 2}
    parts = ("@network.module", "@teacher", "@loss.augmentation")
    ranks = two_processes(bundle.configs, tmp_path, parts, **bundle.options(tmp_path, **options))
    torch.testing.assert_close(*ranks, rtol=0, atol=0)
    assert ranks[0][2]["teacher.count"].sum() > 256 and not ranks[0][2]["teacher.new_count"].any()
    checkpoint, _ = bundle.train(tmp_path, resume=True, **options | {"max_epochs": 2})
    assert checkpoint["epoch"] == 2 and steps_of(checkpoint)[0] == 6


def test_photographs(bundle, tmp_path):
    """They are slices: trained on, scored in pixels, and segmented into files of their own kind and size."""
    data = bundle.write_photographs(tmp_path / "set")
    options = {"pretrain": 0.0, "iterations_per_epoch": 10, "val_interval": 4, "distances": True, "zoom": [1.0, 0.8]}
    bundle.train(tmp_path, data, **options)
    rows = bundle.rows(tmp_path)
    assert np.mean([float(row["dice"]) for row in rows]) > 0.7 and all(row["hd95_px"] for row in rows)
    bundle.infer(tmp_path, data, output_ext=".png")
    for name in ("validation_1", "validation_2"):
        files = tmp_path / "eval" / f"{name}_seg.png", data / f"{name}_label.png"
        found, truth = (np.asarray(Image.open(file)) for file in files)
        dice = [2 * ((found == k) & (truth == k)).sum() / ((found == k).sum() + (truth == k).sum()) for k in (1, 2)]
        scored = [float(row["dice"]) for row in rows if row["case"] == name]
        assert found.shape == truth.shape and found.dtype == np.uint8
        np.testing.assert_allclose(dice, scored, atol=1e-3)


def test_a_photograph_after_a_volume():
    inferer = SliceInferer(spatial_dim=2, roi_size=[32, 32], sw_batch_size=2)
    volume, photograph = torch.rand(1, 1, 40, 32, 3), torch.rand(1, 1, 40, 50)
    for image in (photograph, volume, photograph, volume):
        torch.testing.assert_close(inferer(image, lambda x: 2 * x), 2 * image)
    seen = []
    whole = SliceInferer(spatial_dim=2, roi_size=[32, 32, 3], sw_batch_size=1)
    torch.testing.assert_close(whole(volume, lambda x: (seen.append(x.shape), 2 * x)[1]), 2 * volume)
    assert set(seen) == {(1, 1, 32, 32, 3)}  # three lengths: volumes, not slices


def test_a_head_too_narrow_for_the_augmentation_is_refused_before_the_first_update(bundle, tmp_path):
    options = bundle.tiny | {"patch_size": [32, 32, 16], "width": 3, "batch_size": 2, "pretrain": 0.9, "max_epochs": 1}
    bundle.build(tmp_path, overlays=["volume"], **options, tsa_weight=0.0).run()
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
    assert "expected scans (NIfTI); photographs are for bundles that train on slices" in text


def test_volumes(bundle, tmp_path):
    """Three axes, a depth below the patch's, and half the voxels along two axes."""
    sizes = {"patch_size": [32, 32, 16], "width": 4, "zoom": [0.5, 0.5, 1.0]}
    options = {"batch_size": 2, "iterations_per_epoch": 2, "max_epochs": 1, "pretrain": 0.0, "distances": True}
    checkpoint, model = bundle.train(tmp_path, overlay=["volume"], val_interval=1, **sizes, **options)
    assert model["head.weight"].shape == (3, 4, 1, 1, 1) and steps_of(checkpoint)[:2] == [2, 2]
    rows = bundle.rows(tmp_path)
    assert len(rows) == 2 * 2 and all(float(row["truth_ml"]) > 0 for row in rows)
    image = read_dataset(bundle.data).training[0]["image"]
    with pytest.raises(RuntimeError) as error:
        bundle.infer(tmp_path, images=image)
    assert "A model trained with volume.json needs volume_inference.json over" in str(root_cause(error.value))
    bundle.infer(tmp_path, overlay=["volume_inference"], images=image)
    found, shown = nib.load(tmp_path / "eval" / "training_1_seg.nii.gz"), nib.load(image)
    assert found.shape == shown.shape and set(np.unique(found.dataobj)) <= {0, 1, 2}
    np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)
    assert (tmp_path / "eval" / "overlay_training_1.png").is_file()


def test_as_published_and_a_patch_that_is_no_square(bundle, tmp_path):
    sizes = {"patch_size": [32, 48], "width": 4, "batch_size": 4}
    options = {"iterations_per_epoch": 2, "max_epochs": 1, "pretrain": 0.0, "distances": False, "pictures": 0}
    bundle.run(["train", "paper"], tmp_path, **sizes, **options)
    objects = load_checkpoint(tmp_path / "models" / "checkpoint.pt")["objects"]
    group = objects["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["weight_decay"], group["initial_lr"]) == (0.9, 0.0001, 0.01)
    running = [value for key, value in objects["network"].items() if key.endswith("running_mean")]
    assert running and all(value.any() for value in running)
    assert len(bundle.rows(tmp_path)) == 4


def test_volumes_as_published(bundle, tmp_path):
    trainer = bundle.build(tmp_path, overlays=["volume", "volume_paper"])
    objective = trainer.loss_function
    assert (objective.base.start(objective.total_steps), objective.total_steps) == (2000, 17000)
    assert trainer.network.head.in_channels == 16 and isinstance(trainer.optimizer, torch.optim.SGD)
    item = trainer.data_loader.dataset[0, 0, 0]
    assert item["image"].shape == item["unlabeled"].shape == (1, 112, 112, 80)
