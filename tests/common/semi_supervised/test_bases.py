"""What each base shows to whom, and its loss worked out again by hand."""

import math

import pytest
import torch
from torch import nn

from common.semi_supervised.bases import (
    CopyPaste,
    MeanTeacherBase,
    Supervised,
    choose_base,
    outside_box,
    sigmoid_ramp,
)
from common.semi_supervised.region_loss import DiceCERegionLoss
from common.semi_supervised.teacher import MeanTeacher

TOTAL = 100
BASES = [Supervised, MeanTeacherBase, CopyPaste]


def make_network(dropout=0.0, norm=True):
    torch.manual_seed(0)
    network = nn.Sequential()
    network.body = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)
    )
    network.head = nn.Conv2d(6, 3, 1)
    return network.train()


def make_teacher(network, **options):
    """Of other weights than the student's, so that the two cannot be taken for each other."""
    teacher = MeanTeacher(network, **options)
    with torch.no_grad():
        for parameter in teacher.network.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape))
    return teacher


def inputs_of(network):
    """What is shown to the network from now on."""
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    return seen


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def teacher(network):
    return make_teacher(network)


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(7)
    label = torch.randint(0, 3, (4, 1, 16, 16), generator=draw)
    image, other = (torch.randn(4, 1, 16, 16, generator=draw) for _ in range(2))
    return {"image": image + label, "label": label, "unlabeled": other}


# --- schedules and names ---


def test_ramp():
    assert [sigmoid_ramp(step, 40) for step in (0, 20, 40, 400)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])
    assert sigmoid_ramp(0, 0) == 1


def test_the_base_of_a_name():
    bases = {"supervised": Supervised("head"), "bcp": CopyPaste("head")}
    assert choose_base("bcp", bases) is bases["bcp"]
    with pytest.raises(ValueError, match="base: expected one of supervised, bcp, found bpc"):
        choose_base("bpc", bases)


def test_when_unlabelled_images_come_in():
    starts = [base("head").start(TOTAL) for base in BASES]
    assert starts == [TOTAL, 0, 30]
    assert [base("head").needs_teacher for base in BASES] == [False, True, True]


# --- labels alone ---


def test_supervised(network, teacher, batch):
    done = Supervised("head")(network, teacher, {k: batch[k] for k in ("image", "label")}, 5, TOTAL)
    expected = DiceCERegionLoss()(network(batch["image"]), batch["label"][:, 0])
    assert torch.equal(done.loss, expected) and done.unlabelled is None and done.terms == {}
    assert torch.equal(network.head(done.labelled.features), done.labelled.logits)
    assert torch.equal(done.labelled.labels, batch["label"][:, 0])


def test_another_loss_takes_the_place_of_the_usual(network, teacher, batch):
    loss = DiceCERegionLoss(include_background=False)
    done = Supervised("head", loss)(network, teacher, batch, 5, TOTAL)
    assert torch.equal(done.loss, loss(done.labelled.logits, batch["label"][:, 0]))


# --- mean teacher ---


@pytest.mark.parametrize("step", [0, 10, 40, 250])
def test_consistency_by_hand(step, network, teacher, batch):
    base = MeanTeacherBase("head", weight=0.3, noise=0.0)
    done = base(network, teacher, batch, step, TOTAL)
    found, taught = network(batch["unlabeled"]).softmax(1), teacher.network(batch["unlabeled"]).softmax(1)
    distance = sum((found[:, k] - taught[:, k]).square().sum() for k in range(3)) / found.numel()
    ramp = {0: math.exp(-5), 10: math.exp(-5 * 0.75**2), 40: 1, 250: 1}[step]
    seg = Supervised("head")(network, teacher, batch, step, TOTAL).loss
    assert done.terms["consistency"].item() == pytest.approx(distance.item(), rel=1e-5) and distance > 1e-4
    assert torch.equal(done.terms["seg"], seg) and set(done.terms) == {"seg", "consistency"}
    assert done.loss.item() == pytest.approx(seg.item() + 0.3 * ramp * distance.item(), rel=1e-5)


