"""What the peers are shown, which images they are reliable on, and of what their pseudo-labels are made."""

import pytest
import torch
from torch import nn

from diffcl_ssl.diffusion import Diffusion
from diffcl_ssl.peers import DiffusionPeer, PlainPeer

CLASSES, WIDTH, STEPS = 3, 6, 1000


class Denoiser(nn.Module):
    """In the place of a diffusion network: two layers and a time that is added."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Conv2d(1 + CLASSES, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.Dropout(0.3))
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)
        self.shown = []

    def forward(self, image, noised, times):
        self.shown.append((image, noised, times, self.training, torch.is_grad_enabled()))
        return self.classifier(self.body(torch.cat([image, noised], 1)) + times.view(-1, 1, 1, 1) / STEPS)


def make(wrap=None, **options):
    network = wrap(Denoiser()) if wrap else Denoiser()
    return DiffusionPeer(network, Diffusion(CLASSES), **options)


def make_images(count=2):
    torch.manual_seed(4)
    return torch.randn(count, 1, 8, 8), torch.randint(0, CLASSES, (count, 8, 8))


def test_a_plain_peer_sees_the_image_alone():
    torch.manual_seed(0)
    network = nn.Sequential()
    network.body, network.classifier = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, CLASSES, 1)
    image, labels = make_images()
    for wrapped in (network, nn.DataParallel(network)):
        peer = PlainPeer(wrapped)
        seen = peer(image, labels)
        assert torch.equal(seen.logits, network(image)) and torch.equal(seen.features, network.body(image))
        assert seen.reliable.tolist() == [True, True] and seen.noise is None and seen.logits.requires_grad


def test_a_diffusion_peer_sees_the_image_and_noised_labels():
    """Each image at a time of its own; features are the classifier's input, with the gradient of the one pass."""
    peer = make()
    image, labels = make_images()
    torch.manual_seed(9)
    seen = peer(image, labels)
    torch.manual_seed(9)
    times = peer.diffusion.draw_times(2)
    noised = peer.diffusion.noised(labels, times)
    ((shown, label, time, training, _),) = peer.network.shown
    assert shown is image and torch.equal(label, noised) and torch.equal(time, times) and training
    assert torch.equal(seen.noise, times / STEPS) and times[0] != times[1]
    assert torch.equal(peer.network.classifier(seen.features), seen.logits)
    seen.logits.sum().backward()
    assert all(parameter.grad is not None for parameter in peer.network.parameters())
    assert not peer.network.classifier._forward_pre_hooks


def test_the_classifier_is_found_inside_a_wrapper():
    assert make(nn.DataParallel)(*make_images()).features.shape == (2, WIDTH, 8, 8)
    with pytest.raises(ValueError, match="Sequential.classifier: expected nn.Linear or .*found no such layer"):
        make(nn.Sequential)(*make_images())


@pytest.mark.parametrize(
    ("times", "pseudo_times"),
    [((0, 1), (0.5, 1)), ((0, 1), (0.29, 0.58)), ((0.2, 0.9), (0, 1)), ([0.3, 0.6], [0.5, 1])],
)
def test_only_images_at_high_noise_are_reliable(times, pseudo_times):
    seen = make(times=times, pseudo_times=pseudo_times)(*make_images(400))
    steps = [round(noise * STEPS) for noise in seen.noise.tolist()]
    first, end = (round(share * STEPS) for share in times)
    assert first <= min(steps) < first + 20 and end - 20 < max(steps) < end
    low, high = (round(share * STEPS) for share in pseudo_times)
    assert seen.reliable.tolist() == [low <= t < high for t in steps] and seen.reliable.any()


def test_the_network_is_in_the_state_once_under_the_same_names_in_a_wrapper():
    expected = [f"network.{name}" for name in Denoiser().state_dict()]
    for wrap in (None, nn.DataParallel):
        assert list(make(wrap).state_dict()) == expected
    assert type(make(nn.DataParallel).network) is Denoiser


@pytest.mark.parametrize(
    "ranges",
    [{"times": (0.0, 0.4)}, {"times": (0.5, 0.5)}, {"times": (-0.1, 1.0)}, {"pseudo_times": (0.5, 1000)},
     {"times": (0.0, 0.5), "pseudo_times": (0.5, 1.0)}, {"times": (0.0, 0.5), "pseudo_times": (0.4998, 1.0)}],
)  # fmt: skip
def test_ranges_without_reliable_images_are_refused(ranges):
    with pytest.raises(ValueError, match="from low to above it within 0 to 1, with a step of the 1000 in common, got"):
        make(**ranges)


def test_bad_input_is_refused():
    image, labels = make_images()
    labels[0, 0, 0] = -1
    with pytest.raises(ValueError, match="expected integer labels from 0 to 2"):
        make()(image, labels)
