"""Learning from the annotated scans: what it starts from, that it learns, and that nothing else changes by it."""

import copy

import numpy as np
import pytest
import torch

from apscl_fewshot.adaptation import Adaptation, annotated_slices, augmentation, imprint
from apscl_fewshot.evaluator import FewShotEvaluator
from apscl_fewshot.protocol import predict_adapted
from common.data import DataError


def test_slices_and_classes_are_those_of_the_scans(make_scan):
    scans = [make_scan("one"), make_scan("two", {3: (1, 2)}, native=(32, 32))]
    images, masks = annotated_slices(scans, [3, 1])
    assert images.shape == (18, 1, 32, 32) and masks.shape == (18, 32, 32)
    assert torch.equal(images[9:], scans[1]["image"])
    assert torch.equal(masks[9:] == 1, scans[1]["label"] == 3)  # the network's own size: nothing is resized
    shown = [sorted({int(value) for value in mask.unique()} - {0}) for mask in masks[:9]]
    assert shown == [[], [2], [2], [1, 2], [1, 2], [1, 2], [2], [2], []]  # organ 1 in slices 1..7, organ 3 in 3..5


def test_a_class_that_is_lost_at_the_size_of_the_network_is_refused(network, make_scan):
    """A pixel of 320 x 320 between those that are taken for 32 x 32."""
    scan = make_scan(native=(320, 320))
    scan["label"][4, 100, 100] = 7
    with pytest.raises(DataError, match="in slices of 32 x 32, found none left of label 7; use a model of a larger"):
        Adaptation(steps=1)(network, [scan], [1, 7])
    scan["label"][4, 95:105, 95:105] = 7
    assert (annotated_slices([scan], [1, 7])[1] == 2).sum() == 1


def test_prototypes_begin_as_the_mean_features_of_each_class(network, make_scan):
    """Against a loop over positions, each weighed by the share of its 4 x 4 pixels that the class covers."""
    images, masks = annotated_slices([make_scan()], [1, 3])
    found, positions = imprint(network, images, masks, 2, batch=4)
    with torch.no_grad():
        features = network.embed(images)[0]
    for label in range(3):
        total, weight = np.zeros(features.shape[1]), 0.0
        for z, y, x in np.ndindex(len(images), 8, 8):
            share = (masks[z, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] == label).float().mean().item()
            total, weight = total + share * features[z, :, y, x].numpy(), weight + share
        np.testing.assert_allclose(found[label].numpy(), total / weight, rtol=1e-4, atol=1e-5)
    assert positions.shape == (2, 64, 64)
    network.position = None
    assert imprint(network, images, masks, 2)[1].shape == (0,)


def test_it_learns_the_organ_of_the_scan(make_network, make_scan):
    support, query = make_scan("support"), make_scan("query")
    truth, dice = query["label"] == 1, []
    for steps in (0, 80):
        network = make_network(position=False).eval()
        learned = Adaptation(steps=steps, learning_rate=1e-2)(network, [support], [1])
        with torch.no_grad():
            found = predict_adapted(network, *learned, query["image"], truth.shape[1:]) == 1
        dice.append(2 * (found & truth).sum().item() / (found.sum() + truth.sum()).item())
    assert dice[0] < 0.5 and dice[1] > dice[0] + 0.2, dice


def test_the_same_scans_give_the_same_network_and_another_seed_another(make_network, make_scan):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))  # nothing of the process's own generator counts
        network = make_network().eval()
        prototypes, _ = Adaptation(steps=3, seed=seed)(network, [make_scan()], [1])
        found.append([prototypes, *network.state_dict().values()])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.equal(found[0][0], found[2][0])


def test_batch_norms_stay_as_they_were(make_network, make_scan):
    """Statistics and weights, so that a network rebuilt from model.json learns as the one that was trained does."""
    network = make_network()
    network.encoder.second = torch.nn.Sequential(network.encoder.second, torch.nn.BatchNorm2d(8))
    before = copy.deepcopy(network.encoder.state_dict())
    Adaptation(steps=2)(network.eval(), [make_scan()], [1])
    after = network.encoder.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"first.weight", "first.bias", "second.0.weight", "second.0.bias"}
    assert not network.training


def test_the_evaluated_network_itself_does_not_change(network, make_scan):
    """Each support teaches a copy, once for all queries."""
    before, made = copy.deepcopy(network.state_dict()), []
    learn = Adaptation(steps=2)

    def adaptation(*arguments):
        made.append(arguments[1][0]["case"])
        return learn(*arguments)

    evaluator = FewShotEvaluator(["adapted", "ep2"], adaptation=adaptation, device="cpu", val_data_loader=[],
                                 network=network, model={}, distances=False)  # fmt: skip
    supports = [make_scan("a"), make_scan("b")]
    for name in ("query", "other"):
        item = {**make_scan(name), "support": supports, "novel_labels": {1: "one", 3: "three"}}
        entries = evaluator.segment_query(item, ["adapted"])
        assert [(entry["support"], entry["structure"]) for entry in entries] == [
            ("a", "one"), ("a", "three"), ("b", "one"), ("b", "three")]  # fmt: skip
        assert not (entries[0]["pred"] * entries[1]["pred"]).any()  # a voxel has one class
    assert made == ["a", "b"]
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert [entry["protocol"] for entry in evaluator.validate(item)] == ["ep2"] * 4  # validation does not train


def test_a_view_moves_image_and_mask_together():
    image = torch.zeros(1, 48, 48)
    image[:, 12:30, 20:40] = 1.0
    views = augmentation([48, 48])
    for seed in range(8):
        views.set_random_state(seed=seed)
        view = views({"image": image, "mask": (image > 0.5).float()})
        inside, outside = view["image"][view["mask"] > 0], view["image"][view["mask"] == 0]
        assert len(inside) > 100 and inside.mean() > outside.mean() + 0.3


@pytest.mark.parametrize("options", [{"steps": -1}, {"batch_size": 0}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="expected steps from 0 and a batch_size from 1 on"):
        Adaptation(**options)


def test_a_loss_that_is_not_finite_ends_it(network, make_scan):
    scan = make_scan("broken")
    scan["image"][3, 0, 5, 5] = torch.nan
    with pytest.raises(FloatingPointError, match="learning from broken: the loss is nan. Lower the learning_rate"):
        Adaptation(steps=50)(network, [scan], [1])


def test_adapted_needs_an_adaptation(network):
    with pytest.raises(ValueError, match="expected `adaptation` for adapted, found none"):
        FewShotEvaluator(["adapted"], device="cpu", val_data_loader=[], network=network, model={})