@pytest.mark.parametrize("passes", [0, 3])
def test_noise_only_on_the_teachers_input(passes, network, teacher, batch):
    """Cut at two standard deviations; another one in each pass. Labelled and unlabelled images pass one by one."""
    student, taught = inputs_of(network), inputs_of(teacher.network)
    batch["unlabeled"] = torch.randn(4, 1, 64, 64)
    MeanTeacherBase("head", noise=0.1, passes=passes)(network, teacher, batch, 5, TOTAL)
    assert len(student) == 2 and len(taught) == 1 + passes
    assert torch.equal(student[0], batch["image"]) and torch.equal(student[1], batch["unlabeled"])
    noise = torch.stack([image - batch["unlabeled"] for image in taught])
    assert noise.abs().max() == pytest.approx(0.2, abs=1e-5)
    # the variance of a normal distribution cut at 2, with the tails put on the cut: 0.9205
    assert noise.std().item() == pytest.approx(0.1 * math.sqrt(0.9205), rel=0.02)
    assert abs(noise.mean()) < 0.002 and noise.flatten(1).unique(dim=0).shape[0] == 1 + passes


def test_the_students_consistency_gradient_alone(network, teacher, batch):
    """The target is a constant: the same gradient as with the teacher's chances written down."""
    base = MeanTeacherBase("head", weight=1.0, ramp=0.0, noise=0.0)
    done = base(network, teacher, batch, 5, TOTAL)
    target = teacher.network(batch["unlabeled"]).softmax(1).detach()
    expected = gradients((network(batch["unlabeled"]).softmax(1) - target).square().mean(), network)
    for found, other in zip(gradients(done.terms["consistency"], network), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-8)
    done.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_unlabelled_voxels_are_the_teachers(network, teacher, batch):
    done = MeanTeacherBase("head", noise=0.0, largest_component=False)(network, teacher, batch, 5, TOTAL)
    logits, features = teacher(batch["unlabeled"], "head")
    found = done.unlabelled
    assert torch.equal(found.logits, logits) and torch.equal(found.features, features)
    assert torch.equal(found.labels, logits.argmax(1))
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1))
    assert not any(t.requires_grad for t in (found.logits, found.features, found.confidence))
    assert done.unlabelled is found
    assert torch.equal(done.student_logits, network(batch["unlabeled"])) and done.visible.all()


def test_consistency_finds_no_pseudo_labels_of_its_own(network, teacher, batch, monkeypatch):
    """The search of components takes time, and only a plug-in reads what it leaves."""
    base, asked = MeanTeacherBase("head"), []
    monkeypatch.setattr(base.pseudo_labels, "forward", lambda logits: asked.append(logits) or (logits.argmax(1), None))
    done = base(network, teacher, batch, 5, TOTAL)
    assert not asked
    assert done.unlabelled is not None and len(asked) == 1


# --- mean teacher with uncertainty ---


@pytest.mark.parametrize("step", [0, 15, 40])
def test_certain_voxels_by_hand(step, network, batch):
    """Entropy of the teacher's chances below (3/4 + r/4) ln 3; without noise and dropout each pass is the same."""
    teacher = make_teacher(network)
    with torch.no_grad():
        teacher.network.head.weight.mul_(2)
    done = MeanTeacherBase("head", noise=0.0, passes=2)(network, teacher, batch, step, TOTAL)
    found = network(batch["unlabeled"]).softmax(1).movedim(1, -1).reshape(-1, 3).tolist()
    taught = teacher.network(batch["unlabeled"]).softmax(1).movedim(1, -1).reshape(-1, 3).tolist()
    limit = (0.75 + 0.25 * sigmoid_ramp(step, 40)) * math.log(3)
    chosen = [i for i, chances in enumerate(taught) if -sum(p * math.log(p) for p in chances) < limit]
    distance = sum((found[i][k] - taught[i][k]) ** 2 / 3 for i in chosen for k in range(3)) / len(chosen)
    assert done.terms["certain"].item() == pytest.approx(len(chosen) / len(taught), abs=1e-3)
    assert done.terms["consistency"].item() == pytest.approx(distance, rel=2e-3)
    assert 0.1 < done.terms["certain"] <= 1 and (step == 40 or done.terms["certain"] < 0.95)


