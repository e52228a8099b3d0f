import pytest
import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from apscl_fewshot.encoder import LightEncoder, ResNetEncoder

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3)}
# entries and parameters of torchvision's state dicts without `fc`, as its model pages give them
PUBLISHED = {
    "resnet18": (120, 11_689_512 - 513_000),
    "resnet101": (624, 44_549_160 - 2_049_000),
}


def tiny(name="resnet18", **kwargs):
    torch.manual_seed(0)
    return ResNetEncoder(name, **{"width": 8, "feat_dim": 8, **kwargs})


def torchvision_shapes(name):
    """Names and shapes of torchvision's ResNet by its rule of construction."""
    deep = name == "resnet101"

    def norm(key, channels):
        vectors = {f"{key}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        return {**vectors, f"{key}.num_batches_tracked": ()}

    shapes, before = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}, 64
    for stage, (count, width) in enumerate(zip(BLOCKS[name], (64, 128, 256, 512), strict=True), 1):
        after = width * 4 if deep else width
        for block in range(count):
            key = f"layer{stage}.{block}."
            kernels = [(width, before, 1), (width, width, 3), (after, width, 1)] if deep else [
                (width, before, 3), (width, width, 3)]  # fmt: skip
            for i, (out, into, size) in enumerate(kernels, 1):
                shapes |= {f"{key}conv{i}.weight": (out, into, size, size), **norm(f"{key}bn{i}", out)}
            if block == 0 and before != after:
                shapes |= {f"{key}downsample.0.weight": (after, before, 1, 1), **norm(f"{key}downsample.1", after)}
            before = after
    return shapes


@pytest.mark.parametrize("name", BLOCKS)
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        encoder = ResNetEncoder(name)
    found = {key: tuple(value.shape) for key, value in encoder.body.state_dict().items()}
    assert found == torchvision_shapes(name)
    assert (len(found), sum(p.numel() for p in encoder.body.parameters())) == PUBLISHED[name]
    assert encoder.projection.weight.shape == (256, 512 if name == "resnet18" else 2048, 1, 1)
    assert encoder.projection.bias is None
    assert encoder(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 256, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "resnet101"])
