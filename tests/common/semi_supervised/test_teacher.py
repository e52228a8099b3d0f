"""The teacher's recursion, what it normalises by, and that nothing trains it."""

import copy

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch import nn

from common.engine import ObjectiveTrainer
from common.semi_supervised import MeanTeacher, Supervised, TeacherUpdate


def make_student(norm=True, dropout=0.0):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)
    )
    student = nn.Sequential()
    student.body, student.classifier = body, nn.Conv2d(6, 3, 1)
    return student


def move(student, draw):
    """Other weights, and other running averages by way of a forward pass."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw))
    student.train()(3 + 2 * torch.randn(4, 1, 8, 8, generator=draw))


def frozen(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def image():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 + 1


# --- the recursion ---


@pytest.mark.parametrize("late", [0, 3])
def test_parameters_and_running_averages_follow_the_recursion(late):
    """a_t = 0, 1/2, 2/3, 0.7, 0.7, ...; what the student was before the first update leaves no trace."""
    student, draw = make_student(), torch.Generator().manual_seed(1)
    teacher = MeanTeacher(student, decay=0.7)
    for _ in range(late):
        move(student, draw)
    expected = {}
    for decay in (0.0, 1 / 2, 2 / 3, 0.7, 0.7):
        move(student, draw)
        teacher.update(student)
        for name, value in student.state_dict().items():
            new = value.double().numpy()
            expected[name] = new if decay == 0 else decay * expected[name] + (1 - decay) * new
    found = teacher.network.state_dict()
    assert list(found) == list(student.state_dict())
    assert int(found.pop("body.1.num_batches_tracked")) == late + 5  # a count, not an average
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_first_update_copies_bit_for_bit():
    student = make_student()
    teacher = MeanTeacher(student)
    move(student, torch.Generator().manual_seed(1))
    teacher.update(student)
    torch.testing.assert_close(dict(teacher.network.state_dict()), frozen(student), rtol=0, atol=0)


def test_the_teacher_is_a_copy_that_leaves_the_student_alone(image):
    student = make_student()
    teacher = MeanTeacher(student)
    move(student, torch.Generator().manual_seed(1))
    before = frozen(student)
    teacher.update(student)
    teacher(image)
    move(teacher.network, torch.Generator().manual_seed(2))
    torch.testing.assert_close(frozen(student), before, rtol=0, atol=0)
    assert student.training and all(parameter.requires_grad for parameter in student.parameters())


def test_a_restored_teacher_goes_on_as_if_never_stopped():
    student, draw = make_student(), torch.Generator().manual_seed(1)
    teacher = MeanTeacher(student)
    for _ in range(2):
        move(student, draw)
        teacher.update(student)
    restored = MeanTeacher(make_student())
    restored.load_state_dict(copy.deepcopy(teacher.state_dict()))
    move(student, draw)
    for each in (teacher, restored):
        each.update(student)
    torch.testing.assert_close(frozen(restored), frozen(teacher), rtol=0, atol=0)


def test_a_wrapped_student_is_the_student():
    student, plain = make_student(), make_student()
    wrapped = nn.DataParallel(student)  # unwrapped as its distributed sister is
    ours, theirs = MeanTeacher(wrapped), MeanTeacher(plain)
    move(student, torch.Generator().manual_seed(1))
    move(plain, torch.Generator().manual_seed(1))
    ours.update(wrapped)
    theirs.update(plain)
    torch.testing.assert_close(frozen(ours), frozen(theirs), rtol=0, atol=0)


# --- teaching ---


def test_no_gradient_comes_out_of_the_teacher(image):
    teacher = MeanTeacher(make_student())
    logits, features = teacher(image.requires_grad_())
    assert not logits.requires_grad and not features.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert logits.shape == (4, 3, 8, 8) and features.shape == (4, 6, 8, 8)
    torch.testing.assert_close(teacher.network.classifier(features), logits)


@pytest.mark.parametrize("norm", ["ema", "batch"])
@pytest.mark.parametrize("validated", [False, True])
def test_a_new_teacher_has_no_dropout_whatever_mode_validation_left(norm, validated, image):
    teacher = MeanTeacher(make_student(dropout=0.5), norm=norm)
    if validated:
        teacher.network.train()  # what MONAI restores after a validation of a network that it found in training
    first, again = (teacher(image)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not any(m.training for m in teacher.modules() if isinstance(m, nn.Dropout))


def test_ema_normalises_by_the_running_averages(image):
    student = make_student()
    move(student, torch.Generator().manual_seed(1))
    teacher = MeanTeacher(student, norm="ema").train()
    before = frozen(teacher)
    assert torch.equal(teacher(image)[0], student.eval()(image))
    torch.testing.assert_close(frozen(teacher), before, rtol=0, atol=0)


@pytest.mark.parametrize("validated", [False, True])
def test_batch_normalises_by_the_batch_and_keeps_the_running_averages(validated, image):
    teacher = MeanTeacher(make_student(), norm="batch")
    before = frozen(teacher)
    if validated:
        teacher.network.eval()
    with torch.no_grad():
        maps = teacher.network.body[0](image)
        mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), correction=0, keepdim=True)
        expected = torch.tanh((maps - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(teacher(image)[1], expected, rtol=1e-4, atol=1e-5)
    after = frozen(teacher)
    for name in ("running_mean", "running_var"):
        assert torch.equal(after[f"average.module.body.1.{name}"], before[f"average.module.body.1.{name}"])
    # what is deployed is the averaged network in eval mode
    torch.testing.assert_close(teacher.eval()(image)[0], MeanTeacher(make_student())(image)[0])


def test_without_batch_norm_the_two_are_one(image):
    ema, batch = (MeanTeacher(make_student(norm=False), norm=norm)(image)[0] for norm in ("ema", "batch"))
    assert torch.equal(ema, batch)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"norm": "group"}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"decay in \[0, 1\) and norm one of \('ema', 'batch'\), got"):
        MeanTeacher(make_student(), **options)


# --- the handler ---


class Taught:
    """A teacher that notes the student's weight each time it is told to follow."""

    def __init__(self):
        self.seen, self.begun = [], False

    def update(self, network):
        self.seen.append(network.weight.item())
        self.begun = True