@pytest.mark.parametrize(("turns", "certain"), [([1, 1, 1], 1), ([0, 1, 2], 0)])
def test_entropy_of_the_mean_and_not_mean_of_the_entropy(turns, certain, network, batch):
    """Passes that are each sure of another class know nothing together."""
    teacher, classes = MeanTeacher(network), iter([0, *turns])  # before the passes the one that teaches
    teacher.network.head.register_forward_hook(
        lambda module, args, out: 9.0 * torch.eye(3)[next(classes)].view(1, 3, 1, 1).expand_as(out)
    )
    done = MeanTeacherBase("head", passes=3)(network, teacher, batch, 0, TOTAL)
    assert done.terms["certain"] == certain


def test_nothing_certain_is_no_consistency(network, batch):
    teacher = MeanTeacher(network)
    nn.init.zeros_(teacher.network.head.weight)
    nn.init.zeros_(teacher.network.head.bias)  # entropy ln 3 everywhere
    done = MeanTeacherBase("head", passes=2)(network, teacher, batch, 3, TOTAL)
    assert done.terms["certain"] == 0 and done.terms["consistency"] == 0
    done.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_dropout_in_the_passes_alone(batch):
    network = make_network(dropout=0.5)
    teacher, modes = MeanTeacher(network), []
    teacher.network.body[-1].register_forward_hook(lambda module, args, out: modes.append(module.training))
    MeanTeacherBase("head", passes=3)(network, teacher, batch, 3, TOTAL)
    assert modes == [False, True, True, True]
    assert not any(m.training for m in teacher.network.modules()) and network.body[-1].training


def test_a_teacher_of_batch_statistics_keeps_its_running_averages(network, batch):
    teacher = make_teacher(network, norm="batch")
    before = {name: value.clone() for name, value in teacher.state_dict().items() if "running" in name}
    for base in (MeanTeacherBase("head", passes=2), CopyPaste("head", pretrain=0)):
        base(network, teacher, batch, 3, TOTAL)
    assert before and all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


# --- copy-paste ---


def drawn_box(size=(16, 16), share=2 / 3, seed=11):
    """The box that a base draws after the same seed."""
    torch.manual_seed(seed)
    outside = outside_box(torch.Size(size), share)
    torch.manual_seed(seed)
    return outside.tolist()


@pytest.mark.parametrize(("size", "edges"), [((12, 9), (8, 6)), ((6, 12, 4), (4, 8, 2)), ((1, 2), (1, 1))])
def test_a_box_of_two_thirds_of_each_axis_anywhere(size, edges):
    firsts = [set() for _ in size]
    for _ in range(150):
        inside = (~outside_box(torch.Size(size), 2 / 3)).nonzero()
        assert len(inside) == math.prod(edges)
        for axis, edge in enumerate(edges):
            values = inside[:, axis].unique()
            assert values.tolist() == list(range(int(values[0]), int(values[0]) + edge))
            firsts[axis].add(int(values[0]))
    assert firsts == [set(range(length - edge + 1)) for length, edge in zip(size, edges, strict=True)]


def test_box_of_all_and_of_nearly_nothing():
    assert not outside_box(torch.Size((5, 4)), 1.0).any()
    assert (~outside_box(torch.Size((5, 4)), 0.01)).sum() == 1


def test_first_stage_pastes_labelled_into_labelled(network, teacher, batch):
    base, seen, taught = CopyPaste("head"), inputs_of(network), inputs_of(teacher.network)
    outside = drawn_box()
    done = base(network, teacher, batch, 29, TOTAL)
    image, labels = batch["image"].clone(), batch["label"][:, 0].clone()
    for b in range(4):
        for i in range(16):
            for j in range(16):
                source = b if outside[i][j] else (b + 2) % 4
                image[b, 0, i, j] = batch["image"][source, 0, i, j]
                labels[b, i, j] = batch["label"][source, 0, i, j]
    assert len(seen) == 1 and torch.equal(seen[0], image) and not taught
    assert torch.equal(done.labelled.labels, labels) and done.unlabelled is None
    assert done.loss.item() == pytest.approx(DiceCERegionLoss()(done.labelled.logits, labels).item())


