from dataclasses import astuple

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from common.data.check import check_dataset
from common.data.dataset import read_dataset
from common.phantoms.heart import (
    SPLITS,
    STACK,
    STRUCTURES,
    TRAITS,
    VOLUME,
    Acquisition,
    draw_cases,
    draw_subjects,
    write_hearts,
)

RIGHT, MYOCARDIUM, LEFT = STRUCTURES
TINY = Acquisition((16, 16, 4), (10.0, 10.0, 24.0), slabs=2, breath=1.0)


@pytest.fixture(scope="module", params=[STACK, VOLUME], ids=["stack", "volume"])
def acquisition(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, acquisition):
    return write_hearts(tmp_path_factory.mktemp("sample") / "data", "hearts", acquisition, 0)


@pytest.fixture(scope="module")
def scans(folder):
    """(image, label) of the labelled scans by split, read from the files."""
    data = read_dataset(folder)

    def read(item):
        return tuple(np.asarray(nib.load(item[key]).dataobj) for key in ("image", "label"))

    return {"training": list(map(read, data.training)), "validation": list(map(read, data.validation))}


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_the_set_passes_the_data_check(folder):
    data = read_dataset(folder)
    check_dataset(data)
    assert (len(data.training), len(data.unlabeled), len(data.validation), len(data.test)) == (4, 16, 6, 0)
    names = [item["case"] for item in data.training + data.unlabeled + data.validation]
    assert len(set(names)) == 26 and data.labels == STRUCTURES and data.name == "hearts"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 3e6


def test_unlabelled_subjects_have_no_label_anywhere(folder):
    data = read_dataset(folder)
    assert not any("label" in item for item in data.unlabeled)
    labelled = {item["case"] + ".nii.gz" for item in data.training + data.validation}
    assert {file.name for file in (folder / "labels").iterdir()} == labelled


def test_axes_point_left_back_and_up(folder, acquisition):
    for item in read_dataset(folder).training:
        for image in map(nib.load, (item["image"], item["label"])):
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S") and image.shape == acquisition.shape
            np.testing.assert_allclose(image.header.get_zooms(), acquisition.spacing)


def test_hearts_are_whole_in_view_and_of_their_size(scans, acquisition):
    millilitres = np.prod(acquisition.spacing) / 1e3
    for _, label in scans["training"] + scans["validation"]:
        assert not label[[0, -1]].any() and not label[:, [0, -1]].any()
        assert 40 <= label.any((0, 1)).sum() * acquisition.spacing[2] <= 88
        for structure, (low, high) in {RIGHT: (25, 220), MYOCARDIUM: (35, 220), LEFT: (20, 180)}.items():
            mask = label == structure
            pieces, _ = ndimage.label(mask)
            assert low < mask.sum() * millilitres < high and np.bincount(pieces.ravel())[1:].max() > 0.9 * mask.sum()


def test_muscle_surrounds_the_left_ventricle_and_the_right_one_leans_on_it(scans, acquisition):
    for _, label in scans["training"] + scans["validation"]:
        areas = (label == LEFT).sum((0, 1))
        thickness = acquisition.spacing[2]
        areas[np.flatnonzero(areas)[-int(16 / thickness) :]] = 0  # the valve's plane may cut through
        for plane in np.moveaxis(label[:, :, areas > 0.6 * areas.max()], 2, 0):
            around = ndimage.binary_dilation(plane == LEFT) & (plane != LEFT)
            assert (plane[around] == MYOCARDIUM).mean() > 0.85
            assert (ndimage.binary_dilation(plane == RIGHT, iterations=2) & (plane == MYOCARDIUM)).sum() >= 5
        assert not (ndimage.binary_dilation(label == LEFT, np.ones((3, 3, 1))) & (label == RIGHT)).any()


def test_above_the_label_lie_atria_as_bright_as_the_ventricle(scans, acquisition):
    for image, label in scans["training"] + scans["validation"]:
        used = np.flatnonzero(label.any((0, 1)))
        assert used[-1] < acquisition.shape[2] - 1, "no slice shows the atria alone"
        footprint = (label > 0).any(2)
        bright = image[:, :, used[-1] + 1 :][footprint] > 0.75 * np.median(image[label == LEFT])
        assert bright.mean() > 0.3


def test_no_threshold_finds_a_structure(scans):
    """Even the best band of intensities for each scan, chosen with the label known, finds none of them."""
    for image, label in scans["validation"]:
        smooth = ndimage.uniform_filter(image.astype(float), (3, 3, 1))
        for structure, name in STRUCTURES.items():
            inside = smooth[label == structure]
            best = 0.0
            for tail in (1, 3, 5, 10, 15, 20, 30):
                low, high = np.percentile(inside, (tail, 100 - tail))
                best = max(best, dice((smooth >= low) & (smooth <= high), label == structure))
            assert best < 0.65, f"{name}: {best:.2f}"


def test_the_labelled_masks_are_a_bad_answer(scans):
    """The mean training mask, cut where it fits the training scans best, on the validation scans."""
    for structure in STRUCTURES:
        masks = np.stack([label == structure for _, label in scans["training"]])
        cuts = [masks.mean(0) > cut for cut in (0.1, 0.3, 0.6)]
        constant = max(cuts, key=lambda cut: np.mean([dice(cut, mask) for mask in masks]))  # noqa: B023
        assert np.mean([dice(constant, label == structure) for _, label in scans["validation"]]) < 0.6


@pytest.mark.parametrize("seed", range(5))
def test_the_labelled_subjects_show_a_part_of_the_variety_that_the_others_span(seed):
    low, high = np.array(list(TRAITS.values())).T
    found = {split: (np.array(list(map(astuple, draw_subjects(split, seed)))) - low) / (high - low) for split in SPLITS}
    assert found["training"].min() >= 0.2 and found["training"].max() <= 0.6
    for split in ("unlabeled", "validation"):
        # evenly: one subject in every part of a trait's range
        count = len(found[split])
        assert np.array_equal(np.sort((found[split] * count).astype(int), axis=0), np.tile(np.arange(count), (17, 1)).T)


def test_the_seed_decides_every_byte(folder, acquisition):
    one, same, other = (next(draw_cases("validation", seed, acquisition)) for seed in (0, 0, 1))
    assert np.array_equal(one.image, same.image) and np.array_equal(one.label, same.label)
    assert not np.array_equal(one.label, other.label)
    written = nib.load(folder / "images" / f"{one.name}.nii.gz").dataobj
    assert np.array_equal(np.asarray(written), np.rint(one.image))


def test_two_calls_write_the_same_files(tmp_path):
    np.random.seed(1)
    one = write_hearts(tmp_path / "one", "hearts", TINY, 3)
    np.random.seed(2)
    two = write_hearts(tmp_path / "two", "hearts", TINY, 3)
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    assert len(files) == 26 + 10 + 1 and all((one / file).read_bytes() == (two / file).read_bytes() for file in files)


def test_existing_data_is_not_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_hearts(tmp_path, "hearts", TINY, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
