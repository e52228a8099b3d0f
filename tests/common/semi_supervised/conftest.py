"""A small network, a teacher that disagrees with it, and a batch of pairs."""

import pytest
import torch
from torch import nn

from common.semi_supervised import MeanTeacher


def make_network(dropout=0.0):
    torch.manual_seed(0)
    network = nn.Sequential()
    network.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(dropout))
    network.classifier = nn.Conv2d(6, 3, 1)
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


@pytest.fixture(name="make_network")
def _make_network():
    return make_network


@pytest.fixture(name="make_teacher")
def _make_teacher():
    return make_teacher


@pytest.fixture(name="inputs_of")
def _inputs_of():
    return inputs_of


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
