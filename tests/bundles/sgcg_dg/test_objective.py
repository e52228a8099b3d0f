import copy
import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import nn
from torch.nn import functional as F

from common.losses import (
    BankContrastiveLoss,
    ClassMemoryBank,
    ClassStatistics,
    GaussianContrastiveLoss,
    SymmetricKLLoss,
)
from sgcg_dg.objective import FeatureContrast, GeneralisationObjective, RegionLoss, all_levels, fit_labels, thin
from sgcg_dg.restoration import RestorationDecoder

REGIONS = {"cup": [2], "disc": [1, 2]}
TERMS = {"loss", "seg", "seg_ram", "kd", "rec", "feat"}


def region_loss(regions=REGIONS, head="sigmoid"):
    """As train.json builds it."""
    loss = DiceCELoss(include_background=head == "sigmoid", sigmoid=head == "sigmoid", softmax=head == "softmax",
                      squared_pred=True, batch=True)  # fmt: skip
    return RegionLoss(loss, regions, head)


def make_contrast(dim=8, **options):
    return FeatureContrast(ClassStatistics(3, dim, groups=3), GaussianContrastiveLoss(), 3, **options)


def whole(**options):
    torch.manual_seed(3)
    parts = {"consistency": SymmetricKLLoss(), "restoration": RestorationDecoder(width=4, domains=3),
             "contrast": make_contrast()}  # fmt: skip
    return GeneralisationObjective(region_loss(), **{**parts, **options}).train()


@pytest.fixture
def batch():
    """Seven images of three domains, of two, three and two; a disc with a cup in each."""
    torch.manual_seed(5)
    label = torch.zeros(7, 1, 32, 48, dtype=torch.int64)
    for i in range(7):
        label[i, 0, 4 + i : 20 + i, 6:26] = 1
        label[i, 0, 8 + i : 15 + i, 10:20] = 2
    image = (0.2 + 0.3 * label + 0.1 * torch.rand(7, 3, 32, 48)).clamp(0, 1)
    return {"image": image, "image_ram": (0.8 * image + 0.1 * torch.rand(7, 3, 1, 1)).clamp(0, 1), "label": label,
            "domain": torch.tensor([0, 0, 1, 1, 1, 2, 2])}  # fmt: skip


# --- segmentation ---


def dice_loss(chances, truths):
    """One ratio over all pairs, squared denominators, smooth 1e-5."""
    overlap = sum(p * s for p, s in zip(chances, truths, strict=True))
    sizes = sum(p * p + s * s for p, s in zip(chances, truths, strict=True))
    return 1 - (2 * overlap + 1e-5) / (sizes + 1e-5)


def test_segmentation_by_hand():
    """Probability one half everywhere; cup in a quarter of the pixels, disc in half of them."""
    label = torch.tensor([0, 0, 1, 2]).view(1, 1, 2, 2)
    found = region_loss()(torch.zeros(1, 2, 2, 2), label)
    # 3 of 8 mask pixels: overlap 1.5, squares 8 / 4 + 3
    assert found.item() == pytest.approx(math.log(2) + 1 - 2 * 1.5 / 5, abs=1e-5)


def test_sigmoid_segmentation_same_as_a_naive_loop():
    logits, label = 2 * torch.randn(3, 2, 5, 6), torch.randint(0, 3, (3, 1, 5, 6))
    chances, truths = [], []
    for b in range(3):
        for k, ids in enumerate(([2], [1, 2])):
            chances += [1 / (1 + math.exp(-z)) for z in logits[b, k].double().flatten().tolist()]
            truths += [float(y in ids) for y in label[b, 0].flatten().tolist()]
    cross = -sum(math.log(p if s else 1 - p) for p, s in zip(chances, truths, strict=True)) / len(chances)
    assert region_loss()(logits, label).item() == pytest.approx(cross + dice_loss(chances, truths), rel=1e-5)


