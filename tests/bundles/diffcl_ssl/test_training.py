"""Whole runs: they repeat and resume bit for bit, both networks learn, and the trainer steps all that does."""

import io

import pytest
import torch
from torch import nn

from common.engine import ObjectiveTrainer
from common.semi_supervised import Mixer, SemiSupervisedObjective
from diffcl_ssl.diffusion import Diffusion, DiffusionNetwork
from diffcl_ssl.network import ConvolutionalNetwork
from diffcl_ssl.objective import CrossSupervision
from diffcl_ssl.peers import DiffusionPeer
from diffcl_ssl.propagation import LabelPropagation, LabelPropagationLoss

CLASSES, WIDTH, TOTAL = 3, 6, 100


class Denoiser(nn.Module):
    """In the place of a diffusion network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(1 + CLASSES, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.Dropout(0.1))
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image, noised, times):
        return self.classifier((self.body(torch.cat([image, noised], 1)) + times.view(-1, 1, 1, 1) / 100).relu())


def make_network():
    torch.manual_seed(1)
    network = nn.Sequential()
    network.body = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.Tanh(), nn.Dropout(0.2))
    network.classifier = nn.Conv2d(WIDTH, CLASSES, 1)
    return network


def make_batch(number=0, count=4):
    """Labels in blocks, brighter where they are higher."""
    draw = torch.Generator().manual_seed(100 + number)
    labels = torch.randint(0, CLASSES, (2, count, 1, 2, 2), generator=draw)
    label, hidden = (each.repeat_interleave(6, -1).repeat_interleave(6, -2) for each in labels)
    image, other = (values + 0.3 * torch.randn(label.shape, generator=draw) for values in (label, hidden))
    return {"image": image, "label": label, "unlabeled": other}


def make_propagation(**options):
    loss = LabelPropagationLoss(min_bank=1)
    return LabelPropagation(CLASSES, WIDTH, **{"loss": loss, "confidence": 0.3, "embedding": 8, **options})


class Run:
    """Training as the trainer does it; each call of ``steps`` is an epoch, which begins with a seed of its own."""

    def __init__(self, propagation=True, peer=None, rate=0.01, **options):
        self.network = make_network()
        peer = peer or DiffusionPeer(Denoiser(), Diffusion(CLASSES), times=(0.9, 1.0))
        options = {"propagation_start": 0.0, "ramp": 0.0, "propagation_weight": 1.0, **options}
        base = CrossSupervision(peer, propagation=make_propagation() if propagation else None, **options)
        self.objective = SemiSupervisedObjective(base, total_steps=TOTAL)
        self.optimizer = torch.optim.AdamW([*self.network.parameters(), *self.objective.parameters()], rate)
        self.parts = [self.network, self.objective, self.optimizer]

    def steps(self, numbers, amp=False):
        terms = []
        torch.manual_seed(numbers[0])
        for number in numbers:
            self.network.train()
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                _, found = self.objective(self.network, make_batch(number), number)
            found["loss"].backward()
            self.optimizer.step()
            terms.append({name: value.detach() for name, value in found.items()})
        return terms

    def state(self):
        parts = nn.ModuleDict({"network": self.network, "objective": self.objective})
        return {name: value.clone() for name, value in parts.state_dict().items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def test_weight_zero_repeats_cross_supervision_bit_for_bit():
    """Both networks, with noise, dropout and times: bank, draws and prototypes disturb none of these."""
    bare, ours, other = Run(propagation=False), Run(propagation_weight=0.0), Run()
    bare.steps(range(3))
    terms = ours.steps(range(3))
    assert terms[-1]["propagation"] > 0 and terms[-1]["bank"] > 0
    assert_same({name: value for name, value in ours.state().items() if "propagation" not in name}, bare.state())
    other.steps(range(3))
    assert not torch.equal(other.network.body[0].weight, bare.network.body[0].weight)


@pytest.mark.parametrize("mixer", [None, Mixer(pretrain=0.02)], ids=["apart", "mixed"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_the_run(stop, mixer):
    """Student, peer, bank, projections, prototypes and the optimizer are in the state; the step is the trainer's."""

    def make():
        return Run(peer=DiffusionPeer(Denoiser(), Diffusion(CLASSES)), mixer=mixer)

    whole, first, second = make(), make(), make()
    for epoch in (range(stop), range(stop, 5)):
        whole.steps(epoch)
    first.steps(range(stop))
    second.steps(range(7, 9))  # leaves nothing behind
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first.parts], file)
    file.seek(0)
    for part, state in zip(second.parts, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert_same(second.state(), first.state())
    names = second.objective.state_dict().keys()
    assert {"base.peer.network.classifier.weight", "base.propagation.bank.features", "base.propagation.bank.pointer",
            "base.propagation.projection.norm.running_mean",
            "base.propagation.prototypes.prototypes"} <= names  # fmt: skip
    second.steps(range(stop, 5))
    assert_same(second.state(), whole.state())
    assert second.objective.base.propagation.bank.filled.sum() > 0


def test_two_networks_learn_the_classes():
    run = Run(rate=0.05, ramp=0.4, propagation_weight=0.1, propagation_start=0.2)
    terms = run.steps(range(40))
    for name in ("seg", "seg_peer", "pseudo_peer", "prototype"):
        assert sum(t[name] for t in terms[-5:]) < 0.6 * sum(t[name] for t in terms[:5]), name
    run.network.eval()
    batch = make_batch(1000)
    found = run.network(batch["image"]).argmax(1)
    assert (found == batch["label"][:, 0]).float().mean() > 0.9


def test_the_trainer_steps_all_that_learns():
    """The networks of the bundle, for two steps of a volume each."""
    torch.manual_seed(0)
    options = {"out_channels": CLASSES, "width": 4, "norm": "instance"}
    network = ConvolutionalNetwork(mamba_stages=(5,), **options)
    peer = DiffusionPeer(DiffusionNetwork(**options), Diffusion(CLASSES))
    propagation = LabelPropagation(CLASSES, 4, loss=LabelPropagationLoss(min_bank=1), confidence=0.0)
    base = CrossSupervision(peer, propagation=propagation, ramp=0.0, propagation_start=0.0)
    objective = SemiSupervisedObjective(base)
    image, label = torch.randn(2, 2, 1, 16, 16, 16), torch.randint(0, CLASSES, (2, 1, 16, 16, 16))
    learning = nn.ModuleDict({"student": network, "peer": peer, "propagation": propagation})
    before = {name: value.clone() for name, value in learning.named_parameters()}
    trainer = ObjectiveTrainer(
        device=torch.device("cpu"), max_epochs=1, network=network, loss_function=objective,
        train_data_loader=[{"image": image[0], "label": label, "unlabeled": image[1]}] * 2,
        optimizer=torch.optim.AdamW(learning.parameters(), 0.01, weight_decay=0),
    )  # fmt: skip
    trainer.run()
    still = [name for name, value in learning.named_parameters() if torch.equal(value, before[name])]
    # instance norm takes out the bias of a convolution before it, and none of these gets a gradient but by rounding
    assert not [name for name in still if not name.endswith("bias")]
    assert all(value.isfinite().all() for value in learning.state_dict().values())


def test_every_term_is_a_number_also_under_autocast():
    for amp in (False, True):
        for terms in Run().steps(range(3), amp):
            assert all(value.ndim == 0 and value.isfinite() for value in terms.values())
            assert {"loss", "seg", "pseudo", "seg_peer", "pseudo_peer", "propagation", "prototype", "bank", "positives",
                    "own_negatives"} <= terms.keys()  # fmt: skip


def test_logits_are_those_of_the_labelled_images():
    run = Run()
    run.network.eval()
    logits, _ = run.objective(run.network, make_batch(), 0)
    assert torch.equal(logits, run.network(make_batch()["image"]))