def test_the_map_has_an_eighth_of_the_images_size(name):
    encoder = tiny(name, in_channels=1, feat_dim=256).eval()
    assert encoder(torch.zeros(2, 1, 256, 256)).shape == (2, 256, 32, 32)
    for size in ((100, 75), (33, 64)):
        assert encoder(torch.zeros(1, 1, *size)).shape[2:] == tuple(-(-n // 8) for n in size)


def test_stride_is_traded_for_dilation():
    """Stride and dilation of block 0, dilation of the others: torchvision's ``replace_stride_with_dilation``."""
    body = tiny("resnet101").body
    for stage, (step, first, rest) in ((body.layer2, (2, 1, 1)), (body.layer3, (1, 1, 2)), (body.layer4, (1, 2, 4))):
        assert stage[0].conv2.stride == stage[0].downsample[0].stride == (step, step)
        assert stage[0].conv2.dilation == stage[0].conv2.padding == (first, first)
        assert all(block.conv2.dilation == block.conv2.padding == (rest, rest) for block in stage[1:])
        assert all(block.conv2.stride == (1, 1) for block in stage[1:])
        assert all(conv.stride == conv.dilation == (1, 1) for b in stage for conv in (b.conv1, b.conv3))


@pytest.mark.parametrize(("name", "block"), [("resnet18", "basic"), ("resnet101", "bottleneck")])
def test_every_fourth_place_of_the_map_is_that_of_a_strided_network(name, block):
    """MONAI's own ResNet with the same weights, which strides in layer3 and layer4."""
    dense = tiny(name).eval()
    strided = ResNet(
        block, list(BLOCKS[name]), [8, 16, 32, 64], spatial_dims=2, n_input_channels=3, conv1_t_size=7,
        conv1_t_stride=2, shortcut_type="B", feed_forward=False, bias_downsample=False,
    ).eval()  # fmt: skip
    strided.load_state_dict(dense.body.state_dict())
    image = torch.randn(1, 3, 96, 72)
    x = strided.maxpool(strided.act(strided.bn1(strided.conv1(image))))
    for layer in (strided.layer1, strided.layer2, strided.layer3, strided.layer4):
        x = layer(x)
    torch.testing.assert_close(dense(image)[..., ::4, ::4], dense.projection(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "expected a file with the weights of a resnet18, found none"),
        (b"garbage", "not a readable checkpoint"),
        ([torch.ones(1)], "expected the state dict of a resnet18, names to tensors, found a list; save its state dict"),
        (torch.ones(1), "found a Tensor; save"),
        ({"state_dict": {}}, "found a dict with an entry 'state_dict' of another kind; save its state dict alone"),
        ({1: torch.ones(1)}, "found a dict with an entry 1 of another kind"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content, text):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        tiny(weights=str(file))
    assert str(error.value).startswith(str(file)) and text in str(error.value)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_weights_of_torchvision_and_deeplab_load(tmp_path, prefix):
    source = tiny().body
    for buffer in source.buffers():
        buffer.add_(1)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    heads = {"fc.weight": torch.ones(1), "classifier.4.weight": torch.ones(1), "aux_classifier.0.weight": torch.ones(1)}
    torch.save(state | heads, tmp_path / "weights.pth")
    torch.manual_seed(5)
    loaded = ResNetEncoder("resnet18", width=8, feat_dim=8, weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(loaded.body.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_grey_weights_are_the_sum_over_colours(tmp_path):
    colour = tiny().eval()
    torch.save(colour.body.state_dict(), tmp_path / "weights.pth")
    grey = tiny(in_channels=1, weights=str(tmp_path / "weights.pth")).eval()
    grey.projection = colour.projection
    image = torch.randn(2, 1, 40, 48)
    torch.testing.assert_close(grey(image), colour(image.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(colour(image), colour(image.repeat(1, 3, 1, 1)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("resnet18", {"width": 16}, [r"conv1.weight has shape \(8, 3, 7, 7\), expected \(16, 3, 7, 7\)"]),
        ("resnet101", {}, ["layer1.0.conv3.weight is missing", "weights of a resnet101"]),
    ],
)
def test_weights_of_another_network_are_refused_with_names(tmp_path, name, options, named):
    torch.save(tiny().body.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError) as error:
        tiny(name, weights=str(tmp_path / "weights.pth"), **options)
    for text in ["weights.pth does not hold the weights of a", *named]:
        error.match(text)


def test_weights_of_a_deeper_network_are_refused_with_names(tmp_path):
    torch.save(tiny("resnet101").body.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not part of resnet18"):
        tiny(weights=str(tmp_path / "weights.pth"))


def test_group_norm_is_everywhere_and_works_alike_in_training():
    norms = {kind: [m for m in tiny(norm=kind).modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
             for kind in ("batch", "group")}  # fmt: skip
    assert len(norms["batch"]) == len(norms["group"]) == 20
    assert all(isinstance(norm, nn.GroupNorm) and norm.num_groups == 8 for norm in norms["group"])
    assert [n.num_features for n in norms["batch"]] == [n.num_channels for n in norms["group"]]
    encoder, image = tiny(norm="group"), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder.train()(image), encoder.eval()(image), rtol=0, atol=0)


def test_the_light_encoder_ends_at_the_size_of_the_features_and_is_light():
    light, encoder = LightEncoder(), tiny(in_channels=1).eval()
    assert light(torch.zeros(2, 1, 256, 256)).shape == (2, 256, 32, 32)
    assert sum(p.numel() for p in light.parameters()) < 1e6
    for size in ((100, 75), (40, 64)):
        assert light(torch.zeros(1, 1, *size)).shape[2:] == encoder(torch.zeros(1, 1, *size)).shape[2:]
    assert light(torch.randn(1, 1, 64, 64)).min() < 0  # signed, as the image features are


@pytest.mark.parametrize("options", [{"name": "resnet50"}, {"norm": "layer"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="name must be one of .* norm batch or group; got"):
        ResNetEncoder(**options)
