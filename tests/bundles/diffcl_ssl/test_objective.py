"""The sum of the two losses, and who is shown what and learns from whom."""

import math

import pytest
import torch
from torch import nn

from common.losses import DiceCERegionLoss
from common.semi_supervised import Mixer, sigmoid_ramp
from common.semi_supervised.copy_paste import outside_box
from diffcl_ssl.diffusion import Diffusion
from diffcl_ssl.objective import CrossSupervision, agreement
from diffcl_ssl.peers import DiffusionPeer, PlainPeer, Seen
from diffcl_ssl.propagation import LabelPropagation, LabelPropagationLoss

CLASSES, WIDTH, TOTAL = 3, 6, 100
LOSS = DiceCERegionLoss()


class Denoiser(nn.Module):
    """In the place of a diffusion network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(1 + CLASSES, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.Dropout(0.1))
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, image, noised, times):
        return self.classifier((self.body(torch.cat([image, noised], 1)) + times.view(-1, 1, 1, 1) / 100).relu())


def make_network(seed=1):
    torch.manual_seed(seed)
    network = nn.Sequential()
    network.body = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.Tanh())
    network.classifier = nn.Conv2d(WIDTH, CLASSES, 1)
    return network


def make_batch(number=0, count=4):
    """Labels in blocks, brighter where they are higher."""
    draw = torch.Generator().manual_seed(100 + number)
    labels = torch.randint(0, CLASSES, (2, count, 1, 2, 2), generator=draw)
    label, hidden = (each.repeat_interleave(6, -1).repeat_interleave(6, -2) for each in labels)
    image, other = (values + 0.3 * torch.randn(label.shape, generator=draw) for values in (label, hidden))
    return {"image": image, "label": label, "unlabeled": other}


class Scripted(nn.Module):
    """A peer with logits of its own for any images, which notes what it was shown."""

    def __init__(self, logits, reliable, noise=None):
        super().__init__()
        self.network = nn.Conv2d(1, 1, 1)
        self.logits, self.reliable, self.noise, self.shown = logits, reliable, noise, []

    def forward(self, image, labels):
        self.shown.append((image, labels))
        return Seen(self.logits, self.logits, self.reliable, self.noise)


def scripted(reliable=(True, True, True, True), **options):
    torch.manual_seed(5)
    return Scripted(2 * torch.randn(4, CLASSES, 12, 12), torch.tensor(reliable), **options)


def run(base, network, batch=None, step=10):
    return base(network, None, make_batch() if batch is None else batch, step, TOTAL)


# --- the loss ---


@pytest.mark.parametrize(("step", "ramp"), [(0, math.exp(-5)), (10, math.exp(-5 * 0.75**2)), (40, 1), (90, 1)])
def test_loss_by_hand(step, ramp):
    network, peer = make_network(1), make_network(2)
    batch = make_batch()
    done = run(CrossSupervision(PlainPeer(peer), weight=0.7, largest_component=False), network, batch, step)
    image, label, other = batch["image"], batch["label"][:, 0], batch["unlabeled"]
    expected = {
        "seg": LOSS(network(image), label),
        "pseudo": LOSS(network(other), peer(other).argmax(1)),
        "seg_peer": LOSS(peer(image), label),
        "pseudo_peer": LOSS(peer(other), network(other).argmax(1)),
    }
    for name, value in expected.items():
        assert done.terms[name].item() == pytest.approx(value.item(), rel=1e-6)
    values = [value.item() for value in expected.values()]
    assert len(set(values)) == 4 and set(done.terms) == {*expected, "agreement"}
    total = values[0] + values[2] + 0.7 * ramp * (values[1] + values[3])
    assert done.loss.item() == pytest.approx(total, rel=1e-6)
    assert torch.equal(done.labelled.logits, network(image)) and torch.equal(done.labelled.labels, label)


def test_another_loss_and_schedule():
    loss = nn.CrossEntropyLoss(ignore_index=-1)
    base = CrossSupervision(PlainPeer(make_network(2)), loss, ramp=0.0)
    done = run(base, make_network(), step=0)
    assert base.start(TOTAL) == 0 and not base.needs_teacher
    assert torch.equal(done.terms["seg"], loss(done.labelled.logits, done.labelled.labels))
    parts = sum(done.terms[name].item() for name in ("seg", "pseudo", "seg_peer", "pseudo_peer"))
    assert done.loss.item() == pytest.approx(parts, rel=1e-6)


# --- on mixtures ---


def drawn_box():
    """The box that is drawn next, 8 of 12 wide; the random numbers stay as they are."""
    state = torch.get_rng_state()
    outside = outside_box(torch.Size((12, 12)), 2 / 3)
    torch.set_rng_state(state)
    return outside


def test_mixtures_by_hand():
    """Half of the images show the labelled one outside the box, half inside; each kind has a loss of its own."""
    network, peer, batch = make_network(1), scripted(reliable=(True, False, True, True)), make_batch()
    shown, outside = [], drawn_box()
    network.register_forward_pre_hook(lambda module, args: shown.append((args[0], module.training)))
    base = CrossSupervision(peer, weight=0.7, ramp=0.0, largest_component=False, mixer=Mixer())
    done = run(base, network, batch, step=30)
    other, image, label = batch["unlabeled"], batch["image"].clone(), batch["label"][:, 0].clone()
    own, pseudo, taught = network(other).argmax(1), torch.full_like(label, -1), torch.full_like(label, -1)
    mixed, true = image.clone(), torch.full_like(label, -1)
    for b in range(4):
        for i in range(12):
            for j in range(12):
                if outside[i][j] == (b < 2):
                    true[b, i, j] = label[b, i, j]
                else:
                    mixed[b, 0, i, j] = other[b, 0, i, j]
                    pseudo[b, i, j] = own[b, i, j]
                    taught[b, i, j] = peer.logits[b, :, i, j].argmax() if b != 1 else -1
    assert [training for _, training in shown[:2]] == [False, True] and network.training and peer.training
    assert torch.equal(shown[0][0], other) and torch.equal(shown[1][0], mixed)
    (first, first_labels), (second, second_labels) = peer.shown
    assert torch.equal(first, other) and torch.equal(first_labels, own)
    assert torch.equal(second, mixed) and torch.equal(second_labels, torch.where(true < 0, own, true))
    expected = {}
    for name, logits, labels in (("seg", network(mixed), true), ("pseudo", network(mixed), taught),
                                 ("seg_peer", peer.logits, true), ("pseudo_peer", peer.logits, pseudo)):  # fmt: skip
        expected[name] = LOSS(logits[:2], labels[:2]).item() + LOSS(logits[2:], labels[2:]).item()
        assert done.terms[name].item() == pytest.approx(expected[name], rel=1e-6)
    total = expected["seg"] + expected["seg_peer"] + 0.7 * (expected["pseudo"] + expected["pseudo_peer"])
    assert done.loss.item() == pytest.approx(total, rel=1e-6) and torch.equal(done.labelled.labels, true)


def test_before_mixtures_both_learn_from_labelled_images_pasted_into_each_other():
    network, peer, batch = make_network(1), make_network(2), make_batch()
    base, outside = CrossSupervision(PlainPeer(peer), mixer=Mixer(pretrain=0.3)), drawn_box()
    del batch["unlabeled"]
    done = run(base, network, batch, step=29)
    image, label = batch["image"], batch["label"][:, 0]
    mixed, labels = (torch.where(outside, each, each[[2, 3, 0, 1]]) for each in (image, label))
    expected = [LOSS(each(mixed), labels).item() for each in (network, peer)]
    assert base.start(TOTAL) == 30 and [value.item() for value in done.terms.values()] == pytest.approx(expected)
    assert done.loss.item() == pytest.approx(sum(expected)) and torch.equal(done.labelled.labels, labels)


@pytest.mark.parametrize(("mixer", "first"), [(None, 20), (Mixer(pretrain=0.3), 44)])
def test_the_contrast_waits_for_a_fifth_of_the_steps_with_unlabelled_images(mixer, first):
    """Mixtures begin at step 30 of the 100: projection and prototypes learn nothing before."""

    class Propagation(nn.Module):
        def forward(self, labelled, **others):
            return torch.tensor(2.0), torch.tensor(3.0), {}

    base = CrossSupervision(PlainPeer(make_network(2)), propagation=Propagation(), ramp=0.0, mixer=mixer)
    drawn_box()
    for step, expected in ((first - 1, 3.0), (first, 3.0 + 0.1 * 2.0)):
        done = run(base, make_network(1), step=step)
        others = sum(done.terms[name] for name in ("seg", "seg_peer", "pseudo", "pseudo_peer"))
        assert (done.loss - others).item() == pytest.approx(expected, abs=1e-4)


def test_on_mixtures_unlabelled_voxels_alone_are_contrasted():
    network, peer, seen = make_network(1), PlainPeer(make_network(2)), {}
    propagation = LabelPropagation(CLASSES, WIDTH, loss=LabelPropagationLoss(min_bank=1))
    propagation.register_forward_pre_hook(lambda module, args, options: seen.update(options), with_kwargs=True)
    base = CrossSupervision(peer, propagation=propagation, mixer=Mixer(pretrain=0.0))
    outside = drawn_box()
    run(base, network)
    assert torch.equal(seen["where"], torch.stack([~outside, ~outside, outside, outside]))


# --- pseudo-labels ---


def test_pseudo_labels_are_one_component_of_each_class():
    """Both ways: student and peer learn, and the peer is shown, what the filter leaves."""
    peer, network = scripted(), make_network()
    logits = 9 * torch.eye(CLASSES)[torch.zeros(4, 12, 12, dtype=torch.long)].movedim(-1, 1)
    logits[:, :, 2:6, 2:6] = logits[:, :, 9:10, 9:10] = 9 * torch.eye(CLASSES)[2].view(1, CLASSES, 1, 1)
    peer.logits = logits
    network.body, network.classifier = nn.Identity(), nn.Conv2d(1, CLASSES, 1)
    network.forward = lambda image: network.classifier(torch.cat([image] * 4, 1)) * 0 + logits  # sees no image
    network.classifier = nn.Conv2d(4, CLASSES, 1)
    done = run(CrossSupervision(peer), network)
    kept = torch.zeros(4, 12, 12, dtype=torch.long)
    kept[:, 2:6, 2:6] = 2
    assert torch.equal(peer.shown[1][1], kept)
    for name in ("pseudo", "pseudo_peer"):
        assert done.terms[name].item() == pytest.approx(LOSS(logits, kept).item(), rel=1e-6)


def test_images_on_which_the_peer_is_not_reliable_do_not_count():
    network, batch = make_network(), make_batch()
    for reliable in ((True, False, False, True), (False, False, False, False)):
        peer = scripted(reliable)
        done = run(CrossSupervision(peer, largest_component=False), network, batch)
        rows = torch.tensor(reliable)
        expected = LOSS(network(batch["unlabeled"][rows]), peer.logits[rows].argmax(1)).item() if rows.any() else 0
        assert done.terms["pseudo"].item() == pytest.approx(expected, rel=1e-5)
        assert done.terms["pseudo_peer"] > 0  # the peer learns on all of them
        done.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


# --- who sees and learns what ---


def test_labelled_and_unlabelled_images_pass_one_after_the_other():
    peer, network, batch, seen = make_network(2), make_network(), make_batch(), []
    for name, module in (("student", network), ("peer", peer)):
        module.register_forward_pre_hook(lambda module, args, name=name: seen.append((name, args[0])))
    run(CrossSupervision(PlainPeer(peer)), network, batch)
    assert [name for name, _ in seen] == ["student", "student", "peer", "peer"]
    assert all(image is batch[key] for (_, image), key in zip(seen, ["image", "unlabeled"] * 2, strict=True))


def test_the_peer_is_shown_true_labels_and_the_students():
    peer, network, batch = scripted(), make_network(), make_batch()
    run(CrossSupervision(peer, largest_component=False), network, batch)
    (image, labels), (other, own) = peer.shown
    assert image is batch["image"] and torch.equal(labels, batch["label"][:, 0])
    assert other is batch["unlabeled"] and torch.equal(own, network(other).argmax(1))


def make_propagation(**options):
    loss = LabelPropagationLoss(min_bank=1)
    return LabelPropagation(CLASSES, WIDTH, **{"loss": loss, "confidence": 0.3, "embedding": 8, **options})


@pytest.mark.parametrize("kind", ["plain", "diffusion"])
def test_no_gradient_passes_from_one_network_to_the_other(kind):
    network, propagation = make_network(), make_propagation()
    diffusion = DiffusionPeer(Denoiser(), Diffusion(CLASSES), times=(0.9, 1.0))
    peer = PlainPeer(make_network(2)) if kind == "plain" else diffusion
    torch.manual_seed(0)
    done = run(CrossSupervision(peer, propagation=propagation), network)
    reached = {}
    for name in ("seg", "pseudo", "seg_peer", "pseudo_peer", "propagation", "prototype"):
        for part, module in (("student", network), ("peer", peer), ("propagation", propagation)):
            slopes = torch.autograd.grad(
                done.terms[name], list(module.parameters()), retain_graph=True, allow_unused=True
            )
            if any(slope is not None for slope in slopes):
                reached.setdefault(name, set()).add(part)
    assert done.terms["propagation"] > 0
    assert reached == {
        "seg": {"student"}, "pseudo": {"student"}, "seg_peer": {"peer"}, "pseudo_peer": {"peer"},
        "propagation": {"student", "propagation"}, "prototype": {"propagation"},
    }  # fmt: skip
    done.loss.backward()
    for module in (network, peer):
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters() if parameter.ndim > 1)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: network])
def test_a_network_cannot_be_its_own_peer(wrap):
    network = make_network()
    with pytest.raises(ValueError, match="the peer's network is the student itself"):
        run(CrossSupervision(PlainPeer(wrap(network))), network)


# --- propagation ---


class Fixed(nn.Module):
    """In the place of the propagation: known losses."""

    def forward(self, labelled, unlabelled, peer, number):
        self.given = (labelled, unlabelled, peer, number)
        return torch.tensor(3.0), torch.tensor(5.0), {"propagation": torch.tensor(3.0)}


@pytest.mark.parametrize(("step", "weight"), [(0, 0), (19, 0), (20, 0.2), (50, 0.2)])
def test_propagation_enters_after_a_while_and_prototypes_at_once(step, weight):
    network, propagation = make_network(), Fixed()
    options = {"propagation_weight": 0.2, "weight": 0.5, "largest_component": False}
    peer, batch = scripted(), make_batch()
    bare = run(CrossSupervision(peer, **options), network, batch, step)
    done = run(CrossSupervision(peer, propagation=propagation, **options), network, batch, step)
    more = 5 + 0.5 * sigmoid_ramp(step, 40) * weight * 3
    assert done.loss.item() == pytest.approx(bare.loss.item() + more, rel=1e-6)
    assert done.terms.keys() - bare.terms.keys() == {"propagation"}
    labelled, unlabelled, seen, number = propagation.given
    assert labelled is done.labelled and number == step and seen.logits is peer.logits
    assert torch.equal(network.classifier(unlabelled), network(batch["unlabeled"])) and unlabelled.requires_grad


# --- agreement ---


def test_agreement_by_hand():
    """Foreground of either network, the images of each tenth of the noise apart."""
    labels = torch.tensor([[0, 0, 1, 2], [1, 1, 0, 0], [0, 0, 0, 0], [2, 2, 2, 0]])
    found = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 2, 2, 1]])
    logits = nn.functional.one_hot(found, 3).movedim(-1, 1).float()
    reliable = torch.ones(4, dtype=torch.bool)
    plain = agreement(labels, Seen(logits, logits, reliable))
    assert {name: value.item() for name, value in plain.items()} == {"agreement": pytest.approx(5 / 9)}
    noise = torch.tensor([700 / 1000, 0.699, 0.7, 0.799])
    shares = agreement(labels, Seen(logits, logits, reliable, noise))
    assert {name: value.item() for name, value in shares.items()} == {
        "agreement/0.6": pytest.approx(2 / 2), "agreement/0.7": pytest.approx(3 / 7),
    }  # fmt: skip
    shares = agreement(labels[:3], Seen(logits[:3], logits[:3], reliable[:3], torch.tensor([0.0, 0.3, 0.9])))
    assert shares.keys() == {"agreement/0.0", "agreement/0.3"}  # the third image has no foreground
