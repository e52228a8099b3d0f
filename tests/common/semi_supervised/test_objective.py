"""What is handed to the trainer, the steps that are counted, and when the teacher starts to follow."""

import io

import pytest
import torch
from torch import nn

from common.semi_supervised.bases import CopyPaste, MeanTeacherBase, Supervised
from common.semi_supervised.objective import SemiSupervisedObjective
from common.semi_supervised.teacher import MeanTeacher

TOTAL = 10


class Learning(Supervised):
    """A base that learns and remembers something itself."""

    def __init__(self, head):
        super().__init__(head)
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
    network.body, network.head = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh()), nn.Conv2d(6, 3, 1)
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
    optimizer = torch.optim.SGD([*network.parameters(), *(p for p in objective.parameters() if p.requires_grad)], 0.1)
    for number in numbers:
        torch.manual_seed(number)
        optimizer.zero_grad()
        objective(network, make_batch(number))[1]["loss"].backward()
        optimizer.step()
        objective.update_teacher(network)


def same(module, other):
    pairs = zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_logits_and_terms_are_the_bases():
    network, objective = make(MeanTeacherBase("head", noise=0.0))
    objective.step += 3
    nn.init.normal_(objective.teacher.network.head.weight)  # it disagrees with the student
    logits, terms = objective(network, make_batch())
    done = objective.base(network, objective.teacher, make_batch(), 3, TOTAL)
    assert torch.equal(logits, network(make_batch()["image"]))
    assert torch.equal(terms["loss"], done.loss) and terms.keys() == {"loss", "seg", "consistency"}
    assert done.loss != objective.base(network, objective.teacher, make_batch(), 0, TOTAL).loss  # the step counts


@pytest.mark.parametrize(("base", "first"), [(MeanTeacherBase("head"), 1), (CopyPaste("head", pretrain=0.3), 3)])
def test_the_teacher_follows_from_where_the_base_asks_for_it(base, first):
    network, objective = make(base)
    untouched = make_network()
    for number in range(5):
        assert int(objective.step) == number
        train(network, objective, [number])
        taught = objective.teacher.network
        assert same(taught, untouched) == (number + 1 < first)
        assert same(taught, network) == (number + 1 == first)  # it starts as the student of that moment
    assert int(objective.teacher.average.n_averaged) == 6 - first


def test_a_run_made_longer_stays_in_its_second_stage(caplog):
    """The start of the teacher moves to step 6, behind the last step."""
    runs = [make(CopyPaste("head", pretrain=0.3)) for _ in range(2)]
    for run in runs:
        train(*run, range(4))
    runs[0][1].load_state_dict(runs[1][1].state_dict())
    assert not caplog.messages
    longer = SemiSupervisedObjective(CopyPaste("head", pretrain=0.3), MeanTeacher(make_network()), 2 * TOTAL)
    longer.load_state_dict(runs[0][1].state_dict())
    expected = "the schedule of ramps and learning rate had 10 steps and now has 20. The run goes on, but not as one"
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(expected)
    updates = int(longer.teacher.average.n_averaged)
    train(runs[0][0], longer, [4])
    assert int(longer.teacher.average.n_averaged) == updates + 1 and "pseudo" in longer(runs[0][0], make_batch())[1]


def test_no_use_for_a_teacher():
    network, objective = make(Supervised("head"))
    train(network, objective, range(3))
    assert same(objective.teacher.network, make_network()) and int(objective.step) == 3


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: network])
def test_a_subclass_adds_terms(wrap):
    class More(SemiSupervisedObjective):
        def terms(self, network, done):
            return super().terms(network, done) | {"loss": done.loss + 1, "more": done.labelled.logits.mean()}

    network = make_network()
    objective = More(Supervised("head"), MeanTeacher(network))
    logits, terms = objective(wrap(network), make_batch())
    plain = Supervised("head")(network, None, make_batch(), 0, TOTAL).loss
    assert torch.equal(terms["loss"], plain + 1) and torch.equal(terms["more"], logits.mean())


def test_a_resumed_run_is_the_run():
    """What the base learns and remembers, the teacher and the step are in the state."""
    runs = [make(Learning("head")) for _ in range(2)]
    train(*runs[0], range(5))
    train(*runs[1], range(2))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in runs[1]], file)
    file.seek(0)
    fresh = make(Learning("head"))
    for part, state in zip(fresh, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*fresh, range(2, 5))
    assert all(same(part, other) for part, other in zip(fresh, runs[0], strict=True))
    assert {"step", "base.scale", "base.seen", "teacher.average.n_averaged"} <= fresh[1].state_dict().keys()
    assert fresh[1].base.seen == 10 and fresh[1].base.scale != 1
