import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sgcg_dg.layers import HalveAndUpsample, crop, make_norm, pad_to_multiple


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 6, 5, 4)), (3, (1, 6, 3, 4, 2))])
def test_halving_before_upsampling_is_upsampling_before_halving(dims, shape):
    torch.manual_seed(0)
    layer, x = HalveAndUpsample(dims, 6, 3).double(), torch.randn(shape, dtype=torch.float64)
    up = F.interpolate(x, scale_factor=2, mode="bilinear" if dims == 2 else "trilinear", align_corners=False)
    expected = torch.einsum("oi,bi...->bo...", layer.conv.weight.flatten(1), up) + layer.conv.bias.view(3, *[1] * dims)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_padding_repeats_the_far_edges_and_cropping_takes_them_off():
    image = torch.arange(2 * 3 * 20, dtype=torch.float32).view(1, 2, 3, 20)
    padded = pad_to_multiple(image)
    rows, columns = torch.arange(16).clamp(max=2), torch.arange(32).clamp(max=19)
    assert torch.equal(padded, image[:, :, rows][..., columns])
    assert torch.equal(crop(padded, [3, 20]), image)
    whole = torch.zeros(1, 1, 16, 48)
    assert pad_to_multiple(whole) is whole


@pytest.mark.parametrize("size", [(2, 9), (16, 16), (16, 16, 16)])
def test_the_deepest_map_is_never_one_pixel(size):
    assert pad_to_multiple(torch.zeros(1, 1, *size)).shape[2:] == (*(16,) * (len(size) - 1), 32)
    assert pad_to_multiple(torch.zeros(1, 1, 17, 3)).shape[2:] == (32, 16)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (24, 8), (4, 4), (6, 2), (5, 1)])
def test_group_norm_divides_any_width(channels, groups):
    norm = make_norm("group", 2, channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups
