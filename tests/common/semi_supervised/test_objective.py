"""What is handed to the trainer, the step that ramps follow, and when the teacher starts to follow."""

import io
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common.description import describe
from common.engine import FullStateCheckpoint, ObjectiveTrainer
from common.networks import VNet
from common.semi_supervised import (
    CopyPaste,
    MeanTeacher,
    MeanTeacherConsistency,
    SemiSupervisedObjective,
    Supervised,
    TeacherUpdate,
    mean_teacher,
)

TOTAL = 10


class Learning(Supervised):
    """A base that learns and remembers something itself."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, network, teacher, batch, step, total):
        done = super().forward(network, teacher, batch, step, total)
        self.seen += len(batch["image"])
        done.terms = {"seg": done.loss.detach()}
        done.loss = done.loss * self.scale
        return done


def make_network():
    torch.manual_seed(0)
    network = nn.Sequential()
    network.body, network.classifier = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh()), nn.Conv2d(6, 3, 1)
    return network


def make(base, **options):
    network = make_network()
    return network, SemiSupervisedObjective(base, MeanTeacher(network, decay=0.9), **{"total_steps": TOTAL, **options})


def make_batch(number=0):
    draw = torch.Generator().manual_seed(number)
    label = torch.randint(0, 3, (2, 1, 8, 8), generator=draw)
    image, other = (torch.randn(2, 1, 8, 8, generator=draw) for _ in range(2))
    return {"image": image + label, "label": label, "unlabeled": other}


def train(network, objective, numbers):
    """As the trainer does it: steps from 0, iterations from 1."""
    optimizer = torch.optim.SGD([*network.parameters(), *(p for p in objective.parameters() if p.requires_grad)], 0.1)
    follow = TeacherUpdate(objective)
    for number in numbers:
        torch.manual_seed(number)
        optimizer.zero_grad()
        objective(network, make_batch(number), number)[1]["loss"].backward()
        optimizer.step()
        follow(SimpleNamespace(state=SimpleNamespace(iteration=number + 1), network=network))


def same(module, other):
    pairs = zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_logits_and_terms_are_the_bases(monkeypatch):
    monkeypatch.setattr(mean_teacher, "NOISE", 0.0)
    network, objective = make(MeanTeacherConsistency())
    nn.init.normal_(objective.teacher.network.classifier.weight)  # it disagrees with the student
    logits, terms = objective(network, make_batch(), 3)
    done = objective.base(network, objective.teacher, make_batch(), 3, TOTAL)
    assert torch.equal(logits, network(make_batch()["image"]))
    assert torch.equal(terms["loss"], done.loss) and terms.keys() == {"loss", "seg", "consistency"}
    assert done.loss != objective.base(network, objective.teacher, make_batch(), 0, TOTAL).loss  # the step counts


@pytest.mark.parametrize(("base", "first"), [(MeanTeacherConsistency(), 1), (CopyPaste(pretrain=0.3), 3)])
def test_the_teacher_follows_from_where_the_base_asks_for_it(base, first):
    network, objective = make(base)
    untouched = make_network()
    for number in range(5):
        train(network, objective, [number])
        taught = objective.teacher.network
        assert same(taught, untouched) == (number + 1 < first)
        assert same(taught, network) == (number + 1 == first)  # it starts as the student of that moment
    assert int(objective.teacher.average.n_averaged) == 6 - first


def test_a_run_made_longer_stays_in_its_second_stage(caplog):
    """The start of the teacher moves to step 6, behind the last step."""
    runs = [make(CopyPaste(pretrain=0.3)) for _ in range(2)]
    for run in runs:
        train(*run, range(4))
    runs[0][1].load_state_dict(runs[1][1].state_dict())
    assert not caplog.messages
    longer = SemiSupervisedObjective(CopyPaste(pretrain=0.3), MeanTeacher(make_network()), 2 * TOTAL)
    longer.load_state_dict(runs[0][1].state_dict())
    expected = "the schedule of ramps and learning rate had 10 steps and now has 20. The run goes on, but not as one"
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(expected)
    updates = int(longer.teacher.average.n_averaged)
    train(runs[0][0], longer, [4])
    assert int(longer.teacher.average.n_averaged) == updates + 1 and "pseudo" in longer(runs[0][0], make_batch(), 5)[1]


def test_labels_alone_need_no_teacher():
    network = make_network()
    objective = SemiSupervisedObjective(Supervised(), total_steps=TOTAL)
    train(network, objective, range(3))
    assert objective.teacher is None and not same(network, make_network())
    for base in (MeanTeacherConsistency(), CopyPaste()):
        with pytest.raises(ValueError, match=f"{type(base).__name__} needs a teacher, found none; set `teacher`"):
            SemiSupervisedObjective(base)


def test_the_wrapper_for_several_gpus_leaves_no_trace_in_what_a_resume_compares():
    students = [student := VNet(2, 1, 3, width=2), nn.DataParallel(student)]
    one, other = (SemiSupervisedObjective(CopyPaste(), MeanTeacher(each)) for each in students)
    assert describe(one, strict=False) == describe(other, strict=False)
    assert describe(one, strict=False)["teacher"]["network"]["width"] == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: network])
def test_a_subclass_adds_terms(wrap):
    class More(SemiSupervisedObjective):
        def terms(self, network, done, step):
            more = {"loss": done.loss + step, "more": done.labelled.logits.mean()}
            return super().terms(network, done, step) | more

    network = make_network()
    objective = More(Supervised(), MeanTeacher(network))
    logits, terms = objective(wrap(network), make_batch(), 7)
    plain = Supervised()(network, None, make_batch(), 7, TOTAL).loss
    assert torch.equal(terms["loss"], plain + 7) and torch.equal(terms["more"], logits.mean())


def test_a_resumed_run_is_the_run():
    """What the base learns and remembers, and the teacher, are in the state; the step comes from the trainer."""
    runs = [make(Learning()) for _ in range(2)]
    train(*runs[0], range(5))
    train(*runs[1], range(2))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in runs[1]], file)
    file.seek(0)
    fresh = make(Learning())
    for part, state in zip(fresh, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*fresh, range(2, 5))
    assert all(same(part, other) for part, other in zip(fresh, runs[0], strict=True))
    assert {"base.scale", "base.seen", "teacher.average.n_averaged"} <= fresh[1].state_dict().keys()
    assert fresh[1].base.seen == 10 and fresh[1].base.scale != 1


class Noting(Supervised):
    """Notes the step and the length of the schedule that it is told."""

    def forward(self, network, teacher, batch, step, total):
        self.told = [*getattr(self, "told", []), (step, total)]
        return super().forward(network, teacher, batch, step, total)


def test_the_step_of_ramps_is_the_trainers_and_goes_on_where_a_run_is_resumed(tmp_path):
    """With no other handler than the checkpoint."""
    told = []
    for epochs in (1, 2):
        network, base = make_network(), Noting()
        objective = SemiSupervisedObjective(base, total_steps=TOTAL)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        objects = {"network": network, "objective": objective, "optimizer": optimizer}
        ObjectiveTrainer(
            device=torch.device("cpu"), max_epochs=epochs, network=network, loss_function=objective,
            optimizer=optimizer, train_data_loader=[make_batch(0), make_batch(1), make_batch(2)],
            train_handlers=[FullStateCheckpoint(tmp_path / "checkpoint.pt", objects, resume=epochs == 2)],
        ).run()  # fmt: skip
        told.append(base.told)
    assert told == [[(step, TOTAL) for step in range(3)], [(step, TOTAL) for step in range(3, 6)]]
