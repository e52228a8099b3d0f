import pytest
import torch
import torch.nn.functional as F

from sgcg_dg.layers import HalveAndUpsample


@pytest.mark.parametrize(("dims", "shape"), [(2, (2, 6, 5, 4)), (3, (1, 6, 3, 4, 2))])
def test_halving_before_upsampling_is_upsampling_before_halving(dims, shape):
    torch.manual_seed(0)
    layer, x = HalveAndUpsample(dims, 6, 3).double(), torch.randn(shape, dtype=torch.float64)
    up = F.interpolate(x, scale_factor=2, mode="bilinear" if dims == 2 else "trilinear", align_corners=False)
    expected = torch.einsum("oi,bi...->bo...", layer.conv.weight.flatten(1), up) + layer.conv.bias.view(3, *[1] * dims)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