@pytest.mark.parametrize("regions", [{"gland": [1, 2]}, {"inner": [2], "outer": [1]}])
def test_softmax_segmentation_same_as_a_naive_loop(regions):
    """Cross-entropy, and the Dice of the foreground; of several regions the mean of their ratios."""
    count = len(regions)
    logits, label = 2 * torch.randn(3, 1 + count, 5, 6), torch.randint(0, 3, (3, 1, 5, 6))
    cross, chances, truths = 0.0, [[] for _ in range(count)], [[] for _ in range(count)]
    for b in range(3):
        for i, y in enumerate(label[b, 0].flatten().tolist()):
            weights = [math.exp(z) for z in logits[b].double().flatten(1)[:, i].tolist()]
            truth = next((k for k, ids in enumerate(regions.values(), 1) if y in ids), 0)
            cross -= math.log(weights[truth] / sum(weights)) / label.numel()
            for k in range(count):
                chances[k].append(weights[k + 1] / sum(weights))
                truths[k].append(float(truth == k + 1))
    dice = sum(map(dice_loss, chances, truths)) / count
    assert region_loss(regions, "softmax")(logits, label).item() == pytest.approx(cross + dice, rel=1e-5)


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_segmentation_is_finite_at_the_extremes(head):
    """Without a structure, with nothing else, and in bfloat16: computed in float32."""
    loss, channels = region_loss({"disc": [1]}, head), 1 + (head == "softmax")
    for value in (-200.0, 200.0):
        for label in (torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)):
            logits = torch.full((2, channels, 4, 4), value, dtype=torch.bfloat16, requires_grad=True)
            found = loss(logits, label.long())
            found.backward()
            assert found.isfinite() and found.dtype == torch.float32 and logits.grad.isfinite().all()


def test_regions_in_each_other_have_no_softmax():
    with pytest.raises(ValueError, match="head softmax: expected regions without a label in common, found cup .*disc"):
        region_loss(head="softmax")
    with pytest.raises(ValueError, match="head must be sigmoid or softmax, got 'relu'"):
        region_loss(head="relu")


# --- the sum of the terms ---


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.1, 0.3)])
def test_the_loss_is_the_weighted_sum_of_its_terms(make_network, batch, weights):
    names = ("consistency_weight", "restoration_weight", "contrast_weight")
    network = make_network()
    logits, terms = whole(**dict(zip(names, weights, strict=True)))(network, batch)
    assert set(terms) == TERMS and all(value.ndim == 0 and value > 0 for value in terms.values())
    parts = zip(weights, ("kd", "rec", "feat"), strict=True)
    torch.testing.assert_close(
        terms["loss"], terms["seg"] + terms["seg_ram"] + sum(weight * terms[name] for weight, name in parts)
    )
    plain, mixed = network(batch["image"]), network(batch["image_ram"])  # in train mode, as the objective ran it
    torch.testing.assert_close(logits, plain)
    torch.testing.assert_close(terms["seg"], region_loss()(plain, batch["label"]))
    torch.testing.assert_close(terms["seg_ram"], region_loss()(mixed, batch["label"]))
    torch.testing.assert_close(terms["kd"], SymmetricKLLoss()(plain, mixed))
    assert (terms["seg"] - terms["seg_ram"]).abs() > 1e-4


@pytest.mark.parametrize(("part", "term"), [("consistency", "kd"), ("restoration", "rec"), ("contrast", "feat")])
def test_a_part_that_is_null_leaves_its_term_out(make_network, batch, part, term):
    network = make_network()
    every, others = whole()(network, batch)[1], whole(**{part: None})(network, batch)[1]
    assert set(others) == TERMS - {term}
    weight = {"kd": 0.5, "rec": 0.1, "feat": 1.0}[term]
    torch.testing.assert_close(others["loss"], every["loss"] - weight * every[term])


def test_without_a_mixed_view_only_the_images_count(make_network, batch):
    batch.pop("image_ram")
    network = make_network()
    _, terms = whole()(network, batch)
    assert set(terms) == {"loss", "seg", "feat"}
    _, terms = whole(contrast=None)(network, batch)
    assert set(terms) == {"loss", "seg"} and terms["loss"] == terms["seg"]


def test_each_view_has_a_forward_pass_of_its_own(make_network, batch):
    """Batch norm sees the originals first, then the mixed views, and counts two batches."""
    network = make_network().train()
    whole()(network, batch)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.num_batches_tracked == 2 for norm in norms)
    conv = network.encoder.blocks[0][1]
    with torch.no_grad():
        plain, mixed = (conv(batch[key]).mean((0, 2, 3)) for key in ("image", "image_ram"))
    torch.testing.assert_close(norms[0].running_mean, 0.9 * 0.1 * plain + 0.1 * mixed)


