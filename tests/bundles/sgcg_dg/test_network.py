import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.networks.features import forward_with_inputs
from sgcg_dg.network import Decoder, Encoder, UNet


def make(**kwargs):
    torch.manual_seed(0)
    return UNet(**{"width": 4, "in_channels": 1, **kwargs})


def blurred(*shape):
    """A random image whose neighbours resemble each other."""
    torch.manual_seed(1)
    return 3 * F.avg_pool2d(torch.randn(*shape[:2], *(n + 2 for n in shape[2:])), 3, 1)


class Reference:
    """The network by its description: every convolution and norm taken in the order in which they are listed there.

    The up-sampling stands where the description has it, before the 1x1 convolution.
    """

    def __init__(self, network):
        self.layers = iter([m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))])

    def convolve(self, x, kernel):
        layer = next(self.layers)
        assert layer.kernel_size == (kernel, kernel)
        return F.conv2d(x, layer.weight, layer.bias, padding=kernel // 2)

    def normalise(self, x):
        layer = next(self.layers)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1)

    def step(self, x, kernel=3):
        return F.relu(self.normalise(self.convolve(x, kernel)))

    def __call__(self, x):
        skips = []
        for level in range(5):
            x = self.normalise(self.convolve(F.max_pool2d(x, 2) if level else x, 3))
            x = self.step(self.step(x))
            skips.append(x)
        deep = skips.pop()
        for level in range(4):
            x = self.step(x) if level else x
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = torch.cat([self.step(x, 1), skips.pop()], 1)
            x = self.step(x)
        logits = self.convolve(x, 3)
        assert next(self.layers, None) is None
        return deep, x, logits


def levels(network, image):
    """The deepest and the penultimate map and the logits, from the parts that its description names."""
    logits, (maps, penultimate) = forward_with_inputs(network, [network.decoder, network.classifier], image)
    return maps[-1], penultimate, logits


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        network = UNet(in_channels=3, out_channels=2)
    assert sum(p.numel() for p in network.encoder.parameters()) == 1_967_904
    assert sum(p.numel() for p in network.parameters()) == 3_185_266


def test_the_network_is_the_one_described():
    network = make(in_channels=3, out_channels=4).double().train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    image = blurred(2, 3, 48, 32).double()
    for found, expected in zip(levels(network, image), Reference(network)(image), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_the_classifier_reads_the_penultimate_map_which_has_full_resolution():
    network = make(in_channels=3, width=16).eval()
    image = blurred(2, 3, 50, 37)
    with torch.no_grad():
        deep, penultimate, logits = levels(network, image)
        assert deep.shape == (2, 256, 4, 3) and penultimate.shape == (2, 32, 50, 37)
        assert penultimate.min() == 0 and penultimate.max() > 0
        torch.testing.assert_close(network.classifier(penultimate), logits, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 70), (16, 16), (17, 33), (32, 32)])
def test_any_size_comes_back_with_finite_gradients(size):
    network = make(out_channels=3).train()
    logits = network(blurred(1, 1, *size))
    assert logits.shape == (1, 3, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_padding_does_not_change_the_middle_of_an_image():
    network = make(in_channels=3).eval()
    image = blurred(1, 3, 320, 320)
    with torch.no_grad():
        whole, part = network(image), network(image[..., :315, :311])
    torch.testing.assert_close(part[..., :96, :96], whole[..., :96, :96], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(part[..., -1, -1], whole[..., 314, 310], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_script_equals_eager():
    network = make().eval()
    scripted = torch.jit.script(network)
    for size in ((48, 32), (50, 37), (9, 9)):
        image = blurred(2, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(torch.jit.Error, match="expected an image"):
        scripted(torch.zeros(1, 3, 48, 32))


def test_first_weights():
    network = make(width=16)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == 15 + 11 + 1 and len(norms) == 15 + 11
    for conv in convs:
        assert conv.bias is not None
        if conv.weight.numel() > 1000:  # kaiming by fan-out: variance 2 / (outputs x kernel area), enough draws to tell
            expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.08)
    assert all(layer.weight.eq(1).all() and layer.bias.eq(0).all() for layer in norms)


def test_encoder_and_decoder_stand_alone():
    maps = Encoder(1, 4)(blurred(2, 1, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [(4 * 2**i, 32 // 2**i, 48 // 2**i) for i in range(5)]
    assert Decoder(4)(maps).shape == (2, 8, 32, 48)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32), (1, 3, 32, 32, 32)])
def test_an_image_of_another_shape_is_refused_with_what_was_expected(shape):
    with pytest.raises(ValueError, match=r"expected an image \(B, 3, \*spatial\) with 2 spatial axes") as error:
        make(in_channels=3)(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)
