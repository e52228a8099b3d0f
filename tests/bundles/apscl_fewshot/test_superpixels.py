import numpy as np
import pytest
import torch

from apscl_fewshot import superpixels as module
from apscl_fewshot.superpixels import Superpixels, size_bounds
from common.data import DataError


@pytest.fixture
def scans():
    """Two scans of three slices: a large grey field, a bright square of 10 x 10 and dark air around."""
    volume = np.zeros((3, 1, 40, 40), np.float32)
    volume[:, :, 4:36, 4:36] = 2
    volume[:, :, 10:20, 12:22] = 5
    noise = np.random.default_rng(0).normal(0, 0.01, (2, *volume.shape)).astype(np.float32)
    return [{"image": torch.from_numpy(volume + n), "case": f"scan_{i}"} for i, n in enumerate(noise)]


@pytest.fixture
def searches(monkeypatch):
    """The slices that were really segmented."""
    done = []

    def search(image, **settings):
        done.append(settings)
        return original(image, **settings)

    original = module.felzenszwalb
    monkeypatch.setattr(module, "felzenszwalb", search)
    return done


@pytest.fixture(autouse=True)
def change(monkeypatch):
    """Settings for images of 40 x 40, some of them changed."""
    def change(max_size=1200, **settings):
        monkeypatch.setattr(module, "SETTINGS", {"scale": 50.0, "sigma": 0.5, "min_size": 50, **settings})
        monkeypatch.setattr(module, "MAX_SIZE", max_size)
        monkeypatch.setattr(module, "AREA", 40 * 40)

    change()
    return change


def test_regions_are_connected_pieces_of_the_sizes_and_brightness_asked_for(scans):
    """The square and the field count; the air is large enough and too dark."""
    superpixels = Superpixels()
    superpixels.fit(scans)
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(60):
        scan, z, mask = superpixels.draw(rng)
        image = scans[scan]["image"][z]
        assert mask.shape == (1, 40, 40) and mask.dtype == torch.float32 and set(mask.unique().tolist()) == {0, 1}
        assert 50 <= mask.sum() <= 1200 and image[mask > 0].mean() > 1.5
        sizes.add(int(mask.sum()))
    assert len(sizes) > 1 and len(superpixels.table) == 6
    square = torch.zeros(40, 40)
    square[10:20, 12:22] = 1
    assert any(abs(size - 100) < 40 for size in sizes)


def test_sizes_grow_with_the_slice(searches):
    """The same picture with four times the pixels: regions of four times the size."""
    assert size_bounds((40, 40)) == (50, 1200) and size_bounds((80, 80)) == (200, 4800)
    image = np.zeros((1, 1, 80, 80), np.float32)
    image[:, :, 20:40, 24:44] = 5
    Superpixels().fit([{"image": torch.from_numpy(image)}])
    assert searches == [{"scale": 200.0, "sigma": 0.5, "min_size": 200}]


def test_a_draw_depends_on_the_generator_alone(scans):
    superpixels = Superpixels()
    superpixels.fit(scans)
    first, again = (superpixels.draw(np.random.default_rng(3)) for _ in range(2))
    assert first[:2] == again[:2] and torch.equal(first[2], again[2])
    drawn = {superpixels.draw(np.random.default_rng(i))[:2] for i in range(60)}
    assert drawn == {(scan, z) for scan in range(2) for z in range(3)}


def test_a_second_fit_reads_the_files(scans, searches, tmp_path):
    first = Superpixels(str(tmp_path / "cache"))
    first.fit(scans)
    assert len(searches) == 6 and len(list((tmp_path / "cache").iterdir())) == 2
    second = Superpixels(str(tmp_path / "cache"))
    second.fit(scans)
    assert len(searches) == 6 and second.table == first.table
    assert all(np.array_equal(a, b) for a, b in zip(first.regions, second.regions, strict=True))
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".npy"}  # no half-written file


def test_a_cache_that_is_no_folder_is_named_before_the_search(scans, searches, tmp_path):
    (tmp_path / "eval").touch()
    with pytest.raises(OSError, match="cache: expected a folder to write into, found a file .*choose another folder"):
        Superpixels(str(tmp_path / "eval" / "cache")).fit(scans)
    assert not searches


@pytest.mark.parametrize("changed", ["image", "scale", "sigma", "min_size"])
def test_a_changed_image_or_setting_is_segmented_anew(scans, searches, tmp_path, change, changed):
    Superpixels(str(tmp_path)).fit(scans)
    settings = {} if changed == "image" else {changed: {"scale": 60.0, "sigma": 0.6, "min_size": 55}[changed]}
    if changed == "image":
        scans[1]["image"] = scans[1]["image"].clone()
        scans[1]["image"][0, 0, 0, 0] += 0.5
    change(**settings)
    Superpixels(str(tmp_path)).fit(scans)
    assert len(searches) == (9 if changed == "image" else 12)
    assert all(searches[-1][key] == value for key, value in settings.items())


def test_bounds_that_need_no_new_search_use_the_files(scans, searches, tmp_path, change):
    Superpixels(str(tmp_path)).fit(scans)
    change(max_size=200)
    few = Superpixels(str(tmp_path))
    few.fit(scans)
    assert len(searches) == 6 and few.draw(np.random.default_rng(0))[2].sum() <= 200


def test_without_a_folder_nothing_is_written(scans, searches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        Superpixels().fit(scans)
    assert len(searches) == 12 and not list(tmp_path.iterdir())


def test_no_region_is_an_error_that_says_what_to_do(scans, change):
    change(min_size=1700, max_size=1800)
    with pytest.raises(DataError, match="no superpixel of 1700 to 1800 pixels in 2 scans: set superpixel_share to 0"):
        Superpixels().fit(scans)
    change()
    for scan in scans:
        scan["image"] = torch.zeros_like(scan["image"])
    with pytest.raises(DataError, match="no superpixel"):
        Superpixels().fit(scans)
