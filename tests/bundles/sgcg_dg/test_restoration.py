import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgcg_dg.network import UNet
from sgcg_dg.objective import all_levels
from sgcg_dg.restoration import RestorationDecoder

SIZE = (32, 32)


def make(**kwargs):
    torch.manual_seed(0)
    return RestorationDecoder(**{"width": 4, **kwargs})


def deep_map(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def buffers(decoder, domain):
    """The running statistics of one domain, by the place of a norm in its list."""
    return {key: value.clone() for key, value in decoder.named_buffers() if f"norms.{domain}." in key}


def test_parameter_count_is_the_published_one():
    with torch.device("meta"):
        three, four = RestorationDecoder(domains=3), RestorationDecoder(domains=4)
    assert sum(p.numel() for p in three.parameters()) == 614_755
    # a further domain costs weight and bias of three norms at each of the widths 128, 64, 32 and 16
    assert sum(p.numel() for p in four.parameters()) - 614_755 == 2 * 3 * (128 + 64 + 32 + 16)


def test_the_branch_is_the_one_described():
    """Convolutions in the order of the description; up-sampling before the 1x1; batch statistics by hand."""
    decoder = make(domains=2).double().train()
    for layer in decoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    convs = iter([m for m in decoder.modules() if isinstance(m, nn.Conv2d)])
    norms = iter([m.norms[1] for m in decoder.modules() if hasattr(m, "norms")])

    def step(x, kernel):
        conv, norm = next(convs), next(norms)
        assert conv.kernel_size == (kernel, kernel)
        x = F.conv2d(x, conv.weight, conv.bias, padding=kernel // 2)
        return F.relu(F.batch_norm(x, None, None, norm.weight, norm.bias, training=True))

    deep = deep_map(2, 64, 3, 2).double()
    x = deep
    for _ in range(4):
        x = F.interpolate(step(x, 3), scale_factor=2, mode="bilinear", align_corners=False)
        x = step(step(x, 1), 3)
    head = next(convs)
    x = torch.tanh(F.conv2d(x, head.weight, head.bias, padding=1))
    assert next(convs, None) is None and next(norms, None) is None
    torch.testing.assert_close(decoder(deep, 1, x.shape[2:]), x, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("domain", [0, 1, 2])
def test_training_a_domain_changes_its_own_norms_alone(domain):
    decoder = make().train()
    before = [buffers(decoder, d) for d in range(3)]
    assert len(before[domain]) == 12 * 3  # mean, variance and count of twelve norms
    decoder(1 + deep_map(2, 64, 2, 2), domain, SIZE).square().sum().backward()
    for d in range(3):
        changed = {key for key, value in buffers(decoder, d).items() if not torch.equal(value, before[d][key])}
        assert changed == (before[d].keys() if d == domain else set())
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad is not None) == (".norms." not in name or f".norms.{domain}." in name), name


def test_convolutions_are_shared_and_norms_are_not():
    decoder, deep = make().train(), deep_map(2, 64, 2, 2)
    for shift, domain in ((0, 0), (2, 1)):
        for _ in range(5):
            decoder(deep + shift, domain, SIZE)
    decoder.eval()
    with torch.no_grad():
        assert not torch.allclose(decoder(deep, 0, SIZE), decoder(deep, 1, SIZE), atol=1e-2)
        state = decoder.state_dict()
        decoder.load_state_dict({key: state[key.replace(".norms.2.", ".norms.1.")] for key in state})
        torch.testing.assert_close(decoder(deep, 2, SIZE), decoder(deep, 1, SIZE), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(50, 37), (32, 48), (9, 12)])
def test_restores_the_size_of_the_image_from_its_deepest_map(size):
    deep = all_levels(UNet(1, width=4), deep_map(2, 1, *size))["deep"]
    decoder = make(out_channels=1)
    image = decoder(deep, 0, size)
    assert image.shape == (2, 1, *size)
    assert -1 <= image.min() < 0 < image.max() <= 1
    whole = decoder.eval()(deep, 0, [16 * n for n in deep.shape[2:]])
    corner = whole[(..., *(slice(n) for n in size))]
    torch.testing.assert_close(decoder(deep, 0, list(size)), corner, rtol=0, atol=0)


def test_encoder_and_branch_learn_to_restore():
    torch.manual_seed(0)
    network, decoder = UNet(1, width=4), make(out_channels=1, domains=2)
    rows = torch.linspace(-0.8, 0.8, 32).expand(1, 1, 32, 32)
    images = torch.stack([rows, -rows, rows.mT, -rows.mT]).flatten(0, 1)
    optimiser = torch.optim.Adam([*network.encoder.parameters(), *decoder.parameters()], 5e-3)
    losses = []
    for _ in range(25):
        deep = all_levels(network, images)["deep"]
        loss = sum(F.mse_loss(decoder(deep[d], i, SIZE), images[d]) for i, d in enumerate((slice(0, 2), slice(2, 4))))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("domain", [-1, 3])
def test_an_unknown_domain_is_refused(domain):
    with pytest.raises(ValueError, match=rf"domain must be one of 0 .. 2, got {domain}"):
        make()(deep_map(1, 64, 2, 2), domain, SIZE)


@pytest.mark.parametrize(("channels", "size"), [(32, (32, 32)), (64, (33, 32)), (64, (32,))])
def test_a_map_or_size_that_does_not_fit_is_refused(channels, size):
    with pytest.raises(ValueError, match=r"a deepest map \(B, 64, \*s\) and sizes of at most 16 s = \[32, 32\]"):
        make()(deep_map(1, channels, 2, 2), 0, size)
