import torch
import torch.nn.functional as F

from sgcg_dg.layers import HalveAndUpsample


def test_halving_before_upsampling_is_upsampling_before_halving():
    torch.manual_seed(0)
    layer, x = HalveAndUpsample(6, 3).double(), torch.randn(2, 6, 5, 4, dtype=torch.float64)
    up = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    expected = torch.einsum("oi,bi...->bo...", layer.conv.weight.flatten(1), up) + layer.conv.bias.view(3, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
