"""The contrast of features in the objective: which pixels count, from when on, and how strongly."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.losses import BankContrastiveLoss, ClassMemoryBank, ClassStatistics, GaussianContrastiveLoss
from sgcg_dg import objective as module
from sgcg_dg.objective import FeatureContrast, GeneralisationObjective, all_levels, fit_labels, thin

TERMS = {"loss", "seg", "seg_ram", "kd", "rec", "feat"}


class Recorder(nn.Module):
    """In place of statistics and loss: keeps what it was given; the loss is ``slope`` times the sum of the features."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope, self.updates, self.losses = slope, [], []

    def update(self, features, labels, domains):
        self.updates.append((features.detach(), labels, domains))

    def sync(self):
        pass

    def pooled(self):
        return len(self.updates)

    def forward(self, features, labels, statistics):
        self.losses.append((features.detach(), labels, statistics))
        return self.slope * features.sum()


def encoded(label, size, view=0):
    """Maps whose features, of unit length, say which pixel they are: (label, image, view, place on each axis).

    The last coordinate is 1 before the length is taken off, and gives it back: see :func:`decoded`.
    """
    steps = [torch.arange(0, 32 * n, 32) * full // (32 * n) for n, full in zip(size, label.shape[2:], strict=True)]
    places = torch.stack(torch.meshgrid(*steps, indexing="ij")).float()
    there = label[(slice(None), 0, *torch.meshgrid(*steps, indexing="ij"))].float()
    image = torch.arange(len(label)).view(-1, *[1] * (1 + len(size))).expand_as(there[:, None])
    view = torch.full_like(there[:, None], view)
    one = torch.ones_like(view)
    return torch.cat([there[:, None], image, view, places.expand(len(label), *places.shape), one], 1)


def decoded(features):
    """What :func:`encoded` said, as whole numbers."""
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    values = features[:, :-1] / features[:, -1:]
    assert (values - values.round()).abs().max() < 0.01
    return values.round().long()


@pytest.mark.parametrize(
    ("size", "stride", "kept"),
    [
        ((33, 40), 1, [range(33), range(40)]),
        ((33, 40), 2, [range(0, 33, 2), range(0, 40, 2)]),
        ((96, 36), 3, [range(0, 96, 3), range(0, 36, 3)]),
        ((20, 35), 2, [range(20), range(0, 35, 2)]),  # axes shorter than 32 are taken whole
    ],
)
def test_features_labels_and_domains_are_flattened_alike(size, stride, kept):
    label, domain = torch.randint(0, 3, (4, 1, *size)), torch.tensor([2, 0, 1, 1])
    recorder = Recorder()
    contrast = FeatureContrast(recorder, recorder, 3, stride=stride)
    contrast({"image": encoded(label, size, 0), "ram": encoded(label, size, 1)}, label, domain, 0)
    (features, labels, domains), (again, same, statistics) = recorder.updates[0], recorder.losses[0]
    assert len(recorder.updates) == len(recorder.losses) == 1 and statistics == 1  # updated once, then the loss
    assert torch.equal(again, features) and torch.equal(same, labels)
    said = decoded(features)
    assert torch.equal(said[:, 0], labels) and torch.equal(domain[said[:, 1]], domains)
    places = {tuple(row) for row in said[:, 1:].tolist()}
    expected = 2 * 4 * math.prod(map(len, kept))
    assert len(places) == len(features) == expected
    for axis, own in enumerate(kept):
        assert {place[2 + axis] for place in places} == set(own)


def test_statistics_hold_the_pixels_of_both_views_once(make_contrast):
    """Of unit length; those of a domain in its own group."""
    label, domain = torch.randint(0, 3, (4, 1, 34, 12)), torch.tensor([0, 0, 1, 2])
    maps = {view: torch.randn(4, 8, 34, 12) for view in ("image", "ram")}
    contrast = make_contrast().train()
    loss = contrast(maps, label, domain, 0)
    memory = contrast.memory
    for group in range(3):
        for k in range(3):
            rows = []
            for view in maps.values():
                for b in (domain == group).nonzero().flatten().tolist():
                    inside = label[b, 0, ::2] == k
                    vectors = view[b, :, ::2].double()[:, inside].T
                    rows.append(vectors / vectors.norm(dim=1, keepdim=True))
            rows = torch.cat(rows)
            assert memory.count[group, k] == len(rows)
            torch.testing.assert_close(memory.mean[group, k].double(), rows.mean(0), rtol=0, atol=1e-6)
            torch.testing.assert_close(memory.cov[group, k].double(), rows.T.cov(correction=0), rtol=0, atol=1e-6)
    assert memory.count.sum() == 2 * 4 * 17 * 12 and loss > 0
    again = GaussianContrastiveLoss()
    features = torch.cat([F.normalize(maps[view][:, :, ::2], dim=1).movedim(1, -1).flatten(0, 2) for view in maps])
    torch.testing.assert_close(loss, again(features, label[:, 0, ::2].flatten().repeat(2), memory.pooled()))


def test_thinned_maps():
    maps = torch.arange(2 * 33 * 31).view(1, 2, 33, 31)
    assert torch.equal(thin(maps, 2), maps[:, :, ::2])
    assert torch.equal(thin(maps, 1), maps)
    assert thin(torch.zeros(1, 1, 64, 32, 30), 4).shape == (1, 1, 16, 8, 30)


def test_labels_of_coarse_cells():
    """A cell of 4 x 4 pixels has the class that fills three quarters of it, or none."""
    label = torch.zeros(1, 1, 8, 12, dtype=torch.int64)
    label[0, 0, :4, :3] = 2  # 12 of 16 pixels
    label[0, 0, :4, 4:7], label[0, 0, 0, 4] = 1, 0  # 11 of 16
    label[0, 0, :4, 8:12] = 1
    label[0, 0, 4:8, 0], label[0, 0, 4:8, 4:6], label[0, 0, 4:8, 6:8] = 2, 1, 2  # 4 of 16; 8 and 8
    expected = [[2, -1, 1], [0, -1, 0]]
    assert fit_labels(label, torch.Size((2, 3)), 3).tolist() == [expected]
    assert torch.equal(fit_labels(label, torch.Size((8, 12)), 3), label[:, 0])


def test_coarse_maps_that_are_thinned_keep_the_labels_of_their_cells():
    """64 cells of 16 pixels, every second one of which is used."""
    label = (torch.arange(1024) // 16 % 3).view(1, 1, 1024, 1).expand(-1, -1, -1, 32).contiguous()
    angle, recorder = torch.arange(64.0).view(1, 1, 64, 1).expand(-1, -1, -1, 2) / 64, Recorder()
    maps = {"image": torch.cat([angle.cos(), angle.sin()], 1)}
    FeatureContrast(recorder, recorder, 3, level="deep")(maps, label, torch.tensor([0]), 0)
    features, labels, _ = recorder.updates[0]
    cells = 64 * torch.atan2(features[:, 1], features[:, 0])
    assert cells.round().tolist() == [cell for cell in range(0, 64, 2) for _ in range(2)]
    assert labels.tolist() == [cell % 3 for cell in range(0, 64, 2) for _ in range(2)]


@pytest.mark.parametrize(
    ("level", "dim", "size"), [("penultimate", 8, (32, 48)), ("deep", 64, (2, 3)), ("logits", 2, (32, 48))]
)
def test_levels(make_network, batch, level, dim, size, make_objective, make_contrast):
    network = make_network()
    contrast = make_contrast(dim, level=level, stride=1)
    _, terms = make_objective(contrast=contrast)(network, batch, 0)
    maps = all_levels(network, batch["image"])[level]
    assert maps.shape == (7, dim, *size) and terms["feat"] > 0
    labels = fit_labels(batch["label"], torch.Size(size), 3)
    assert contrast.memory.count.sum() == 2 * (labels >= 0).sum()
    unit = F.normalize(maps, dim=1)[:2].movedim(1, -1)[labels[:2] == 0]
    mixed = all_levels(network, batch["image_ram"])[level]
    mixed = F.normalize(mixed, dim=1)[:2].movedim(1, -1)[labels[:2] == 0]
    torch.testing.assert_close(contrast.memory.mean[0, 0], torch.cat([unit, mixed]).mean(0))


def test_a_memory_bank_instead_of_statistics(make_network, batch, make_objective, monkeypatch):
    monkeypatch.setattr(module, "MEASURE_EVERY", 1)
    bank = ClassMemoryBank(3, 8, 16)
    contrast = FeatureContrast(bank, BankContrastiveLoss(), 3)
    _, terms = make_objective(contrast=contrast)(make_network(), batch, 0)
    assert set(terms) == TERMS | {"pull"} and terms["feat"] > 0 and terms["pull"] > 0
    assert bank.filled.tolist() == [16, 16, 16]
    torch.testing.assert_close(bank.get(1).norm(dim=1), torch.ones(16))


def test_nothing_before_the_start(make_network, batch, make_objective, make_contrast, monkeypatch):
    """By the engine's step, whatever the objective saw before."""
    monkeypatch.setattr(module, "MEASURE_EVERY", 1)
    network = make_network()
    objective = make_objective(contrast=make_contrast(start=2))
    for step in (0, 1, 2, 3):
        _, terms = objective(network, batch, step)
        count = objective.contrast.memory.count.sum()
        assert ("feat" in terms) == (step >= 2)
        assert count == max(0, step - 1) * 2 * 7 * 16 * 24  # every second pixel of each axis
    assert set(terms) == TERMS | {"pull", "scatter"}
    torch.testing.assert_close(terms["scatter"], objective.contrast.memory.between_group_scatter().float())


def test_without_a_covariance_there_is_no_scatter_to_log(make_network, batch, make_objective, monkeypatch):
    """As for prototypes alone."""
    monkeypatch.setattr(module, "MEASURE_EVERY", 1)
    memory, loss = ClassStatistics(3, 8, groups=3, cov="none"), GaussianContrastiveLoss()
    objective = make_objective(contrast=FeatureContrast(memory, loss, 3))
    for _ in range(2):
        _, terms = objective(make_network(), batch, 0)
    assert "feat" in terms and "pull" in terms and "scatter" not in terms


def test_eval_mode_changes_no_statistics(make_network, batch, make_objective, monkeypatch):
    monkeypatch.setattr(module, "MEASURE_EVERY", 1)
    network, objective = make_network(), make_objective()
    objective(network, batch, 0)
    before = copy.deepcopy(objective.contrast.state_dict())
    objective.eval()
    network.eval()
    _, terms = objective(network, batch, 0)
    assert "pull" not in terms and terms["feat"] > 0
    torch.testing.assert_close(dict(objective.contrast.state_dict()), dict(before), rtol=0, atol=0)


def test_measurements_every_so_many_steps(make_network, batch, make_objective, monkeypatch):
    monkeypatch.setattr(module, "MEASURE_EVERY", 2)
    network, objective = make_network(), make_objective()
    measured = ["pull" in objective(network, batch, step)[1] for step in (0, 1, 2, 3)]
    assert measured == [False, True, False, True]


class Mirror(nn.Module):
    """A network whose maps and logits are its image."""

    def __init__(self):
        super().__init__()
        self.decoder, self.classifier = nn.Module(), nn.Identity()
        self.decoder.forward = lambda maps: maps[-1]

    def forward(self, image):
        return self.classifier(self.decoder([image]))


def test_pull_by_hand(monkeypatch):
    """Slopes of every pixel: 2 + 0.5 * 4 of the rest; of the contrast 0.3 * 5, less what changes the length alone."""
    monkeypatch.setattr(module, "MEASURE_EVERY", 1)
    recorder = Recorder(slope=5.0)
    contrast = FeatureContrast(recorder, recorder, 3, stride=1)
    objective = GeneralisationObjective(
        lambda logits, label: 2 * logits.sum(), lambda one, other: 4 * (one + other).sum(), None, contrast,
        contrast_weight=0.3,
    )  # fmt: skip
    batch = {key: torch.rand(2, 3, 4, 5, requires_grad=True) for key in ("image", "image_ram")}
    label = torch.zeros(2, 1, 4, 5, dtype=torch.int64)
    _, terms = objective.train()(Mirror(), {**batch, "label": label, "domain": torch.tensor([0, 1])}, 0)
    slopes = {}
    for key, image in batch.items():
        x = image.detach().double()
        length = x.norm(dim=1, keepdim=True)
        slopes[key] = 0.3 * 5 * (1 / length - x * x.sum(1, keepdim=True) / length**3)
    norm = sum(slope.square().sum() for slope in slopes.values()) ** 0.5
    assert terms["pull"].item() == pytest.approx(norm.item() / (4 * (2 * 120) ** 0.5), rel=1e-5)
    terms["loss"].backward()  # the measurement leaves the graph in place, and no gradient behind
    torch.testing.assert_close(batch["image_ram"].grad.double(), 4 + slopes["image_ram"], rtol=1e-5, atol=1e-5)


def test_the_statistics_go_on_where_a_checkpoint_left_them(
    make_network, batch, make_objective, make_contrast, monkeypatch
):
    monkeypatch.setattr(module, "MEASURE_EVERY", 3)
    network, first = make_network(), make_objective(contrast=make_contrast(start=1))
    states, expected = [], None
    for step in range(3):
        states.append(copy.deepcopy(first.state_dict()))
        _, expected = first(network, batch, step)
    resumed = make_objective(contrast=make_contrast(start=1))
    resumed.load_state_dict(states[2])
    assert resumed.contrast.memory.count.any()
    _, found = resumed(network, batch, 2)
    assert "pull" in found and set(found) == set(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(resumed.state_dict(), first.state_dict(), rtol=0, atol=0)
