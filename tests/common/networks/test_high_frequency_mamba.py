import itertools
import math

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from common.networks.high_frequency_mamba import FILTERS, HighFrequencyMamba, HighPass

SIZES = [(4, 6), (5, 3), (1, 4), (4, 3, 2), (3, 1, 5)]


def make(**options):
    torch.manual_seed(0)
    return HighFrequencyMamba(**{"channels": 3, "spatial_dims": 2, "d_state": 2, **options})


def awake(**options):
    """A block whose residual is no longer 0."""
    block = make(**options)
    block.scale.data.fill_(0.75)
    return block


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def spectral_filter(image, gain):
    """By the definition of the Fourier transform, one wave after the other, in complex128: ``image (*size)``."""
    size = image.shape
    out = torch.zeros(size, dtype=torch.complex128)
    places = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"))
    for wave in itertools.product(*(range(n) for n in size)):
        phase = sum(2 * math.pi * w * place / n for w, place, n in zip(wave, places, size, strict=True))
        radius = sum((2 * min(w, n - w) / n) ** 2 for w, n in zip(wave, size, strict=True)) ** 0.5
        amount = (image * torch.exp(-1j * phase)).sum() / image.numel()
        out += gain(radius) * amount * torch.exp(1j * phase)
    assert out.imag.abs().max() < 1e-12
    return out.real


BY_HAND = {
    "fft_gaussian": lambda x: spectral_filter(x, lambda r: 1 - math.exp(-(r**2) / (2 * 0.4**2))),
    "none": lambda x: x,
}


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("size", SIZES)
def test_filters_equal_their_definition(kind, size):
    image = noise(2, 2, *size)
    expected = torch.stack([torch.stack([BY_HAND[kind](c) for c in item]) for item in image.double()])
    found = HighPass(kind, cutoff=0.4)
    torch.testing.assert_close(found(image).double(), expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found(image.double()), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_leaves_nothing(size):
    assert HighPass()(torch.full((1, 1, *size), 3.0)).abs().max() < 2e-6


def test_a_step_leaves_its_edge():
    image = torch.zeros(1, 1, 8, 33)
    image[..., 17:] = 1  # an edge between 16 and 17; the far ends are one too where the image is periodic
    left = HighPass()(image)[0, 0, 4].abs()
    assert left[14:20].max() > 0.2 and left[14:20].max() > 2 * left[5:12].max()


def test_short_dtypes_are_filtered_in_float32():
    image = noise(1, 2, 5, 6).bfloat16()
    found = HighPass()(image)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), HighPass()(image.float()), atol=0.01, rtol=0.01)


@pytest.mark.parametrize(("dims", "kind"), [(2, "fft_gaussian"), (3, "fft_gaussian"), (3, "none")])
def test_the_identity_at_first(dims, kind):
    image = 100 * noise(2, 3, *(3, 4, 5)[:dims])
    assert torch.equal(make(spatial_dims=dims, high_pass=kind)(image), image)


@pytest.mark.parametrize("size", [(4, 5), (3, 2, 4)])
def test_equals_its_formula(size):
    block = awake(spatial_dims=len(size), scan="bidirectional").double()
    image = noise(2, 3, *size).double()
    depthwise, _, pointwise, _ = block.attention
    high = torch.stack([torch.stack([spectral_filter(c, lambda r: -math.expm1(-8 * r * r)) for c in i]) for i in image])
    padded = torch.zeros(2, 3, *(n + 2 for n in size), dtype=torch.float64)
    padded[(slice(None), slice(None), *(slice(1, n + 1) for n in size))] = high
    summed = depthwise.bias.view(1, 3, *(1 for _ in size)).expand(2, 3, *size).clone()
    for shift in itertools.product(range(3), repeat=len(size)):
        window = padded[(slice(None), slice(None), *(slice(s, s + n) for s, n in zip(shift, size, strict=True)))]
        summed += depthwise.weight[(slice(None), 0, *shift)].view(1, 3, *(1 for _ in size)) * window
    mixed = torch.einsum("kc,bc...->bk...", pointwise.weight.flatten(1), gelu(summed))
    mask = 1 / (1 + torch.exp(-(mixed + pointwise.bias.view(1, 3, *(1 for _ in size)))))
    tokens = (image * (1 + mask)).flatten(2).transpose(1, 2)
    tokens = layer_norm(tokens, (3,), block.norm.weight, block.norm.bias)
    moved = block.mamba(tokens, list(size)).transpose(1, 2).reshape(image.shape)
    out = torch.einsum("kc,bc...->bk...", block.mix.weight.flatten(1), moved)
    expected = image + 0.75 * (out + block.mix.bias.view(1, 3, *(1 for _ in size)))
    torch.testing.assert_close(block(image), expected, atol=1e-9, rtol=1e-9)


def test_gradients_reach_all_parameters():
    block = awake()
    image = noise(2, 3, 4, 5).requires_grad_()
    block(image).square().sum().backward()
    silent = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == [] and image.grad.abs().min() > 0


def test_the_residual_can_wake_up():
    block = make()
    block(noise(2, 3, 4, 5)).square().sum().backward()
    assert block.scale.grad.abs() > 0


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("dims", [2, 3])
def test_script_equals_eager_at_two_sizes(kind, dims):
    block = awake(spatial_dims=dims, high_pass=kind).eval()
    scripted = torch.jit.script(block)
    for size in ((4, 3, 2), (3, 5, 3)):
        image = noise(1, 3, *size[:dims])
        torch.testing.assert_close(scripted(image), block(image), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", FILTERS)
def test_onnx_gives_the_same(kind, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    block = awake(high_pass=kind, scan="bidirectional").eval()
    image = noise(1, 3, 4, 5)
    torch.onnx.export(block, (image,), tmp_path / "block.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "block.onnx"), providers=["CPUExecutionProvider"])
    for seed in (2, 3):  # inputs other than the example, which a constant graph would not follow
        image = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
        (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), block(image).detach(), atol=1e-5, rtol=1e-4)


def test_bad_input_is_refused():
    for options, message in (
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"high_pass": "sobel"}, "one of.*'sobel'"),
        ({"cutoff": 0.0}, "cutoff above 0"),
        ({"scan": "spiral"}, "scan must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**options)
    for shape in ((1, 2, 4, 4), (1, 3, 4, 4, 4), (3, 4, 4)):
        with pytest.raises(ValueError, match=r"expected an image \(B, 3, \*spatial\)"):
            make()(noise(*shape))
