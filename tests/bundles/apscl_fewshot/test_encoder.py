import pytest
import torch
from torch import nn

from apscl_fewshot.encoder import LightEncoder, ResNetEncoder

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# entries and parameters of torchvision's state dicts without `fc`, as its model pages give them
PUBLISHED = {
    "resnet18": (120, 11_689_512 - 513_000),
    "resnet34": (216, 21_797_672 - 513_000),
    "resnet50": (318, 25_557_032 - 2_049_000),
    "resnet101": (624, 44_549_160 - 2_049_000),
}


def tiny(name="resnet18", **kwargs):
    torch.manual_seed(0)
    return ResNetEncoder(name, **{"width": 8, "feat_dim": 8, **kwargs})


def torchvision_shapes(name):
    """Names and shapes of torchvision's ResNet by its rule of construction."""
    deep = name in ("resnet50", "resnet101")

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
    assert encoder.projection.weight.shape == (256, 512 if name in ("resnet18", "resnet34") else 2048, 1, 1)
    assert encoder.projection.bias is None
    assert encoder(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 256, 32, 32)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_output_stride(name, stride):
    encoder = tiny(name, in_channels=1, output_stride=stride, feat_dim=256).eval()
    assert encoder(torch.zeros(2, 1, 256, 256)).shape == (2, 256, 256 // stride, 256 // stride)
    for size in ((100, 75), (33, 64)):
        expected = tuple(-(-n // stride) for n in size)
        assert encoder(torch.zeros(1, 1, *size)).shape[2:] == expected


@pytest.mark.parametrize(
    ("stride", "layer3", "layer4"),
    # stride and dilation of block 0, dilation of the others: torchvision's replace_stride_with_dilation
    [(8, (1, 1, 2), (1, 2, 4)), (16, (2, 1, 1), (1, 1, 2)), (32, (2, 1, 1), (2, 1, 1))],
)
def test_stride_is_traded_for_dilation(stride, layer3, layer4):
    body = tiny("resnet50", output_stride=stride).body
    for stage, (step, first, rest) in ((body.layer2, (2, 1, 1)), (body.layer3, layer3), (body.layer4, layer4)):
        assert stage[0].conv2.stride == stage[0].downsample[0].stride == (step, step)
        assert stage[0].conv2.dilation == stage[0].conv2.padding == (first, first)
        assert all(block.conv2.dilation == block.conv2.padding == (rest, rest) for block in stage[1:])
        assert all(block.conv2.stride == (1, 1) for block in stage[1:])
        assert all(conv.stride == conv.dilation == (1, 1) for b in stage for conv in (b.conv1, b.conv3))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stride", [8, 16])
def test_every_so_many_places_of_a_dilated_map_are_the_strided_one(name, stride):
    dense, sparse = tiny(name, output_stride=stride).eval(), tiny(name, output_stride=32).eval()
    image, step = torch.randn(1, 3, 96, 72), 32 // stride
    torch.testing.assert_close(dense(image)[..., ::step, ::step], sparse(image), rtol=1e-4, atol=1e-5)


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
        ("resnet34", {}, ["layer1.2.conv1.weight is missing", "and 72 more"]),  # of 8 blocks with 10 entries each
        ("resnet18", {"width": 16}, [r"conv1.weight has shape \(8, 3, 7, 7\), expected \(16, 3, 7, 7\)"]),
        ("resnet50", {}, ["layer1.0.conv3.weight is missing", "weights of a resnet50"]),
    ],
)
def test_weights_of_another_network_are_refused_with_names(tmp_path, name, options, named):
    torch.save(tiny().body.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError) as error:
        tiny(name, weights=str(tmp_path / "weights.pth"), **options)
    for text in ["weights.pth does not hold the weights of a", *named]:
        error.match(text)


def test_weights_of_a_deeper_network_are_refused_with_names(tmp_path):
    torch.save(tiny("resnet34").body.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="layer1.2.conv1.weight is not part of resnet18"):
        tiny(weights=str(tmp_path / "weights.pth"))


def test_group_norm_is_everywhere_and_works_alike_in_training():
    norms = {kind: [m for m in tiny(norm=kind).modules() if isinstance(m, (nn.BatchNorm2d, nn.GroupNorm))]
             for kind in ("batch", "group")}  # fmt: skip
    assert len(norms["batch"]) == len(norms["group"]) == 20
    assert all(isinstance(norm, nn.GroupNorm) and norm.num_groups == 8 for norm in norms["group"])
    assert [n.num_features for n in norms["batch"]] == [n.num_channels for n in norms["group"]]
    encoder, image = tiny(norm="group"), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder.train()(image), encoder.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_bn_keeps_statistics_and_factors(frozen):
    encoder = tiny(freeze_bn=frozen).train()
    before = encoder.body.bn1.running_mean.clone()
    encoder(3 + torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert torch.equal(encoder.body.bn1.running_mean, before) == frozen
    norms = [module for module in encoder.body.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((norm.weight.grad is None) == frozen == (not norm.training) for norm in norms)
    assert all(m.weight.grad is not None for m in encoder.modules() if isinstance(m, nn.Conv2d))


def test_the_light_encoder_ends_at_the_size_of_the_features_and_is_light():
    light, encoder = LightEncoder(), tiny(in_channels=1).eval()
    assert light(torch.zeros(2, 1, 256, 256)).shape == (2, 256, 32, 32)
    assert sum(p.numel() for p in light.parameters()) < 1e6
    for size in ((100, 75), (40, 64)):
        assert light(torch.zeros(1, 1, *size)).shape[2:] == encoder(torch.zeros(1, 1, *size)).shape[2:]
    assert light(torch.randn(1, 1, 64, 64)).min() < 0  # signed, as the image features are


@pytest.mark.parametrize("options", [{"name": "resnet152"}, {"norm": "layer"}, {"output_stride": 4}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="name must be one of .* norm batch or group, output_stride 8, 16 or 32"):
        ResNetEncoder(**options)
