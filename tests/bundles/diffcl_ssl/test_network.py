"""CS: a plain V-Net at first, with blocks where they were asked for, that can be saved without the project's code."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from common.networks import HighFrequencyMamba, VNet, forward_with_features
from diffcl_ssl.network import ConvolutionalNetwork

OPTIONS = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "width": 4, "norm": "instance"}


def make(**options):
    torch.manual_seed(0)
    return ConvolutionalNetwork(**{**OPTIONS, "d_state": 2, **options})


def plain(**options):
    torch.manual_seed(0)
    return VNet(**{**OPTIONS, **options})


def awake(**options):
    """A network whose blocks are no longer the identity."""
    network = make(**options)
    for block in blocks(network).values():
        block.scale.data.fill_(0.75)
    return network


def blocks(network):
    """Stage to its block."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, HighFrequencyMamba):
            assert name.startswith("encoder.")
            found[int(name.split(".")[1]) + 1] = module
    return found


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [
    {}, {"mamba_stages": [1, 3], "spatial_dims": 2}, {"norm": "batch", "dropout": 0.5, "mamba_stages": [5]},
])  # fmt: skip
def test_at_first_it_is_the_plain_network_of_the_same_seed(options):
    network = make(**options)
    other = plain(**{key: value for key, value in options.items() if key != "mamba_stages"})
    image = noise(2, 1, *(16, 19, 16)[: network.spatial_dims])
    for training in (False, True):
        torch.manual_seed(2)  # of the dropout
        found = network.train(training)(image)
        torch.manual_seed(2)
        assert torch.equal(found, other.train(training)(image))


def test_without_stages_it_is_the_plain_network():
    network, other = make(mamba_stages=()).state_dict(), plain().state_dict()
    assert list(network) == list(other) and all(torch.equal(network[name], other[name]) for name in other)


def test_a_block_ends_the_stages_asked_for():
    """The plain network, with the same blocks put behind its stages by hooks, does the same."""
    network, other, image = awake(mamba_stages=[4, 2], spatial_dims=2), plain(spatial_dims=2), noise(2, 1, 32, 48)
    found, sizes = blocks(network), {}
    assert sorted(found) == [2, 4]
    for stage, block in found.items():
        assert block.channels == 4 * 2 ** (stage - 1)
        block.register_forward_pre_hook(lambda module, args, stage=stage: sizes.update({stage: args[0].shape}))
        other.encoder[stage - 1].register_forward_hook(lambda module, args, output, block=block: block(output))
    torch.testing.assert_close(network(image), other(image))
    assert sizes == {2: (2, 8, 16, 24), 4: (2, 32, 4, 6)}
    assert not torch.allclose(network(image), plain(spatial_dims=2)(image), atol=1e-2)


def test_blocks_get_the_options():
    options = {"high_pass": "none", "cutoff": 0.5, "scan": "tri_axial", "d_state": 3, "expand": 2}
    (block,) = blocks(make(mamba_stages=[5], **options)).values()
    assert (block.high_pass.kind, block.high_pass.cutoff) == ("none", 0.5) and block.spatial_dims == 3
    assert block.mamba.A_log.shape == (3 * 2 * 64, 3)  # orders, expand, channels; states
    (block,) = blocks(ConvolutionalNetwork(width=4, mamba_stages=[4])).values()
    assert block.high_pass.kind == "fft_gaussian" and block.mamba.A_log.shape == (2 * 32, 8)


def test_gradients_wake_the_scale_first_and_then_the_block():
    network, image = make(), noise(2, 1, 16, 16, 16)
    for scale in (0.0, 0.75):
        network.zero_grad()
        for block in blocks(network).values():
            block.scale.data.fill_(scale)
        network(image).square().mean().backward()
        for block in blocks(network).values():
            got = {name for name, p in block.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
            assert got == ({"scale"} if scale == 0 else {name for name, _ in block.named_parameters()})


def test_the_classifier_is_linear_and_any_size_comes_back():
    network, image = awake(), noise(1, 1, 5, 18, 9)
    logits, features = forward_with_features(network, image)
    assert torch.equal(logits, network(image)) and logits.shape == (1, 3, 5, 18, 9)
    assert torch.equal(network.classifier(features), logits) and features.shape == (1, 4, 5, 18, 9)


LOAD = """
import sys, torch
network, images = torch.jit.load(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save([network(image) for image in images], sys.argv[3])
assert not any(name.split(".")[0] in ("common", "diffcl_ssl") for name in sys.modules)
"""


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")
def test_scripted_it_runs_in_a_fresh_process_at_other_sizes(tmp_path):
    """Neither the project nor what it compiles can be loaded there."""
    network = awake(dropout=0.3).eval()
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
    images = [noise(2, 1, 16, 16, 16), noise(1, 1, 20, 33, 7)]
    scripted = torch.jit.script(network)
    with torch.no_grad():
        expected = [network(image) for image in images]
        # norms of so few voxels enlarge rounding: eager and float64 differ by 2e-4 of logits up to 4
        torch.testing.assert_close(scripted(images[0]), expected[0], rtol=1e-4, atol=1e-3)
    files = [tmp_path / name for name in ("network.ts", "images.pt", "logits.pt")]
    scripted.save(files[0])
    torch.save(images, files[1])
    subprocess.run([sys.executable, "-I", "-c", LOAD, *files], check=True, cwd=tmp_path, timeout=600)
    found = torch.load(files[2], weights_only=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stages", [[0], [6], [4, 4], [-1, 5]])
def test_stages_that_are_not_there_are_refused(stages):
    with pytest.raises(ValueError, match=r"different stages of 1 to 5, got \["):
        make(mamba_stages=stages)


def test_bad_options_and_images_are_refused():
    with pytest.raises(ValueError, match="norm one of"):
        make(norm="layer")
    with pytest.raises(ValueError, match="scan must be one of"):
        make(scan="spiral")
    with pytest.raises(ValueError, match=r"expected an image \(B, 1, \*spatial\)"):
        make()(noise(1, 2, 16, 16, 16))