def test_second_stage_by_hand(network, teacher, batch):
    """Half of the images show the labelled one outside the box, the other half inside; four losses."""
    base, seen = CopyPaste("head", pseudo_weight=0.3, largest_component=False), inputs_of(network)
    outside = drawn_box()
    done = base(network, teacher, batch, 30, TOTAL)
    image, true, pseudo = (torch.full((4, 16, 16), -1.0), *(torch.full((4, 16, 16), -1) for _ in range(2)))
    taught = teacher.network(batch["unlabeled"]).argmax(1)
    for b in range(4):
        for i in range(16):
            for j in range(16):
                labelled = outside[i][j] == (b < 2)
                image[b, i, j] = batch["image" if labelled else "unlabeled"][b, 0, i, j]
                if labelled:
                    true[b, i, j] = batch["label"][b, 0, i, j]
                else:
                    pseudo[b, i, j] = taught[b, i, j]
    assert len(seen) == 1 and torch.equal(seen[0][:, 0], image)
    assert torch.equal(done.labelled.labels, true)
    assert torch.equal(done.visible, pseudo >= 0) and done.student_logits is done.labelled.logits
    loss, logits = DiceCERegionLoss(), done.labelled.logits
    seg, pseudo = (loss(logits[:2], y[:2]).item() + loss(logits[2:], y[2:]).item() for y in (true, pseudo))
    assert done.terms["seg"].item() == pytest.approx(seg) and done.terms["pseudo"].item() == pytest.approx(pseudo)
    assert done.loss.item() == pytest.approx(seg + 0.3 * pseudo)
    assert torch.equal(network.head(done.labelled.features), logits)


def test_the_teacher_sees_unlabelled_images_as_they_are(network, teacher, batch):
    taught = inputs_of(teacher.network)
    done = CopyPaste("head", pretrain=0.0)(network, teacher, batch, 0, TOTAL)
    assert len(taught) == 1 and torch.equal(taught[0], batch["unlabeled"])
    assert torch.equal(done.unlabelled.logits, teacher(batch["unlabeled"], "head")[0])
    assert not done.unlabelled.logits.requires_grad and not done.unlabelled.features.requires_grad
    done.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_pair_and_a_box_of_everything(network, teacher, batch):
    """One of the two mixtures has then no labelled voxel, the other no pseudo-labelled one."""
    pair = {key: value[:2] for key, value in batch.items()}
    done = CopyPaste("head", pretrain=0.0, box=1.0)(network, teacher, pair, 0, TOTAL)
    loss = DiceCERegionLoss()
    assert done.terms["seg"].item() == pytest.approx(loss(done.labelled.logits[1:], pair["label"][1:, 0]).item())
    assert (done.labelled.labels[0] == -1).all() and done.loss.isfinite()


@pytest.mark.parametrize("step", [0, 50])
def test_an_odd_batch_is_refused(step, network, teacher, batch):
    odd = {key: value[:3] for key, value in batch.items()}
    with pytest.raises(ValueError, match="needs an even batch_size, got 3"):
        CopyPaste("head")(network, teacher, odd, step, TOTAL)


@pytest.mark.parametrize("options", [{"box": 0.0}, {"box": 1.5}, {"pretrain": -0.1}, {"pretrain": 30}])
def test_copy_paste_out_of_range(options):
    with pytest.raises(ValueError, match=r"expected pretrain in \[0, 1\] and box in \(0, 1\], got"):
        CopyPaste("head", **options)


# --- all of them ---


@pytest.mark.parametrize("base", [Supervised("head"), MeanTeacherBase("head", passes=2), CopyPaste("head", pretrain=0)])
def test_volumes_and_autocast(base):
    network = nn.Sequential()
    network.body, network.head = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(6, 3, 1)
    batch = {"image": torch.randn(2, 1, 6, 5, 4), "label": torch.randint(0, 3, (2, 1, 6, 5, 4)),
             "unlabeled": torch.randn(2, 1, 6, 5, 4)}  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        done = base(network, MeanTeacher(network), batch, 20, TOTAL)
    assert done.labelled.logits.dtype == torch.bfloat16
    assert {value.dtype for value in (done.loss, *done.terms.values())} == {torch.float32}
    done.loss.backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("base", [MeanTeacherBase("head", passes=2), CopyPaste("head", pretrain=0)])
def test_the_same_seed_the_same_step(base, teacher, batch):
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        network = make_network(dropout=0.3)
        torch.manual_seed(seed)
        losses.append(base(network, teacher, batch, 20, TOTAL).loss.item())
    assert losses[0] == losses[1] != losses[2]
