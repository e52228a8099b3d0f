"""The sum of the base and the augmentation, the step that both follow, and what a checkpoint brings back."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.semi_supervised import CopyPaste, MeanTeacher, MeanTeacherConsistency, Supervised, TeacherUpdate
from transmedseg_ssl.augmentation import TransferableAugmentation
from transmedseg_ssl.network import UNet
from transmedseg_ssl.objective import TransMedSegObjective

CLASSES, WIDTH, TOTAL = 3, 6, 10
BASES = {
    "mean_teacher": MeanTeacherConsistency,
    "uamt": lambda: MeanTeacherConsistency(passes=2),
    "bcp": lambda: CopyPaste(pretrain=0.1),
}


def make_network(kind="tiny"):
    torch.manual_seed(1)
    if kind == "unet":
        return UNet(2, 1, CLASSES, width=4, dropout=0.1)
    network = nn.Sequential()
    network.body = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.Tanh(), nn.Dropout(0.2))
    network.classifier = nn.Conv2d(WIDTH, CLASSES, 1)
    return network


def make_augmentation(width=WIDTH, **options):
    options = {"strength": 2.0, "confidence": 0.3, "min_count": 1, "voxels_per_class": 50, **options}
    return TransferableAugmentation(CLASSES, width, **options)


class Run:
    """Training as the trainer does it; each call of ``steps`` is an epoch, which begins with a seed of its own."""

    def __init__(self, base="bcp", kind="tiny", size=16, augmentation=True, wrap=lambda network: network, **options):
        self.network, self.size = make_network(kind), size
        self.student = wrap(self.network)
        if augmentation is True:
            augmentation = make_augmentation(self.network.classifier.in_channels)
        self.objective = TransMedSegObjective(
            BASES[base]() if isinstance(base, str) else base, MeanTeacher(self.student, decay=0.9),
            augmentation or None, **{"augmentation_weight": 0.3, "total_steps": TOTAL, **options},
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.01)
        self.follow = TeacherUpdate(self.objective)

    def batch(self, number):
        draw = torch.Generator().manual_seed(100 + number)
        label = torch.randint(0, CLASSES, (2, 1, self.size, self.size), generator=draw)
        image, other = (torch.randn(label.shape, generator=draw) for _ in range(2))
        return {"image": image + label, "label": label, "unlabeled": other}

    def steps(self, numbers):
        terms = []
        torch.manual_seed(numbers[0])
        for number in numbers:
            self.network.train()
            self.optimizer.zero_grad()
            _, found = self.objective(self.student, self.batch(number), number)
            found["loss"].backward()
            self.optimizer.step()
            self.follow(SimpleNamespace(state=SimpleNamespace(iteration=number + 1), network=self.student))
            terms.append({name: value.detach() for name, value in found.items()})
        return terms

    def state(self):
        """Of student, teacher and memories, under flat names."""
        parts = nn.ModuleDict({"network": self.network, "objective": self.objective})
        return {name: value.clone() for name, value in parts.state_dict().items()}

    def save(self):
        file = io.BytesIO()
        torch.save([part.state_dict() for part in (self.network, self.objective, self.optimizer)], file)
        return file.getvalue()

    def load(self, saved):
        states = torch.load(io.BytesIO(saved), weights_only=True)
        for part, state in zip((self.network, self.objective, self.optimizer), states, strict=True):
            part.load_state_dict(state)


def assert_same(found, expected):
    assert list(found) == list(expected)
    changed = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not changed


def differ(run, other):
    return any(not torch.equal(a, b) for a, b in zip(run.network.parameters(), other.network.parameters(), strict=True))


# --- the plug-in is one ---


@pytest.mark.parametrize(
    ("base", "kind", "size"), [*((base, "tiny", 16) for base in BASES), ("bcp", "unet", 32), ("uamt", "unet", 32)]
)
def test_the_base_is_repeated_bit_for_bit(base, kind, size):
    """Student, teacher and step after three steps with noise, dropout and boxes: the plug-in draws none of these."""
    bare = Run(base, kind, size, augmentation=None)
    bare.steps(range(3))
    ours = Run(base, kind, size, augmentation_weight=1e-30)  # below the last bit of every gradient
    terms = ours.steps(range(3))
    assert terms[-1]["tsa"] > 0 and terms[-1]["margin_cov"] > 0
    found = {name: value for name, value in ours.state().items() if "augmentation" not in name}
    assert_same(found, bare.state())
    other = Run(base, kind, size, augmentation_weight=1.0)
    other.steps(range(3))
    assert differ(other, bare)


@pytest.mark.parametrize("base", BASES)
def test_strength_zero_is_the_same_weight_of_plain_cross_entropy(base):
    """The control of the augmentation: the base and beta times cross-entropy on labelled voxels."""
    run = Run(base, augmentation=make_augmentation(strength=0.0))
    run.steps(range(2))
    torch.manual_seed(9)
    state = copy.deepcopy(run.network.state_dict())  # batch norm moves with each pass
    done = run.objective.base(run.network, run.objective.teacher, run.batch(2), 2, TOTAL)
    run.network.load_state_dict(state)
    torch.manual_seed(9)
    _, terms = run.objective(run.network, run.batch(2), 2)
    cross = F.cross_entropy(done.labelled.logits, done.labelled.labels, ignore_index=-1)
    assert terms["tsa"].item() == pytest.approx(cross.item(), rel=1e-6)
    assert terms["loss"].item() == pytest.approx(done.loss.item() + 0.3 * cross.item(), rel=1e-6)
    whole = {name for name in terms if "/" not in name}  # without the pairs of classes
    assert {"tsa", "loss", "margin_mean", "margin_cov", "margin_clamped", *done.terms} == whole


def test_the_augmentation_follows_the_steps_of_the_schedule():
    run, numbers = Run(), []
    forward = run.objective.augmentation.forward
    run.objective.augmentation.forward = lambda *args: numbers.append(args[2:]) or forward(*args)
    run.steps(range(4))
    assert numbers == [(1, TOTAL), (2, TOTAL), (3, TOTAL)]  # the first step pastes labelled into labelled


# --- teacher and steps ---


def test_the_teacher_starts_from_the_student_where_the_second_stage_starts():
    run = Run(CopyPaste(pretrain=0.3))
    first = {name: value.clone() for name, value in run.objective.teacher.network.state_dict().items()}
    assert "tsa" not in run.steps(range(2))[-1]
    assert_same(run.objective.teacher.network.state_dict(), first)
    assert "tsa" not in run.steps([2])[0]
    assert_same(run.objective.teacher.network.state_dict(), run.network.state_dict())
    assert "tsa" in run.steps([3])[0]
    assert not torch.equal(run.objective.teacher.network.classifier.weight, run.network.classifier.weight)
    assert int(run.objective.teacher.average.n_averaged) == 2


def test_labels_alone_have_no_use_for_teacher_and_augmentation():
    run = Run(Supervised())
    before = {name: value.clone() for name, value in run.objective.teacher.state_dict().items()}
    assert set(run.steps(range(2))[-1]) == {"loss"}
    assert_same(run.objective.teacher.state_dict(), before)
    assert run.objective.augmentation.student.count.sum() == 0


def test_nothing_in_the_objective_is_trained():
    run = Run("mean_teacher")
    assert not any(parameter.requires_grad for parameter in run.objective.parameters())
    run.steps(range(2))
    assert all(parameter.grad is None for parameter in run.objective.parameters())
    assert all(parameter.grad is not None for parameter in run.network.parameters())


@pytest.mark.parametrize("base", BASES)
def test_a_wrapped_network_trains_as_the_network(base):
    runs = [Run(base), Run(base, wrap=nn.DataParallel)]
    for run in runs:
        run.steps(range(2))
    assert_same(runs[1].state(), runs[0].state())


def test_logits_are_those_of_the_labelled_images():
    run = Run("mean_teacher")
    run.network.eval()
    logits, _ = run.objective(run.network, run.batch(0), 0)
    assert torch.equal(logits, run.network(run.batch(0)["image"]))


def test_every_term_is_a_number():
    for base in BASES:
        for terms in Run(base).steps(range(3)):
            assert all(value.ndim == 0 and value.isfinite() for value in terms.values())


# --- resuming ---


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_run(base, stop):
    """The state has teacher and memories; what is loaded equals it, and goes on bit for bit."""
    whole, first = Run(base), Run(base)
    for run, epochs in ((whole, [range(stop), range(stop, 5)]), (first, [range(stop)])):
        for epoch in epochs:
            run.steps(epoch)
    second = Run(base)
    second.steps(range(7, 9))  # leaves nothing behind
    second.load(first.save())
    assert_same(second.state(), first.state())
    names = list(first.objective.state_dict())
    for part in ("teacher.average.n_averaged", "teacher.average.module.classifier.weight",
                 "augmentation.student.cov", "augmentation.teacher.count"):  # fmt: skip
        assert part in names
    second.steps(range(stop, 5))
    assert_same(second.state(), whole.state())
