"""What holds for each base alike."""

import pytest
import torch
from torch import nn

from common.semi_supervised import CopyPaste, MeanTeacher, MeanTeacherConsistency, Supervised

TOTAL = 100


def test_when_unlabelled_images_come_in():
    bases = [Supervised(), MeanTeacherConsistency(), CopyPaste(), CopyPaste(pretrain=0.5)]
    assert [base.start(TOTAL) for base in bases] == [TOTAL, 0, 30, 50]
    assert [base.needs_teacher for base in bases] == [False, True, True, True]


def test_a_teacher_of_batch_statistics_keeps_its_running_averages(network, batch, make_teacher):
    teacher = make_teacher(network, norm="batch")
    before = {name: value.clone() for name, value in teacher.state_dict().items() if "running" in name}
    for base in (MeanTeacherConsistency(passes=2), CopyPaste(pretrain=0)):
        base(network, teacher, batch, 3, TOTAL)
    assert before and all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("base", [Supervised(), MeanTeacherConsistency(passes=2), CopyPaste(pretrain=0)])
def test_volumes_and_autocast(base):
    network = nn.Sequential()
    network.body, network.classifier = nn.Conv3d(1, 6, 3, padding=1), nn.Conv3d(6, 3, 1)
    batch = {"image": torch.randn(2, 1, 6, 5, 4), "label": torch.randint(0, 3, (2, 1, 6, 5, 4)),
             "unlabeled": torch.randn(2, 1, 6, 5, 4)}  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        done = base(network, MeanTeacher(network), batch, 20, TOTAL)
    assert done.labelled.logits.dtype == torch.bfloat16
    assert {value.dtype for value in (done.loss, *done.terms.values())} == {torch.float32}
    done.loss.backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("base", [MeanTeacherConsistency(passes=2), CopyPaste(pretrain=0)])
def test_the_same_seed_the_same_step(base, teacher, batch, make_network):
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        network = make_network(dropout=0.3)
        torch.manual_seed(seed)
        losses.append(base(network, teacher, batch, 20, TOTAL).loss.item())
    assert losses[0] == losses[1] != losses[2]
