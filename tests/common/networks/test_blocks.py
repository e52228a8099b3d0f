import pytest
import torch
from torch import nn

from common.networks.blocks import (
    check_image,
    check_options,
    conv_norm_relu,
    crop,
    init_convolutions,
    make_norm,
    pad_to_multiple,
)


def test_padding_repeats_the_far_edges_and_cropping_takes_them_off():
    image = torch.arange(2 * 3 * 20, dtype=torch.float32).view(1, 2, 3, 20)
    padded = pad_to_multiple(image)
    rows, columns = torch.arange(16).clamp(max=2), torch.arange(32).clamp(max=19)
    assert torch.equal(padded, image[:, :, rows][..., columns])
    assert torch.equal(crop(padded, [3, 20]), image)
    whole = torch.zeros(1, 1, 16, 48)
    assert pad_to_multiple(whole) is whole and crop(whole, [16, 48]) is whole


@pytest.mark.parametrize("size", [(2, 9), (16, 16), (16, 16, 16)])
def test_the_deepest_map_is_never_one_pixel(size):
    assert pad_to_multiple(torch.zeros(1, 1, *size)).shape[2:] == (*(16,) * (len(size) - 1), 32)
    assert pad_to_multiple(torch.zeros(1, 1, 17, 3)).shape[2:] == (32, 16)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (24, 8), (4, 4), (6, 2), (5, 1)])
def test_group_norm_divides_any_width(channels, groups):
    norm = make_norm("group", 2, channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_norms_start_with_weight_one_and_bias_zero(dims, norm):
    layer = make_norm(norm, dims, 4)
    assert layer.weight.tolist() == [1] * 4 and layer.bias.tolist() == [0] * 4
    x = torch.randn(3, 4, *(5,) * dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    axes = [0, *range(2, x.ndim)] if norm == "batch" else list(range(2, x.ndim))  # 4 groups of 4 channels are instances
    expected = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer.double()(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("kernel", "dims"), [(1, 2), (3, 2), (3, 3)])
def test_a_step_is_convolution_with_bias_norm_and_relu_and_keeps_the_size(kernel, dims):
    conv, norm, relu = conv_norm_relu(dims, 2, 4, kernel, "instance")
    assert conv.kernel_size == (kernel,) * dims and conv.bias is not None and isinstance(relu, nn.ReLU)
    out = relu(norm(conv(torch.randn(1, 2, *range(5, 5 + dims)))))
    assert out.shape == (1, 4, *range(5, 5 + dims)) and out.min() == 0
    leaky = conv_norm_relu(dims, 2, 4, kernel, "instance", slope=0.1)[2]
    assert leaky(torch.tensor([-3.0])).item() == pytest.approx(-0.3)


def test_first_weights_are_kaiming_by_fan_out():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Sequential(nn.Conv3d(8, 32, 3)), nn.Linear(4, 4))
    linear = module[2].weight.clone()
    init_convolutions(module)
    assert module[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert module[1][0].weight.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.05)
    assert torch.equal(module[2].weight, linear)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8), (1, 3, 8, 8, 8)])
def test_an_image_of_another_shape_is_refused_with_what_was_expected(shape):
    check_image(torch.zeros(2, 3, 5, 1), 2, 3)
    with pytest.raises(ValueError, match=r"expected an image \(B, 3, \*spatial\) with 2 spatial axes") as error:
        check_image(torch.zeros(shape), 2, 3)
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize(("dims", "norm"), [(2, "group"), (1, "batch"), (4, "instance")])
def test_bad_options_are_refused(dims, norm):
    check_options(3, "batch")
    with pytest.raises(ValueError, match=f"norm one of .*'instance'.*got {dims} and '{norm}'"):
        check_options(dims, norm)
