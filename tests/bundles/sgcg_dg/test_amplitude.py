import numpy as np
import pytest
import torch
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose

from sgcg_dg.amplitude import RandAmplitudeMixd, mix_amplitude

# even, odd, mixed and long axes; bands of 3, 3, 1, 0 cycles
SIZES = [(32, 32), (33, 31), (12, 47), (7, 9)]


def pair(*shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.random(shape).astype(dtype), (0.3 + 0.5 * rng.random(shape) ** 2).astype(dtype)


def reference(image, partner, ratio):
    """As the method is described: full transforms, zero moved to the centre, a central square, phases of the image."""
    own, other = (np.fft.fftshift(np.fft.fft2(x), axes=(1, 2)) for x in (image, partner))
    half = int(np.floor(0.1 * min(image.shape[1:])))
    square = (slice(None), *(slice(max(n // 2 - half, 0), n // 2 + half + 1) for n in image.shape[1:]))
    amplitude = np.abs(own)
    amplitude[square] = ratio * np.abs(own)[square] + (1 - ratio) * np.abs(other)[square]
    mixed = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(own)), axes=(1, 2)))
    assert np.abs(mixed.imag).max() < 1e-5 * np.abs(mixed.real).max()
    return mixed.real


def mix(image, partner, ratio):
    return mix_amplitude(torch.from_numpy(image), torch.from_numpy(partner), ratio).numpy()


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_description(size):
    for ratio in (0, 0.1, 0.7):
        image, partner = pair(3, *size)
        result = mix(image, partner, ratio)
        assert result.shape == image.shape
        np.testing.assert_allclose(result, reference(image, partner, ratio), rtol=0, atol=1e-12)
        assert np.abs(result - image).max() > 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_ratio_one_and_oneself_as_partner_change_nothing(size):
    image, partner = pair(2, *size, dtype=np.float32)
    np.testing.assert_allclose(mix(image, partner, 1.0), image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(mix(image, image.copy(), 0.4), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_mean_follows_the_ratio_in_each_channel(size):
    image, partner = pair(3, *size)
    image[1] *= 0.1
    for ratio in (0, 0.3, 1):
        expected = ratio * image.mean((1, 2)) + (1 - ratio) * partner.mean((1, 2))
        np.testing.assert_allclose(mix(image, partner, ratio).mean((1, 2)), expected, rtol=1e-10)


def test_a_negative_mean_keeps_its_sign():
    image, partner = pair(1, 24, 24)
    image, partner = image - 2, partner + 1
    expected = -(0.25 * abs(image.mean()) + 0.75 * abs(partner.mean()))
    assert mix(image, partner, 0.25).mean() == pytest.approx(expected)


def test_of_constant_images_only_the_mean_moves():
    image, partner = np.full((3, 21, 32), 0.2, np.float32), np.full((3, 21, 32), 0.8, np.float32)
    np.testing.assert_allclose(mix(image, partner, 0.5), 0.5, rtol=0, atol=1e-6)
    image[1] = 0
    np.testing.assert_allclose(mix(image, partner, 0.5)[1], 0.4, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_phases_stay_and_so_do_amplitudes_above_the_band(size):
    image, partner = pair(2, *size)
    before, after = (np.fft.fft2(x) for x in (image, mix(image, partner, 0.2)))
    np.testing.assert_allclose(np.angle(after * before.conj()), 0, atol=1e-6)  # none of random noise is near zero
    half = int(0.1 * min(size))
    cycles = np.stack(np.meshgrid(*(np.abs(np.fft.fftfreq(n) * n).round() for n in size), indexing="ij"))
    above = (cycles > half).any(0)
    assert (~above).sum() == (2 * half + 1) ** 2
    np.testing.assert_allclose(after[:, above], before[:, above], atol=1e-9)
    assert np.abs(after[:, ~above] - before[:, ~above]).min() > 1e-6


def test_the_band_of_a_photograph_of_256_is_a_square_of_51():
    image, partner = pair(1, 256, 256)
    before, after = (np.fft.fftshift(np.fft.fft2(x[0])) for x in (image, mix(image, partner, 0.5)))
    rows, columns = np.nonzero(np.abs(after - before) > 1e-8)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (128 - 25, 128 + 25, 128 - 25, 128 + 25)


def test_arithmetic_is_done_in_float32_or_better_and_leaves_the_images_alone():
    for dtype, expected in ((torch.uint8, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        image, partner = (torch.from_numpy(x * 255).to(dtype) for x in pair(1, 16, 16))
        kept = image.clone(), partner.clone()
        assert mix_amplitude(image, partner, 0.5).dtype == expected
        assert torch.equal(image, kept[0]) and torch.equal(partner, kept[1])


@pytest.mark.parametrize("shape", [(3, 16, 17), (1, 16, 16), (3, 16, 16, 16)])
def test_a_partner_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"got \(3, 16, 16\) and .*; resize the partner"):
        mix_amplitude(torch.zeros(3, 16, 16), torch.zeros(shape), 0.5)


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16, 16)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"one shape \(C, H, W\)"):
        mix_amplitude(torch.zeros(shape), torch.zeros(shape), 0.5)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must lie in 0 .. 1, got"):
        mix_amplitude(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), ratio)


# the transform


def item(*size, seed=0):
    image, partner = pair(3, *(size or (20, 21)), seed=seed, dtype=np.float32)
    return {"image": torch.from_numpy(image), "partner": torch.from_numpy(partner), "label": "kept", "case": "n1"}


def ratios(transform, count):
    drawn = []
    for _ in range(count):
        transform(item(4, 4))
        drawn.append(transform.ratio)
    return drawn


def test_the_view_is_added_and_everything_else_stays():
    data = item()
    kept = {key: value.clone() for key, value in data.items() if isinstance(value, torch.Tensor)}
    transform = RandAmplitudeMixd("image").set_random_state(6)
    result = transform(data)
    assert data.keys() == {"image", "partner", "label", "case"}
    assert result.keys() == data.keys() | {"image_ram"}
    assert all(torch.equal(result[key], value) for key, value in kept.items()) and result["label"] == "kept"
    expected = mix_amplitude(data["image"], data["partner"], transform.ratio).clamp(0, 1)
    torch.testing.assert_close(result["image_ram"], expected, rtol=0, atol=0)
    assert not torch.allclose(expected, data["image"], atol=1e-2)


def test_the_same_seed_gives_the_same_views_and_another_seed_others():
    runs = {}
    for run, seed in (("a", 5), ("b", 5), ("c", 6)):
        transform = RandAmplitudeMixd("image").set_random_state(seed)
        runs[run] = torch.stack([transform(item(seed=i))["image_ram"] for i in range(8)])
    assert torch.equal(runs["a"], runs["b"]) and not torch.equal(runs["a"], runs["c"])
    both = [Compose([RandAmplitudeMixd("image")]).set_random_state(2)(item())["image_ram"] for _ in range(2)]
    assert torch.equal(*both)


def test_ratios_are_drawn_evenly_from_ten_steps():
    drawn = ratios(RandAmplitudeMixd("image").set_random_state(0), 1000)
    values, counts = np.unique(np.round(drawn, 9), return_counts=True)
    np.testing.assert_allclose(values, np.arange(1, 11) / 10)
    assert ((counts - 100) ** 2 / 100).sum() < 27.9  # 0.1 % point of chi-squared, 9 degrees of freedom


def test_channels_and_keys_of_an_item_share_one_ratio():
    data = item()
    data |= {"other": data["image"].clone()}
    result = RandAmplitudeMixd(["image", "other"]).set_random_state(1)(data)
    assert torch.equal(result["image_ram"], result["other_ram"])
    share = (result["image_ram"] - data["partner"]).mean((1, 2)) / (data["image"] - data["partner"]).mean((1, 2))
    np.testing.assert_allclose(share, share[0], atol=1e-3)


def test_the_view_is_clipped():
    data, transform = {"image": item()["image"], "partner": 2 * torch.ones(3, 20, 21)}, RandAmplitudeMixd("image")
    view = transform.set_random_state(0)(data)["image_ram"]
    free = mix_amplitude(data["image"], data["partner"], transform.ratio)
    assert free.max() > 1.2
    torch.testing.assert_close(view, free.clamp(0, 1), rtol=0, atol=0)


def test_the_view_is_a_float_of_the_image_kind_with_its_meta_data():
    for seed in (0, 1):
        transform = RandAmplitudeMixd("image").set_random_state(seed)
        data = {key: (255 * item()[key]).to(torch.uint8).numpy() for key in ("image", "partner")}
        view = transform(data)["image_ram"]
        assert isinstance(view, np.ndarray) and view.dtype == np.float32
        affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
        items = (item(seed=i) for i in (0, 1))
        results = [transform({**data, "image": MetaTensor(data["image"], affine=affine)}) for data in items]
        assert isinstance(results[0]["image_ram"], MetaTensor) and torch.equal(results[0]["image_ram"].affine, affine)
        batch = decollate_batch(list_data_collate(results))
        assert torch.equal(batch[1]["image_ram"].as_tensor(), results[1]["image_ram"].as_tensor())


def test_a_partner_of_another_shape_is_refused_with_case_and_both_shapes():
    data = {**item(), "partner": torch.zeros(3, 20, 20)}
    with pytest.raises(ValueError, match=r"n1: 'partner' has shape \(3, 20, 20\), expected .* 'image', \(3, 20, 21\)"):
        RandAmplitudeMixd("image")(data)


def test_a_missing_partner_is_named():
    data = item()
    del data["partner"]
    with pytest.raises(KeyError, match="partner.*the item has"):
        RandAmplitudeMixd("image")(data)
