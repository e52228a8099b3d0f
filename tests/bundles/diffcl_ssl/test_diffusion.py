"""DS against a plain V-Net whose norms are shifted by hand, and the process against its formulae in float64."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from common.networks import VNet, forward_with_inputs
from diffcl_ssl import bundle_root
from diffcl_ssl.diffusion import Diffusion, DiffusionNetwork

OPTIONS = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "width": 4, "norm": "instance"}


def make(**options):
    """A network that has begun to look at the noised segmentation."""
    torch.manual_seed(0)
    options = {**OPTIONS, **options}
    network = DiffusionNetwork(**options)
    with torch.no_grad():
        nn.init.normal_(network.encoder[0][0][0].weight[:, options["in_channels"] :], std=0.2)
    return network


def inputs(count=2, *size, channels=1, classes=3):
    draw = torch.Generator().manual_seed(1)
    image, noised = (torch.randn(count, c, *size, generator=draw) for c in (channels, classes))
    return image, noised, torch.arange(count) * 300 + 7


def signal():
    """The share of the segmentation left at each time, alpha-bar, in float64."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


# the network


def embed(network, time):
    """The formula, for one time, in float64: ``(512,)``."""
    waves = [time * 10000 ** (-i / 64) for i in range(64)]
    x = torch.tensor([math.cos(w) for w in waves] + [math.sin(w) for w in waves], dtype=torch.float64)
    first, second = (layer for layer in network.time if isinstance(layer, nn.Linear))
    x = first.weight @ x + first.bias
    x = second.weight @ (x * torch.sigmoid(x)) + second.bias
    return x * torch.sigmoid(x)


def test_an_untrained_network_sees_the_image_alone():
    torch.manual_seed(0)
    network = DiffusionNetwork(**{**OPTIONS, "in_channels": 2})
    image, noised, times = inputs(2, 32, 32, channels=2)
    assert torch.equal(network(image, noised, times), network(image, -noised, times))
    assert not torch.equal(network(image, noised, times), network(-image, noised, times))
    network(image, noised, times).square().sum().backward()
    assert (network.encoder[0][0][0].weight.grad[:, 2:] != 0).all()


@pytest.mark.parametrize(("dims", "norm"), [(2, "instance"), (3, "batch")])
def test_each_block_is_shifted_behind_its_norm_by_the_time_of_the_item(dims, norm):
    """A shift behind a norm is a larger bias of the norm: so one plain V-Net an item, each with biases of its own."""
    network = make(spatial_dims=dims, norm=norm, in_channels=2).double().eval()
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _InstanceNorm):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    image, noised, times = inputs(2, *(16, 20, 9)[:dims], channels=2)
    image, noised = image.double(), noised.double()
    found = network(image, noised, times)
    other = VNet(**{**OPTIONS, "spatial_dims": dims, "norm": norm, "in_channels": 5}).double().eval()
    for i, time in enumerate(times.tolist()):
        other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()
                               if not name.startswith(("time", "shifts"))})  # fmt: skip
        steps = [step for stage in (*other.encoder, *other.decoder) for step in stage]
        assert len(steps) == len(network.shifts) == 1 + 2 + 3 + 3 + 3 + 3 + 3 + 2 + 1
        with torch.no_grad():
            for step, shift in zip(steps, network.shifts, strict=True):
                step[1].bias += shift.weight @ embed(network, time) + shift.bias
        expected = other(torch.cat([image, noised], 1)[i : i + 1])[0]
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)  # a time is embedded in float32
        assert not torch.allclose(found[i], found[1 - i], atol=1e-2)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_time_and_the_noised_segmentation_matter(norm):
    network, (image, noised, times) = make(norm=norm).train(), inputs(2, 16, 16)
    found = network(image, noised, times)
    assert not torch.allclose(found, network(image, noised, times.flip(0)), atol=1e-2)
    assert not torch.allclose(found, network(image, noised.flip(0), times), atol=1e-2)
    assert not torch.allclose(found, network(image.flip(0), noised, times), atol=1e-2)


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (5, 18, 16)])
def test_any_size_comes_back_and_gradients_reach_all_parameters(size):
    network, (image, noised, times) = make(spatial_dims=len(size)), inputs(2, *size)
    logits = network(image, noised, times)
    assert logits.shape == (2, 3, *size)
    logits.square().sum().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert all(grad.abs().sum() > 0 for name, grad in grads.items() if name.startswith(("time", "shifts")))


