"""Consistency with the teacher, worked out again by hand; which voxels the teacher is certain of."""

import math

import pytest
import torch
from torch import nn

from common.semi_supervised import MeanTeacher, MeanTeacherConsistency, Supervised, mean_teacher, sigmoid_ramp

TOTAL = 100


@pytest.fixture
def no_noise(monkeypatch):
    monkeypatch.setattr(mean_teacher, "NOISE", 0.0)


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def test_ramp():
    assert [sigmoid_ramp(step, 40) for step in (0, 20, 40, 400)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])
    assert sigmoid_ramp(0, 0) == 1


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("step", [0, 10, 40, 250])
def test_consistency_by_hand(step, network, teacher, batch):
    base = MeanTeacherConsistency(weight=0.3)
    done = base(network, teacher, batch, step, TOTAL)
    found, taught = network(batch["unlabeled"]).softmax(1), teacher.network(batch["unlabeled"]).softmax(1)
    distance = sum((found[:, k] - taught[:, k]).square().sum() for k in range(3)) / found.numel()
    ramp = {0: math.exp(-5), 10: math.exp(-5 * 0.75**2), 40: 1, 250: 1}[step]
    seg = Supervised()(network, teacher, batch, step, TOTAL).loss
    assert done.terms["consistency"].item() == pytest.approx(distance.item(), rel=1e-5) and distance > 1e-4
    assert torch.equal(done.terms["seg"], seg) and set(done.terms) == {"seg", "consistency"}
    assert done.loss.item() == pytest.approx(seg.item() + 0.3 * ramp * distance.item(), rel=1e-5)


@pytest.mark.parametrize("passes", [0, 3])
def test_noise_only_on_the_teachers_input(passes, network, teacher, batch, inputs_of):
    """Cut at two standard deviations; another one in each pass. Labelled and unlabelled images pass one by one."""
    student, taught = inputs_of(network), inputs_of(teacher.network)
    batch["unlabeled"] = torch.randn(4, 1, 64, 64)
    MeanTeacherConsistency(passes=passes)(network, teacher, batch, 5, TOTAL)
    assert len(student) == 2 and len(taught) == 1 + passes
    assert torch.equal(student[0], batch["image"]) and torch.equal(student[1], batch["unlabeled"])
    noise = torch.stack([image - batch["unlabeled"] for image in taught])
    assert noise.abs().max() == pytest.approx(0.2, abs=1e-5)
    # the variance of a normal distribution cut at 2, with the tails put on the cut: 0.9205
    assert noise.std().item() == pytest.approx(0.1 * math.sqrt(0.9205), rel=0.02)
    assert abs(noise.mean()) < 0.002 and noise.flatten(1).unique(dim=0).shape[0] == 1 + passes


@pytest.mark.usefixtures("no_noise")
def test_the_students_consistency_gradient_alone(network, teacher, batch):
    """The target is a constant: the same gradient as with the teacher's chances written down."""
    base = MeanTeacherConsistency(weight=1.0, ramp=0.0)
    done = base(network, teacher, batch, 5, TOTAL)
    target = teacher.network(batch["unlabeled"]).softmax(1).detach()
    expected = gradients((network(batch["unlabeled"]).softmax(1) - target).square().mean(), network)
    for found, other in zip(gradients(done.terms["consistency"], network), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-8)
    done.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.usefixtures("no_noise")
def test_unlabelled_voxels_are_the_teachers(network, teacher, batch):
    done = MeanTeacherConsistency(largest_component=False)(network, teacher, batch, 5, TOTAL)
    logits, features = teacher(batch["unlabeled"])
    found = done.unlabelled
    assert torch.equal(found.logits, logits) and torch.equal(found.features, features)
    assert torch.equal(found.labels, logits.argmax(1))
    torch.testing.assert_close(found.confidence, logits.softmax(1).amax(1))
    assert not any(t.requires_grad for t in (found.logits, found.features, found.confidence))
    assert done.unlabelled is found


def test_consistency_finds_no_pseudo_labels_of_its_own(network, teacher, batch, monkeypatch):
    """The search of components takes time, and only a plug-in reads what it leaves."""
    base, asked = MeanTeacherConsistency(), []
    monkeypatch.setattr(base.pseudo_labels, "forward", lambda logits: asked.append(logits) or (logits.argmax(1), None))
    done = base(network, teacher, batch, 5, TOTAL)
    assert not asked
    assert done.unlabelled is not None and len(asked) == 1


# --- uncertainty ---


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("step", [0, 15, 40])
def test_certain_voxels_by_hand(step, network, batch, make_teacher):
    """Entropy of the teacher's chances below (3/4 + r/4) ln 3; without noise and dropout each pass is the same."""
    teacher = make_teacher(network)
    with torch.no_grad():
        teacher.network.classifier.weight.mul_(2)
    done = MeanTeacherConsistency(passes=2)(network, teacher, batch, step, TOTAL)
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
    teacher.network.classifier.register_forward_hook(
        lambda module, args, out: 9.0 * torch.eye(3)[next(classes)].view(1, 3, 1, 1).expand_as(out)
    )
    done = MeanTeacherConsistency(passes=3)(network, teacher, batch, 0, TOTAL)
    assert done.terms["certain"] == certain


def test_nothing_certain_is_no_consistency(network, batch):
    teacher = MeanTeacher(network)
    nn.init.zeros_(teacher.network.classifier.weight)
    nn.init.zeros_(teacher.network.classifier.bias)  # entropy ln 3 everywhere
    done = MeanTeacherConsistency(passes=2)(network, teacher, batch, 3, TOTAL)
    assert done.terms["certain"] == 0 and done.terms["consistency"] == 0
    done.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_dropout_in_the_passes_alone(batch, make_network):
    network = make_network(dropout=0.5)
    teacher, modes = MeanTeacher(network), []
    teacher.network.body[-1].register_forward_hook(lambda module, args, out: modes.append(module.training))
    MeanTeacherConsistency(passes=3)(network, teacher, batch, 3, TOTAL)
    assert modes == [False, True, True, True]
    assert not any(m.training for m in teacher.network.modules()) and network.body[-1].training
