import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgcg_dg.network import Decoder, Encoder, UNet

CONVS, NORMS = (nn.Conv2d, nn.Conv3d), (nn.BatchNorm2d, nn.BatchNorm3d)


def make(**kwargs):
    torch.manual_seed(0)
    return UNet(**{"width": 4, "in_channels": 1, **kwargs})


def blurred(*shape):
    """A random image whose neighbours resemble each other."""
    torch.manual_seed(1)
    pool = F.avg_pool2d if len(shape) == 4 else F.avg_pool3d
    return 3 * pool(torch.randn(*shape[:2], *(n + 2 for n in shape[2:])), 3, 1)


class Reference:
    """The network by its description: every convolution and norm taken in the order in which they are listed there.

    The up-sampling stands where the description has it, before the 1x1 convolution.
    """

    def __init__(self, network, dims):
        self.layers = iter([m for m in network.modules() if isinstance(m, (*CONVS, *NORMS))])
        self.conv = F.conv2d if dims == 2 else F.conv3d
        self.pool = F.max_pool2d if dims == 2 else F.max_pool3d
        self.up_mode = "bilinear" if dims == 2 else "trilinear"

    def convolve(self, x, kernel):
        layer = next(self.layers)
        assert layer.kernel_size == (kernel,) * (x.ndim - 2)
        return self.conv(x, layer.weight, layer.bias, padding=kernel // 2)

    def normalise(self, x):
        layer, shape = next(self.layers), (1, -1) + (1,) * (x.ndim - 2)
        axes = [0, *range(2, x.ndim)]
        x = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * layer.weight.view(shape) + layer.bias.view(shape)

    def step(self, x, kernel=3):
        return F.relu(self.normalise(self.convolve(x, kernel)))

    def __call__(self, x):
        skips = []
        for level in range(5):
            x = self.normalise(self.convolve(self.pool(x, 2) if level else x, 3))
            x = self.step(self.step(x))
            skips.append(x)
        deep = skips.pop()
        for level in range(4):
            x = self.step(x) if level else x
            x = F.interpolate(x, scale_factor=2, mode=self.up_mode, align_corners=False)
            x = torch.cat([self.step(x, 1), skips.pop()], 1)
            x = self.step(x)
        logits = self.convolve(x, 3)
        assert next(self.layers, None) is None
        return deep, x, logits


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        network = UNet(spatial_dims=2, in_channels=3, out_channels=2)
    assert sum(p.numel() for p in network.encoder.parameters()) == 1_967_904
    assert sum(p.numel() for p in network.parameters()) == 3_185_266


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 3, 48, 32)), (3, (2, 3, 16, 32, 16))])
def test_the_network_is_the_one_described(dims, shape):
    network = make(spatial_dims=dims, in_channels=3, out_channels=4).double().train()
    for layer in network.modules():
        if isinstance(layer, NORMS):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    image = blurred(*shape).double()
    deep, penultimate, logits = Reference(network, dims)(image)
    features = network.features(image)
    torch.testing.assert_close(features[0], deep, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(features[1], penultimate, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(network(image), logits, rtol=1e-7, atol=1e-9)


def test_the_head_reads_the_penultimate_map_which_has_full_resolution():
    network = make(in_channels=3, width=16).eval()
    image = blurred(2, 3, 50, 37)
    with torch.no_grad():
        deep, penultimate = network.features(image)
        assert deep.shape == (2, 256, 4, 3) and penultimate.shape == (2, 32, 50, 37)
        assert penultimate.min() == 0 and penultimate.max() > 0
        torch.testing.assert_close(network(image), network.head(penultimate), rtol=0, atol=0)


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("size", [(1, 1), (3, 70), (16, 16), (17, 33), (32, 32), (1, 1, 1), (5, 18, 16)])
def test_any_size_comes_back_with_finite_gradients(size, norm):
    network = make(spatial_dims=len(size), out_channels=3, norm=norm).train()
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


@pytest.mark.parametrize(("dims", "norm", "sizes"), [
    (2, "batch", [(48, 32), (50, 37)]), (2, "group", [(48, 32), (9, 9)]), (3, "instance", [(16, 32, 16), (5, 18, 20)]),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_script_equals_eager(dims, norm, sizes):
    network = make(spatial_dims=dims, norm=norm).eval()
    scripted = torch.jit.script(network)
    for size in sizes:
        image = blurred(2, 1, *size)
        with torch.no_grad():
            torch.testing.assert_close(scripted(image), network(image), rtol=1e-5, atol=1e-5)
    with pytest.raises(torch.jit.Error, match="expected an image"):
        scripted(torch.zeros(1, 3, *sizes[0]))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_first_weights(norm):
    network = make(width=16, norm=norm)
    convs = [m for m in network.modules() if isinstance(m, CONVS)]
    norms = [m for m in network.modules() if isinstance(m, (*NORMS, nn.InstanceNorm2d, nn.GroupNorm))]
    assert len(convs) == 15 + 11 + 1 and len(norms) == 15 + 11
    for conv in convs:
        assert conv.bias is not None
        if conv.weight.numel() > 1000:  # kaiming by fan-out: variance 2 / (outputs x kernel area), enough draws to tell
            expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.08)
    assert all(layer.weight.eq(1).all() and layer.bias.eq(0).all() for layer in norms)


def test_norms_by_group_and_instance_see_one_image():
    for norm in ("group", "instance"):
        network, image = make(norm=norm).double(), blurred(3, 1, 32, 32).double()
        torch.testing.assert_close(network.train()(image)[:1], network.eval()(image[:1]))


def test_encoder_and_decoder_stand_alone():
    maps = Encoder(2, 1, 4)(blurred(2, 1, 32, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [(4 * 2**i, 32 // 2**i, 48 // 2**i) for i in range(5)]
    assert Decoder(2, 4)(maps).shape == (2, 8, 32, 48)


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32), (1, 3, 32, 32, 32)])
def test_an_image_of_another_shape_is_refused_with_what_was_expected(shape):
    with pytest.raises(ValueError, match=r"expected an image \(B, 3, \*spatial\) with 2 spatial axes") as error:
        make(in_channels=3)(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("options", [{"norm": "layer"}, {"spatial_dims": 1}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3 and norm one of"):
        make(**options)