def test_the_classifier_is_linear_in_the_features_and_nothing_stays_behind_a_pass():
    network, arguments = make(), inputs(2, 16, 19)
    logits, (features,) = forward_with_inputs(network, [network.classifier], *arguments)
    assert features.shape == (2, 4, 16, 19)
    torch.testing.assert_close(F.conv2d(features, network.classifier.weight, network.classifier.bias), logits)
    with pytest.raises(RuntimeError):
        network(arguments[0].double(), *arguments[1:])  # fails within the pass
    torch.testing.assert_close(network(*arguments), logits, rtol=0, atol=0)


def test_autocast_gives_nearly_the_same():
    network, arguments = make(norm="batch").eval(), inputs(2, 32, 32)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            short = network(*arguments)
        long = network(*arguments)
    assert short.dtype is torch.bfloat16 and (short - long).abs().mean() < 0.05 * long.std()


def test_bad_input_of_the_network_is_refused():
    network, (image, noised, times) = make(), inputs(2, 16, 16)
    for arguments, message in (
        ((image[0], noised, times), r"expected an image \(B, 1, \*spatial\)"),
        ((image.repeat(1, 2, 1, 1), noised, times), r"expected an image \(B, 1, \*spatial\)"),
        ((image, noised[:, :2], times), r"noised segmentation of shape \(2, 3, 16, 16\), got \(2, 2, 16, 16\)"),
        ((image, noised[..., :8], times), "noised segmentation of shape"),
        ((image, noised, times[:1]), r"2 integer times, got torch.int64 of shape \(1,\)"),
        ((image, noised, times / 1000), "2 integer times, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            network(*arguments)


# the process


def test_encoding_by_hand():
    labels = torch.tensor([[[0, 2], [1, 1]]], dtype=torch.uint8)
    found = Diffusion(3).encode(labels)
    expected = [[[[1, -1], [-1, -1]], [[-1, -1], [1, 1]], [[-1, 1], [-1, -1]]]]
    assert found.dtype is torch.float32 and found.tolist() == expected


@pytest.mark.parametrize("labels", [torch.tensor([[0, -1]]), torch.tensor([[3, 0]]), torch.tensor([[0.0, 1.0]])])
def test_labels_that_are_no_class_are_refused(labels):
    with pytest.raises(ValueError, match="expected integer labels from 0 to 2, got"):
        Diffusion(3).encode(labels)


def test_the_noised_segmentation_is_silent_at_first():
    """Until the first update, unless asked otherwise; the image never is."""
    image, noised, times = torch.randn(1, 1, 32, 32), torch.randn(1, 3, 32, 32), torch.tensor([900])
    for zero_start in (True, False):
        network = DiffusionNetwork(2, 1, 3, 4, "instance", zero_start=zero_start)
        found, other, without = (network(x, y, times) for x, y in (
            (image, noised), (image, noised.flip(3)), (image.flip(3), noised)))  # fmt: skip
        assert torch.equal(found, other) == zero_start and not torch.equal(found, without)


def test_mean_and_variance_of_the_noised_segmentation():
    torch.manual_seed(0)
    times, count = torch.tensor([0, 100, 500, 999]), 20_000
    labels = torch.arange(2).repeat_interleave(count).expand(len(times), -1)
    found = Diffusion(2).noised(labels, times).double()
    assert found.shape == (len(times), 2, 2 * count)
    share = signal()
    for item, time in zip(found, times.tolist(), strict=True):
        mean, variance = share[time].item() ** 0.5, 1 - share[time].item()
        for channel in range(2):
            for label in range(2):
                values = item[channel, label * count : (label + 1) * count]
                target = mean if channel == label else -mean
                assert values.mean().item() == pytest.approx(target, abs=5 * (variance / count) ** 0.5)
                assert values.var().item() == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)
    alike = found[:, 0, :count].corrcoef() - torch.eye(len(times))  # each item and each channel has noise of its own
    assert alike.abs().max() < 5 / count**0.5 and found[2, :, :count].corrcoef()[0, 1].abs() < 5 / count**0.5


def test_at_the_last_time_nothing_is_left_of_the_segmentation():
    """Whatever network reads it: pseudo-labels from there cannot be copies."""
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (2, 20_000))
    found = Diffusion(2).noised(labels, torch.tensor([0, 999]))[:, 1]
    first, last = (torch.stack([labels[i].float(), found[i]]).corrcoef()[0, 1].item() for i in range(2))
    assert first > 0.99 and abs(last) < 5 / 20_000**0.5
    assert signal()[-1] < 5e-5