class Painter(nn.Module):
    """Restores every image of a domain as one value, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, deep, domain, size):
        self.seen.append((domain, deep.detach(), tuple(size)))
        return torch.full((len(deep), 3, *size), (-0.5, 0.25, 0.75)[domain])


def test_restoration_sums_the_mean_errors_of_the_domains(make_network, batch):
    """Of the originals, from the deepest map of the mixed views; domains of different sizes weigh the same."""
    network, painter = make_network(), Painter()
    _, terms = whole(restoration=painter)(network, batch)
    expected, deep = 0.0, network.features(batch["image_ram"])[0]
    for domain, (rows, value) in enumerate(((slice(0, 2), -0.5), (slice(2, 5), 0.25), (slice(5, 7), 0.75))):
        target = 2 * batch["image"][rows].double() - 1
        expected += ((target - value) ** 2).sum() / target.numel()
        index, given, size = painter.seen[domain]
        assert index == domain and size == (32, 48)
        torch.testing.assert_close(given, deep[rows])
    torch.testing.assert_close(terms["rec"].double(), expected, rtol=1e-5, atol=1e-6)


def test_each_domain_is_restored_through_its_own_norms(make_network, batch):
    objective = whole()
    two = {key: value[:5] for key, value in batch.items()}  # nothing of the third domain
    objective(make_network(), two)
    counts = {name: int(value) for name, value in objective.restoration.named_buffers() if "batches" in name}
    assert counts and all(count == (0 if "norms.2." in name else 1) for name, count in counts.items())


# --- the contrast of features ---


class Recorder(nn.Module):
    """In place of statistics and loss: keeps what it was given; the loss is ``slope`` times the sum of the features."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.slope, self.updates, self.losses = slope, [], []

    def update(self, features, labels, domains):
        self.updates.append((features.detach(), labels, domains))

    def sync(self):
        pass

    def snapshot(self):
        return len(self.updates)

    def forward(self, features, labels, statistics):
        self.losses.append((features.detach(), labels, statistics))
        return self.slope * features.sum()


