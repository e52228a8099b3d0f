import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from common.networks import VNet, forward_with_features


def make(**options):
    torch.manual_seed(0)
    return VNet(**{"spatial_dims": 2, "width": 2, "out_channels": 3, **options})


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Reference:
    """The network by its description: every convolution and norm taken in the order in which they are listed here."""

    def __init__(self, network, dims):
        def pairs(stages):
            """(convolution, norm) of each step of each stage."""
            kinds = (_ConvNd, _BatchNorm)
            found = [[part for part in stage.modules() if isinstance(part, kinds)] for stage in stages]
            return [list(zip(parts[::2], parts[1::2], strict=True)) for parts in found]

        self.encoder, self.decoder = pairs(network.encoder), pairs(network.decoder)
        self.downs, self.ups = pairs(network.downs[1:]), pairs(network.ups)
        self.classifier = network.classifier
        self.conv, self.up = (F.conv2d, F.conv_transpose2d) if dims == 2 else (F.conv3d, F.conv_transpose3d)

    def finish(self, x, norm):
        axes, shape = [0, *range(2, x.ndim)], (1, -1) + (1,) * (x.ndim - 2)
        x = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x * norm.weight.view(shape) + norm.bias.view(shape)
        return torch.where(x < 0, 0.1 * x, x)

    def stage(self, x, steps, count):
        assert len(steps) == count
        for conv, norm in steps:
            x = self.finish(self.conv(x, conv.weight, conv.bias, padding=1), norm)
        return x

    def __call__(self, x):
        skips = []
        for level, count in enumerate((1, 2, 3, 3, 3)):
            if level:
                ((conv, norm),) = self.downs[level - 1]
                x = self.finish(self.conv(x, conv.weight, conv.bias, stride=2), norm)
            x = self.stage(x, self.encoder[level], count)
            skips.append(x)
        for level, count in enumerate((3, 3, 2, 1)):
            ((conv, norm),) = self.ups[level]
            x = self.finish(self.up(x, conv.weight, conv.bias, stride=2), norm) + skips[3 - level]
            x = self.stage(x, self.decoder[level], count)
        return x, self.conv(x, self.classifier.weight, self.classifier.bias)


def hand_count(dims, channels, classes, width):
    """Weights and biases of every convolution, and two numbers a channel for the norm behind it."""
    def step(before, after, kernel):
        return before * after * kernel**dims + after + 2 * after

    w = [width, 2 * width, 4 * width, 8 * width, 16 * width]
    total = step(channels, w[0], 3)
    for level, count in ((1, 2), (2, 3), (3, 3), (4, 3)):
        total += step(w[level - 1], w[level], 2) + count * step(w[level], w[level], 3)
    for level, count in ((3, 3), (2, 3), (1, 2), (0, 1)):
        total += step(w[level + 1], w[level], 2) + count * step(w[level], w[level], 3)
    return total + width * classes + classes


@pytest.mark.parametrize(("dims", "width", "millions"), [(3, 16, 9.45), (3, 8, 2.36), (2, 16, None)])
def test_parameter_counts_are_the_published_ones(dims, width, millions):
    with torch.device("meta"):
        network = VNet(spatial_dims=dims, width=width)
    count = sum(p.numel() for p in network.parameters())
    assert count == hand_count(dims, 1, 2, width)
    assert millions is None or round(count / 1e6, 2) == millions


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 3, 48, 32)), (3, (2, 3, 16, 32, 16))])
def test_the_network_is_the_one_described(dims, shape):
    network = make(spatial_dims=dims, in_channels=3).double().train()
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    image = noise(*shape).double()
    features, logits = Reference(network, dims)(image)
    found, inside = forward_with_features(network, image)
    torch.testing.assert_close(inside, features, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found, logits, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("size", [(1, 1), (7, 33), (16, 16), (1, 1, 1), (5, 18, 16)])
def test_any_size_comes_back_with_finite_gradients(size, norm):
    network = make(spatial_dims=len(size), norm=norm).train()
    logits, features = forward_with_features(network, noise(1, 1, *size))
    assert logits.shape == (1, 3, *size) and features.shape == (1, 2, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_classifier_is_linear_in_the_features(dims):
    """One matrix product per voxel."""
    network, image = make(spatial_dims=dims, width=4).eval(), noise(2, 1, *(19, 16, 5)[:dims])
    with torch.no_grad():
        logits, features = forward_with_features(network, image)
    assert features.shape[1] == 4 > logits.shape[1] and features.min() < 0 < features.max()
    expected = torch.einsum("ka,ba...->bk...", network.classifier.weight.flatten(1), features)
    expected += network.classifier.bias.view(3, *(1,) * dims)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_dropout_takes_whole_channels_of_the_deepest_and_the_last_map_in_training_only():
    network, image = make(width=8, dropout=0.5), noise(4, 1, 32, 32)
    maps = {}
    network.ups[0].register_forward_pre_hook(lambda module, inputs: maps.update(deepest=inputs[0]))
    network.classifier.register_forward_pre_hook(lambda module, inputs: maps.update(last=inputs[0]))
    plain = {}
    network.encoder[-1].register_forward_hook(lambda module, inputs, output: plain.update(deepest=output))
    network.decoder[-1].register_forward_hook(lambda module, inputs, output: plain.update(last=output))
    for training in (True, False):
        with torch.no_grad():
            network.train(training)(image)
        for name, before in plain.items():
            factors = {False: {1.0}, True: {0.0, 2.0}}[training]
            alive = before.flatten(2).amax(2) > 0
            ratio = (maps[name].flatten(2).amax(2) / before.flatten(2).amax(2))[alive]
            assert set(ratio.round(decimals=5).tolist()) == factors, name
            for factor in factors:
                picked = (maps[name].flatten(2).amax(2) == factor * before.flatten(2).amax(2)) & alive
                torch.testing.assert_close(maps[name][picked], factor * before[picked])


def test_without_dropout_training_repeats_itself():
    network, image = make(norm="instance").train(), noise(2, 1, 32, 16)
    assert torch.equal(network(image), network(image))
    torch.testing.assert_close(network(image), network.eval()(image))


@pytest.mark.parametrize(("dims", "norm", "sizes"), [
    (2, "batch", [(48, 32), (9, 37)]), (3, "instance", [(16, 32, 16), (5, 18, 20)]),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_script_equals_eager(dims, norm, sizes):
    network = make(spatial_dims=dims, norm=norm, dropout=0.3).eval()
    scripted = torch.jit.script(network)
    for size in sizes:
        image = noise(2, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(torch.jit.Error, match="expected an image"):
        scripted(torch.zeros(1, 3, *sizes[0]))


def test_instance_norm_sees_one_image():
    network, image = make(norm="instance").double(), noise(3, 1, 32, 32).double()
    torch.testing.assert_close(network.train()(image)[:1], network.eval()(image[:1]))


def test_padding_does_not_change_the_middle_of_an_image():
    network, image = make().eval(), noise(1, 1, 320, 320)
    with torch.no_grad():
        whole, part = network(image), network(image[..., :315, :311])
    torch.testing.assert_close(part[..., :96, :96], whole[..., :96, :96], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(part[..., -1, -1], whole[..., 314, 310], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32), (1, 3, 32, 32, 32)])
def test_an_image_of_another_shape_is_refused_with_what_was_expected(shape):
    with pytest.raises(ValueError, match=r"expected an image \(B, 3, \*spatial\) with 2 spatial axes"):
        make(in_channels=3)(torch.zeros(shape))


@pytest.mark.parametrize("options", [{"norm": "group"}, {"spatial_dims": 1}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3 and norm one of"):
        make(**options)