class Halving(nn.Module):
    """An objective whose gradient step halves the weight."""

    def __init__(self, start, needs_teacher=True):
        super().__init__()
        self.base, self.teacher, self.total_steps = Supervised(), Taught(), 10
        self.base.needs_teacher, self.base.start = needs_teacher, lambda total: start

    def forward(self, network, batch, step):
        return batch["image"], {"loss": network.weight.square().sum() / 2}


def train(objective):
    """Two steps from a weight of 8 on; the updates of the teacher seen at the end of each."""
    network, at_end = nn.Linear(1, 1, bias=False), []
    nn.init.constant_(network.weight, 8.0)
    batch = {"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}
    trainer = ObjectiveTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[batch, batch], network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5), loss_function=objective,
        train_handlers=[TeacherUpdate(objective)],
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: at_end.append(len(objective.teacher.seen)))
    trainer.run()
    return at_end


def test_the_teacher_is_updated_after_each_step_of_the_optimizer():
    assert train(objective := Halving(start=0)) == [1, 2] and objective.teacher.seen == [4.0, 2.0]


@pytest.mark.parametrize(("start", "needed", "updates"), [(3, True, 0), (2, True, 1), (0, False, 0)])
def test_a_run_that_ends_before_the_teacher_begins_says_so(caplog, start, needed, updates):
    """It begins at the end of the step before the first that shows unlabelled images."""
    assert train(Halving(start, needed))[-1] == updates
    warned = needed and not updates
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("ended after 2 updates, before the teacher begins at 3" in caplog.text) == warned
