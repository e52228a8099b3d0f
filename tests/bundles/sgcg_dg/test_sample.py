import hashlib
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from sgcg_dg.phantom import SIZE, STRUCTURES
from sgcg_dg.sample import CENTRES, SIZES, draw_case, generate_sample_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_sample_data(tmp_path_factory.mktemp("sample") / "data")


@pytest.fixture(scope="module")
def pixels(folder):
    """Split and centre to (images, labels), read from the files."""
    data = read_dataset(folder)

    def stack(items, key):
        return np.stack([np.asarray(Image.open(item[key])) for item in items])

    found = {}
    for split, items in (("training", data.training), ("validation", data.validation)):
        by_centre = {centre: [item for item in items if item["domain"] == centre] for centre in CENTRES}
        found[split] = {centre: (stack(own, "image"), stack(own, "label")) for centre, own in by_centre.items()}
    return found


def measures(image):
    """Colour (two ratios), contrast and sharpness, as logarithms: the same for any exposure."""
    red, green, blue = image.mean((0, 1))
    grey = image.mean(2)
    fine = np.abs(ndimage.laplace(grey)[1:-1, 1:-1]).mean()
    return np.log([red / green, green / blue, grey.std() / grey.mean(), fine / grey.std()])


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_the_set_passes_the_data_check(folder):
    data = read_dataset(folder)
    check_dataset(data, channels=3)
    assert data.labels == STRUCTURES and json.loads((folder / "dataset.json").read_text())["tensorImageSize"] == "2D"
    names = [item["case"] for item in data.training + data.validation]
    assert len(set(names)) == len(names) == 100
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5e6


def test_every_centre_has_both_splits_of_its_own_size(folder):
    data = read_dataset(folder)
    for items, which in ((data.training, 0), (data.validation, 1)):
        assert Counter(item["domain"] for item in items) == {centre: sizes[which] for centre, sizes in SIZES.items()}
    assert len({sum(n) for n in SIZES.values()}) == len(CENTRES) == 4


def test_pictures_and_labels_are_what_the_bundle_reads(pixels):
    for split, centre in itertools.product(pixels, CENTRES):
        images, labels = pixels[split][centre]
        assert images.shape[1:] == (SIZE, SIZE, 3) and labels.shape[1:] == (SIZE, SIZE)
        assert images.dtype == labels.dtype == np.uint8
        for image, label in zip(images, labels, strict=True):
            assert set(np.unique(label)) == {0, 1, 2}
            assert np.mean((image == 255).all(2)) < 0.01 and image.std() > 10, "a picture is washed out or flat"


def test_the_cup_lies_inside_the_disc_and_both_are_whole(pixels):
    shares = []
    for label in (label for split in pixels.values() for _, labels in split.values() for label in labels):
        disc, cup = label > 0, label == 2
        assert not (disc[[0, -1]].any() or disc[:, [0, -1]].any()), "the disc is cut by the border"
        assert not (ndimage.binary_dilation(cup) & (label == 0)).any(), "the cup touches the background"
        for mask in (disc, cup):
            pieces, _ = ndimage.label(mask)
            assert np.bincount(pieces.ravel())[1:].max() == mask.sum()
        assert not (ndimage.binary_fill_holes(disc) & ~disc).any()
        shares.append((cup.sum() / disc.sum()) ** 0.5)
    assert min(shares) < 0.42 and max(shares) > 0.72 and 0.5 < np.mean(shares) < 0.65


def test_no_two_centres_share_colour_contrast_or_sharpness(pixels):
    """Centres lie further apart in each of the three than their own images do from one another."""
    found = [np.array([measures(image) for image in images]) for images, _ in pixels["training"].values()]
    for one, other in itertools.combinations(found, 2):
        gap = np.abs(one.mean(0) - other.mean(0)) / np.sqrt((one.var(0) + other.var(0)) / 2)
        assert gap[:2].max() > 2 and gap[2] > 0.6 and gap[3] > 1.2, gap


def test_a_shift_remains_that_no_colour_change_undoes(pixels):
    areas = {centre: np.mean(labels > 0) for centre, (_, labels) in pixels["training"].items()}
    assert areas["centre_b"] < 0.7 * areas["centre_a"] < 0.9 * areas["centre_c"]


def test_a_constant_mask_is_a_bad_answer(pixels):
    """The mean training mask of three centres, cut where it fits the training images best, on the fourth."""
    for target in CENTRES:
        scores = []
        for structure in (1, 2):
            sources = np.concatenate([pixels["training"][c][1] for c in CENTRES if c != target]) >= structure
            cuts = [sources.mean(0) > cut for cut in np.arange(0.1, 0.8, 0.1)]
            constant = max(cuts, key=lambda mask: np.mean([dice(mask, label) for label in sources]))  # noqa: B023
            scores.append(np.mean([dice(constant, label >= structure) for label in pixels["training"][target][1]]))
        assert scores[0] < 0.8 and scores[1] < 0.65, f"{target}: disc {scores[0]:.2f}, cup {scores[1]:.2f}"


def test_no_brightness_finds_the_cup(pixels):
    """Not even the best threshold for each image, chosen with the label known and inside the disc only."""
    scores = []
    for images, labels in pixels["training"].values():
        for image, label in zip(images, labels, strict=True):
            green = ndimage.gaussian_filter(image[..., 1].astype(float), 1)
            cuts = np.percentile(green[label > 0], range(10, 95, 5))
            scores.append(max(dice((green > cut) & (label > 0), label == 2) for cut in cuts))
    assert np.mean(scores) < 0.8 and np.percentile(scores, 25) < 0.7, np.percentile(scores, (25, 50, 75))


def test_the_seed_decides_every_byte(folder):
    digests = []
    for seed in (0, 0, 1):
        case = draw_case("centre_b", 3, seed)
        digests.append(hashlib.sha256(case.image.tobytes() + case.label.tobytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
    assert np.array_equal(np.asarray(Image.open(folder / "images" / "b_003.png")), draw_case("centre_b", 3, 0).image)


def test_two_calls_write_the_same_files(folder, tmp_path, monkeypatch):
    few = {centre: (1, 1) for centre in SIZES}
    monkeypatch.setattr("sgcg_dg.sample.SIZES", few)
    np.random.seed(1)
    one = generate_sample_data(tmp_path / "one")
    np.random.seed(2)
    two = generate_sample_data(tmp_path / "two")
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert len(files) == 2 * 8 + 1 and all((one / f).read_bytes() == (two / f).read_bytes() for f in files)


def test_cases_share_no_eye(pixels):
    """The first images of the centres differ in the cup's share of the disc, which no look decides."""
    for number in range(3):
        labels = [pixels["training"][centre][1][number] for centre in CENTRES]
        shares = sorted((label == 2).sum() / (label > 0).sum() for label in labels)
        assert shares[-1] - shares[0] > 0.1


def test_existing_data_is_not_overwritten(folder):
    before = (folder / "dataset.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError):
        generate_sample_data(folder)
    assert (folder / "dataset.json").stat().st_mtime_ns == before
