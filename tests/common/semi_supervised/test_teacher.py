"""The teacher's recursion, what it normalises by, and that nothing trains it."""

import copy

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn

from common.engine import ObjectiveTrainer
from common.semi_supervised.bases import Supervised
from common.semi_supervised.objective import SemiSupervisedObjective
from common.semi_supervised.teacher import MeanTeacher, TeacherUpdate, choose_network


def make_student(norm=True, dropout=0.0):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(dropout)
    )
    student = nn.Sequential()
    student.body, student.head = body, nn.Conv2d(6, 3, 1)
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
    teacher(image, "head")
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
    logits, features = teacher(image.requires_grad_(), "head")
    assert not logits.requires_grad and not features.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert logits.shape == (4, 3, 8, 8) and features.shape == (4, 6, 8, 8)
    torch.testing.assert_close(teacher.network.head(features), logits)


@pytest.mark.parametrize("norm", ["ema", "batch"])
@pytest.mark.parametrize("validated", [False, True])
def test_a_new_teacher_has_no_dropout_whatever_mode_validation_left(norm, validated, image):
    teacher = MeanTeacher(make_student(dropout=0.5), norm=norm)
    if validated:
        teacher.network.train()  # what MONAI restores after a validation of a network that it found in training
    first, again = (teacher(image, "head")[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not any(m.training for m in teacher.modules() if isinstance(m, nn.Dropout))


def test_ema_normalises_by_the_running_averages(image):
    student = make_student()
    move(student, torch.Generator().manual_seed(1))
    teacher = MeanTeacher(student, norm="ema").train()
    before = frozen(teacher)
    assert torch.equal(teacher(image, "head")[0], student.eval()(image))
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
    torch.testing.assert_close(teacher(image, "head")[1], expected, rtol=1e-4, atol=1e-5)
    after = frozen(teacher)
    for name in ("running_mean", "running_var"):
        assert torch.equal(after[f"average.module.body.1.{name}"], before[f"average.module.body.1.{name}"])
    # what is deployed is the averaged network in eval mode
    torch.testing.assert_close(teacher.eval()(image, "head")[0], MeanTeacher(make_student())(image, "head")[0])


def test_without_batch_norm_the_two_are_one(image):
    ema, batch = (MeanTeacher(make_student(norm=False), norm=norm)(image, "head")[0] for norm in ("ema", "batch"))
    assert torch.equal(ema, batch)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}, {"norm": "group"}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=r"decay in \[0, 1\) and norm one of \('ema', 'batch'\), got"):
        MeanTeacher(make_student(), **options)


# --- the handler ---


class Halving(nn.Module):
    """An objective whose gradient step halves the weight, and that notes the weight each time it is told."""

    def __init__(self):
        super().__init__()
        self.seen, self.base = [], Supervised("head")

    def forward(self, network, batch):
        return batch["image"], {"loss": network.weight.square().sum() / 2}

    def update_teacher(self, network):
        self.seen.append(network.weight.item())


def test_the_teacher_is_updated_after_each_step_of_the_optimizer():
    network, objective = nn.Linear(1, 1, bias=False), Halving()
    nn.init.constant_(network.weight, 8.0)
    batch = {"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}
    trainer = ObjectiveTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=[batch, batch], network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.5), loss_function=objective,
        train_handlers=[TeacherUpdate(objective)],
    )  # fmt: skip
    at_end = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: at_end.append(len(objective.seen)))
    trainer.run()
    assert objective.seen == [4.0, 2.0]
    assert at_end == [1, 2]


@pytest.mark.parametrize(("start", "needed", "warned"), [(3, True, True), (2, True, False), (3, False, False)])
def test_a_run_that_ends_before_the_teacher_begins_says_so(caplog, start, needed, warned):
    network, base = nn.Linear(1, 1), Supervised("head")
    base.needs_teacher, base.start = needed, lambda total: start
    objective = SemiSupervisedObjective(base, MeanTeacher(network), total_steps=10)
    engine = Engine(lambda engine, batch: objective.update_teacher(network))
    engine.network = network
    engine.register_events(*IterationEvents)
    TeacherUpdate(objective).attach(engine)
    engine.run([0, 0])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert ("ended after 2 updates, before the teacher begins at 3" in caplog.text) == warned


def test_the_network_to_save():
    student = nn.Linear(1, 1)
    teacher = MeanTeacher(student)
    assert choose_network("student", "bcp", student, teacher) is student
    assert choose_network("teacher", "bcp", student, teacher) is teacher.network
    assert choose_network("teacher", "supervised", student, teacher) is student
    with pytest.raises(ValueError, match="inference_network must be student or teacher, got 'Student'"):
        choose_network("Student", "bcp", student, teacher)
