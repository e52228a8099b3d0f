import hashlib

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from apscl_fewshot.phantom import ORGANS
from apscl_fewshot.sample import draw_subject, generate_sample_data
from common.data.check import check_dataset
from common.data.dataset import read_dataset

LIVER, SPLEEN, LEFT_KIDNEY, RIGHT_KIDNEY = 1, 2, 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_sample_data(tmp_path_factory.mktemp("sample") / "data")


@pytest.fixture(scope="module")
def scans(folder):
    """(image, label) of the validation scans, then of the support scan."""
    items = read_dataset(folder).validation + read_dataset(folder / "support").training
    return [tuple(np.asarray(nib.load(item[key]).dataobj) for key in ("image", "label")) for item in items]


def touch(label, one, other):
    return (ndimage.binary_dilation(label == one) & (label == other)).any()


def test_the_sets_pass_the_data_check_and_share_no_case(folder):
    main, support = read_dataset(folder), read_dataset(folder / "support")
    check_dataset(main)
    check_dataset(support)
    assert (len(main.training), len(main.validation), len(support.training)) == (8, 3, 1)
    names = [item["case"] for item in main.training + main.validation + support.training]
    assert len(set(names)) == 12 and main.labels == support.labels == ORGANS
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 5e6


def test_axes_point_left_front_and_head(folder, scans):
    image = nib.load(read_dataset(folder).training[0]["image"])
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S") and image.shape == (128, 128, 24)
    np.testing.assert_allclose(image.header.get_zooms(), (2.5, 2.5, 7.5))
    for _, label in scans:
        liver, spleen, left, right = (ndimage.center_of_mass(label == organ) for organ in ORGANS)
        assert liver[0] < left[0] and right[0] < left[0] and liver[0] < spleen[0]
        assert right[1] < liver[1] and right[2] < liver[2] and left[2] < spleen[2]


def test_organs_are_whole_in_view_and_of_their_size(scans):
    litres = 2.5 * 2.5 * 7.5 / 1e6
    for _, label in scans:
        for organ, (low, high) in {LIVER: (0.5, 2), RIGHT_KIDNEY: (0.06, 0.3), LEFT_KIDNEY: (0.06, 0.3),
                                   SPLEEN: (0.1, 0.4)}.items():
            mask = label == organ
            assert low < mask.sum() * litres < high, ORGANS[organ]
            assert mask.any(axis=(0, 1)).sum() >= 9 and not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
            pieces, count = ndimage.label(mask)
            assert np.bincount(pieces.ravel())[1:].max() > 0.9 * mask.sum(), f"{ORGANS[organ]} in {count} pieces"


def test_neighbours_touch(scans):
    assert sum(touch(label, LIVER, RIGHT_KIDNEY) for _, label in scans) >= 3
    assert sum(touch(label, SPLEEN, LEFT_KIDNEY) for _, label in scans) >= 3


def test_no_threshold_finds_an_organ(scans):
    """Even the best band of intensities, chosen with the label known, finds no organ alone."""
    for image, label in scans:
        smooth = ndimage.uniform_filter(image.astype(float), (3, 3, 1))
        for organ in ORGANS:
            inside = smooth[label == organ]
            best = 0.0
            for tail in (1, 3, 5, 10, 15, 20, 30):
                band = (smooth >= np.percentile(inside, tail)) & (smooth <= np.percentile(inside, 100 - tail))
                best = max(best, 2 * (band & (label == organ)).sum() / (band.sum() + (label == organ).sum()))
            assert best < 0.85, f"{ORGANS[organ]}: {best:.2f}"


def copied(support, query, organ):
    """Dice of a scan whose slices get the support's mask of the same third of the organ (its middle slice)."""
    given, asked = (np.flatnonzero((label == organ).any(axis=(0, 1))) for label in (support, query))
    guess = np.zeros(query.shape, bool)
    for position, height in enumerate(asked):
        third = position * 3 // len(asked)
        guess[:, :, height] = support[:, :, given[int((2 * third + 1) / 6 * len(given))]] == organ
    return 2 * (guess & (query == organ)).sum() / (guess.sum() + (query == organ).sum())


def test_copying_the_mask_of_the_support_scan_scores_badly(scans):
    *queries, support = [label for _, label in scans]
    floor = {organ: np.mean([copied(support, query, organ) for query in queries]) for organ in ORGANS}
    assert max(floor[organ] for organ in (RIGHT_KIDNEY, LEFT_KIDNEY, SPLEEN)) < 0.5 and floor[LIVER] < 0.65, floor


def test_air_is_noise_without_anatomy(scans):
    for image, _ in scans:
        corner = image[:6, :6]
        assert 0 < corner.std() < 10 and corner.mean() < 25


def test_the_seed_decides_every_byte():
    digests = []
    for seed in (5, 5, 6):
        case = draw_subject(3, seed)
        digests.append(hashlib.sha256(case.image.tobytes() + case.label.tobytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
    assert not np.array_equal(draw_subject(3, 5).label, draw_subject(4, 5).label)


def test_generation_does_not_depend_on_or_change_the_global_generator():
    np.random.seed(1)
    first, state = draw_subject(1, 0).image, np.random.get_state()[1].copy()
    np.random.seed(2)
    assert np.array_equal(first, draw_subject(1, 0).image)
    np.random.seed(1)
    assert np.array_equal(state, np.random.get_state()[1])


def test_existing_data_is_not_overwritten(folder):
    before = (folder / "dataset.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError):
        generate_sample_data(folder)
    assert (folder / "dataset.json").stat().st_mtime_ns == before