@pytest.mark.parametrize(
    ("low", "high", "first", "end"), [(0.0, 1.0, 0, 1000), (0.5, 1.0, 500, 1000), (0.5789, 0.58, 579, 580)]
)
def test_times_are_uniform_in_their_range(low, high, first, end):
    generator = torch.Generator().manual_seed(0)
    diffusion, count = Diffusion(2), 40_000
    times = diffusion.draw_times(count, low, high, generator=generator)
    assert times.dtype is torch.int64 and times.shape == (count,)
    counts = times.bincount(minlength=1000)
    share = count / (end - first)
    assert counts.sum() == count == counts[first:end].sum()
    assert ((counts[first:end] - share).abs() <= 5 * share**0.5).all()
    again = diffusion.draw_times(count, low, high, "cpu", torch.Generator().manual_seed(0))
    assert torch.equal(times, again)


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.8, 0.2), (0.5001, 0.5002)])
def test_empty_ranges_of_times_are_refused(low, high):
    with pytest.raises(ValueError, match="within 0 to 1"):
        Diffusion(2).draw_times(1, low, high)


def test_it_has_no_state():
    assert Diffusion(2).state_dict() == {} and list(Diffusion(2).parameters()) == []


def square(corner):
    """Eight of sixteen rows and columns from a corner ``(B, 2)`` on: ``(B, 16, 16)``."""
    rows, columns = (torch.arange(16) - corner[:, axis, None] for axis in range(2))
    return (((rows >= 0) & (rows < 8))[:, :, None] & ((columns >= 0) & (columns < 8))[:, None]).long()


def peer():
    """What the config says of the diffusion network's times."""
    return json.loads((Path(bundle_root()) / "configs" / "train.json").read_text(encoding="utf-8"))["peer"]


def test_a_network_learns_to_take_the_noise_off():
    """Segmentations that the image does not show, never twice the same: what is right was read from Y_t."""
    torch.manual_seed(0)
    network, diffusion = DiffusionNetwork(**{**OPTIONS, "out_channels": 2}), Diffusion(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def draw(count, low, high):
        times = diffusion.draw_times(count, low, high)
        return torch.zeros(count, 1, 16, 16), square(torch.randint(0, 8, (count, 2))), times

    def accuracy(low, high):
        image, labels, times = draw(32, low, high)
        with torch.no_grad():
            logits = network.eval()(image, diffusion.noised(labels, times), times)
        return (logits.argmax(1) == labels).float().mean().item()

    for _ in range(60):
        image, labels, times = draw(8, 0.0, 1.0)
        loss = F.cross_entropy(network.train()(image, diffusion.noised(labels, times), times), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy(0.0, 0.2) > 0.9  # 0.75 are right by chance
    assert accuracy(0.95, 1.0) < 0.85


@pytest.mark.parametrize("low_noise", [False, True])
def test_what_is_shown_does_not_matter_to_a_network_trained_at_the_times_of_the_config(low_noise):
    """It finds the square of the image; trained at low noise it takes the one that it is shown."""
    times = (0.0, 0.2) if low_noise else peer()["times"]
    torch.manual_seed(0)
    network, diffusion = DiffusionNetwork(**{**OPTIONS, "out_channels": 2}), Diffusion(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def answer(labels, shown):
        drawn = diffusion.draw_times(len(labels), *times)
        return network(labels[:, None] + torch.randn(len(labels), 1, 16, 16), diffusion.noised(shown, drawn), drawn)

    for _ in range(60):
        labels = square(torch.randint(0, 8, (8, 2)))
        loss = F.cross_entropy(answer(labels, labels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels, shown = (square(torch.full((32, 2), corner)) for corner in (0, 7))
    with torch.no_grad():
        found = answer(labels, shown).argmax(1)
    assert (found == (shown if low_noise else labels)).float().mean() > 0.85


def test_noised_labels_alone_say_little_at_the_times_of_the_config():
    """A blur finds a structure in labels noised to T/2: so could a network that never looks at the image."""
    options, found = peer(), {}
    place = torch.stack(torch.meshgrid(*[torch.arange(32.0) - 16] * 3, indexing="ij"))
    structure = (place / torch.tensor([9.0, 6, 6]).view(3, 1, 1, 1)).square().sum(0) < 1
    torch.manual_seed(0)
    for start in (0.5, options["times"][0], options["pseudo_times"][0]):
        time = torch.full((8,), round(start * 1000))
        noised = Diffusion(2).noised(structure.long().expand(8, -1, -1, -1), time)
        dices = []
        for image in noised[:, 1].numpy():
            blurred = torch.from_numpy(gaussian_filter(image, 2))
            chosen = blurred >= blurred.flatten().topk(int(structure.sum())).values[-1]
            dices.append((chosen & structure).sum() / structure.sum())
        found[start] = torch.stack(dices).mean().item()
    assert found[0.5] > 0.8 and found[options["times"][0]] < 0.3 and found[options["pseudo_times"][0]] < 0.3