def encoded(label, size, view=0):
    """Maps whose features say which pixel they are: (label, image, view, place on each axis)."""
    steps = [torch.arange(0, 32 * n, 32) * full // (32 * n) for n, full in zip(size, label.shape[2:], strict=True)]
    places = torch.stack(torch.meshgrid(*steps, indexing="ij")).float()
    there = label[(slice(None), 0, *torch.meshgrid(*steps, indexing="ij"))].float()
    image = torch.arange(len(label)).view(-1, *[1] * (1 + len(size))).expand_as(there[:, None])
    view = torch.full_like(there[:, None], view)
    return torch.cat([there[:, None], image, view, places.expand(len(label), *places.shape)], 1)


@pytest.mark.parametrize(
    ("size", "stride", "kept"),
    [
        ((33, 40), 1, [range(33), range(40)]),
        ((33, 40), 2, [range(0, 33, 2), range(0, 40, 2)]),
        ((96, 36), 3, [range(0, 96, 3), range(0, 36, 3)]),
        ((20, 35), 2, [range(20), range(0, 35, 2)]),  # axes shorter than 32 are taken whole
        ((12, 33, 10), 2, [range(12), range(0, 33, 2), range(10)]),
    ],
)
def test_features_labels_and_domains_are_flattened_alike(size, stride, kept):
    label, domain = torch.randint(0, 3, (4, 1, *size)), torch.tensor([2, 0, 1, 1])
    recorder = Recorder()
    contrast = FeatureContrast(recorder, recorder, 3, normalise=False, stride=stride)
    contrast({"image": encoded(label, size, 0), "ram": encoded(label, size, 1)}, label, domain)
    (features, labels, domains), (again, same, statistics) = recorder.updates[0], recorder.losses[0]
    assert len(recorder.updates) == len(recorder.losses) == 1 and statistics == 1  # updated once, then the loss
    assert torch.equal(again, features) and torch.equal(same, labels)
    assert torch.equal(features[:, 0].long(), labels) and torch.equal(domain[features[:, 1].long()], domains)
    places = {tuple(row) for row in features[:, 1:].int().tolist()}
    expected = 2 * 4 * math.prod(map(len, kept))
    assert len(places) == len(features) == expected
    for axis, own in enumerate(kept):
        assert {place[2 + axis] for place in places} == set(own)


def test_statistics_hold_the_pixels_of_both_views_once():
    """Of unit length; those of a domain in its own group."""
    label, domain = torch.randint(0, 3, (4, 1, 34, 12)), torch.tensor([0, 0, 1, 2])
    maps = {view: torch.randn(4, 8, 34, 12) for view in ("image", "ram")}
    contrast = make_contrast().train()
    loss = contrast(maps, label, domain)
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
    torch.testing.assert_close(loss, again(features, label[:, 0, ::2].flatten().repeat(2), memory.snapshot()))


def test_one_view_and_no_unit_length():
    label, domain = torch.randint(0, 3, (2, 1, 8, 8)), torch.tensor([0, 1])
    maps = {view: 3 + torch.randn(2, 8, 8, 8) for view in ("image", "ram")}
    contrast = make_contrast(views=("ram",), normalise=False).train()
    contrast(maps, label, domain)
    assert contrast.memory.count.sum() == 2 * 8 * 8
    inside = maps["ram"][1, :, label[1, 0] == 2]
    torch.testing.assert_close(contrast.memory.mean[1, 2], inside.mean(1))


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
    volume = label[..., None].expand(-1, -1, -1, -1, 6)
    assert fit_labels(volume, torch.Size((2, 3, 2)), 3)[0, ..., 1].tolist() == expected
    assert torch.equal(fit_labels(label, torch.Size((8, 12)), 3), label[:, 0])


def test_coarse_maps_that_are_thinned_keep_the_labels_of_their_cells():
    """64 cells of 16 pixels, every second one of which is used."""
    label = (torch.arange(1024) // 16 % 3).view(1, 1, 1024, 1).expand(-1, -1, -1, 32).contiguous()
    maps, recorder = torch.arange(64.0).view(1, 1, 64, 1).expand(-1, -1, -1, 2), Recorder()
    FeatureContrast(recorder, recorder, 3, level="deep", views=("image",), normalise=False)(
        {"image": maps}, label, torch.tensor([0]))  # fmt: skip
    features, labels, _ = recorder.updates[0]
    assert features[:, 0].tolist() == [cell for cell in range(0, 64, 2) for _ in range(2)]
    assert labels.tolist() == [cell % 3 for cell in range(0, 64, 2) for _ in range(2)]


@pytest.mark.parametrize(
    ("level", "dim", "size"), [("penultimate", 8, (32, 48)), ("deep", 64, (2, 3)), ("logits", 2, (32, 48))]
)
def test_levels(make_network, batch, level, dim, size):
    network = make_network()
    contrast = make_contrast(dim, level=level, stride=1)
    _, terms = whole(contrast=contrast)(network, batch)
    deep, penultimate = network.features(batch["image"])
    maps = {"deep": deep, "penultimate": penultimate, "logits": network.head(penultimate)}[level]
    assert maps.shape == (7, dim, *size) and terms["feat"] > 0
    labels = fit_labels(batch["label"], torch.Size(size), 3)
    assert contrast.memory.count.sum() == 2 * (labels >= 0).sum()
    unit = F.normalize(maps, dim=1)[:2].movedim(1, -1)[labels[:2] == 0]
    mixed = network.features(batch["image_ram"])
    mixed = {"deep": mixed[0], "penultimate": mixed[1], "logits": network.head(mixed[1])}[level]
    mixed = F.normalize(mixed, dim=1)[:2].movedim(1, -1)[labels[:2] == 0]
    torch.testing.assert_close(contrast.memory.mean[0, 0], torch.cat([unit, mixed]).mean(0))


def test_a_memory_bank_instead_of_statistics(make_network, batch):
    bank = ClassMemoryBank(3, 8, 16)
    _, terms = whole(contrast=FeatureContrast(bank, BankContrastiveLoss(), 3), log_every=1)(make_network(), batch)
    assert set(terms) == TERMS | {"pull"} and terms["feat"] > 0 and terms["pull"] > 0
    assert bank.filled.tolist() == [16, 16, 16]
    torch.testing.assert_close(bank.get(1).norm(dim=1), torch.ones(16))


def test_nothing_before_the_start(make_network, batch):
    network = make_network()
    objective = whole(contrast=make_contrast(start=2), log_every=1)
    for step in (1, 2, 3, 4):
        _, terms = objective(network, batch)
        count = objective.contrast.memory.count.sum()
        assert objective.contrast.step == step and ("feat" in terms) == (step > 2)
        assert count == max(0, step - 2) * 2 * 7 * 16 * 24  # every second pixel of each axis
    assert set(terms) == TERMS | {"pull", "scatter"}
    torch.testing.assert_close(terms["scatter"], objective.contrast.memory.between_group_scatter().float())


def test_eval_mode_changes_no_statistics(make_network, batch):
    network, objective = make_network(), whole(log_every=1)
    objective(network, batch)
    before = copy.deepcopy(objective.contrast.state_dict())
    objective.eval()
    network.eval()
    _, terms = objective(network, batch)
    assert "pull" not in terms and terms["feat"] > 0
    torch.testing.assert_close(dict(objective.contrast.state_dict()), dict(before), rtol=0, atol=0)


def test_measurements_every_so_many_steps(make_network, batch):
    network, objective = make_network(), whole(log_every=2)
    measured = ["pull" in objective(network, batch)[1] for _ in range(4)]
    assert measured == [False, True, False, True]


class Mirror(nn.Module):
    """A network whose maps and logits are its image."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Module(), nn.Identity()
        self.encoder.forward = lambda image: [image]

    def forward(self, image):
        return self.head(self.encoder(image)[-1])


@pytest.mark.parametrize(("views", "share"), [(("image", "ram"), 1.0), (("ram",), 0.5)])
def test_pull_by_hand(views, share):
    """Slopes of every pixel: contrast 0.3 * 5 in the views it sees; the rest 2 + 0.5 * 4 in both."""
    recorder = Recorder(slope=5.0)
    contrast = FeatureContrast(recorder, recorder, 3, views=views, normalise=False, stride=1)
    objective = GeneralisationObjective(
        lambda logits, label: 2 * logits.sum(), lambda one, other: 4 * (one + other).sum(), None, contrast,
        contrast_weight=0.3, log_every=1,
    )  # fmt: skip
    views = {key: torch.rand(2, 3, 4, 5, requires_grad=True) for key in ("image", "image_ram")}
    label = torch.zeros(2, 1, 4, 5, dtype=torch.int64)
    _, terms = objective.train()(Mirror(), {**views, "label": label, "domain": torch.tensor([0, 1])})
    assert terms["pull"].item() == pytest.approx(share**0.5 * 0.3 * 5 / (2 + 0.5 * 4), rel=1e-5)
    terms["loss"].backward()  # the measurement leaves the graph in place, and no gradient behind
    expected = 2 + 0.5 * 4 + 0.3 * 5
    torch.testing.assert_close(views["image_ram"].grad, torch.full((2, 3, 4, 5), expected))


def test_the_statistics_go_on_where_a_checkpoint_left_them(make_network, batch):
    network, first = make_network(), whole(contrast=make_contrast(start=1), log_every=3)
    states, expected = [], None
    for _ in range(3):
        states.append(copy.deepcopy(first.state_dict()))
        _, expected = first(network, batch)
    resumed = whole(contrast=make_contrast(start=1), log_every=3)
    resumed.load_state_dict(states[2])
    assert resumed.contrast.step == 2 and resumed.contrast.memory.count.any()
    _, found = resumed(network, batch)
    assert "pull" in found and set(found) == set(expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(resumed.state_dict(), first.state_dict(), rtol=0, atol=0)


# --- the whole ---


def test_every_part_gets_a_gradient(make_network, batch):
    """And the statistics none."""
    objective, network = whole(), make_network().train()
    objective(network, batch)[1]["loss"].backward()
    parameters = dict(network.named_parameters()) | dict(objective.named_parameters())
    still = {name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()}
    assert not still and all(p.grad.any() for name, p in parameters.items() if name.endswith("weight"))


def test_mixed_precision_keeps_the_losses_in_float32(make_network, batch):
    objective, network = whole(), make_network().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, terms = objective(network, batch)
    assert logits.dtype == torch.bfloat16 and all(value.dtype == torch.float32 for value in terms.values())
    terms["loss"].backward()
    exact = whole()(make_network(), batch)[1]
    assert all(abs(terms[name] - exact[name]) < 0.05 * (1 + abs(exact[name])) for name in TERMS)


def test_levels_of_a_wrapped_network(make_network, batch):
    """A distributed wrapper hides the parts; no hook stays behind, not even after an error."""
    network = make_network().eval()
    found = all_levels(nn.DataParallel(network), batch["image"])
    deep, penultimate = network.features(batch["image"])
    expected = {"deep": deep, "penultimate": penultimate, "logits": network(batch["image"])}
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="expected an image"):
        all_levels(network, batch["image"][:, :2])
    assert not network.encoder._forward_hooks and not network.head._forward_pre_hooks


def test_bad_options_are_refused():
    for options in ({"level": "input"}, {"views": ()}, {"views": ("image", "style")}):
        with pytest.raises(ValueError, match=r"level must be one of \(.*\), views of image and ram; got '"):
            make_contrast(**options)
