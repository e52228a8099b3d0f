import gzip
import json
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data.check import DataError, check_cases, check_dataset
from common.data.dataset import Dataset, read_dataset

SHAPE = (6, 5, 4)
LABELS = {1: "liver", 2: "spleen"}
AFFINE = np.array([[-1.5, 0, 0, 40], [0, 1.5, 0, -30], [0, 0, 7.7, 12], [0, 0, 0, 1]])
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "chaos_t2"


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def organs(shape=SHAPE):
    label = np.zeros(shape, np.uint8)
    label[1:3], label[4] = 1, 2
    return label


def write(folder, name, image=None, label=None, affine=AFFINE, label_affine=AFFINE):
    """Write a case; without arguments a good one whose image depends on its name."""
    item = {"case": name, "image": str(folder / f"{name}.nii.gz"), "label": str(folder / f"{name}_label.nii.gz")}
    image = noise(list(name.encode())) if image is None else image
    nib.save(nib.Nifti1Image(image, affine), item["image"])
    nib.save(nib.Nifti1Image(organs() if label is None else label, label_affine), item["label"])
    return item


def error_of(*cases, **options):
    with pytest.raises(DataError) as caught:
        check_cases(list(cases), LABELS, **options)
    return str(caught.value)


def shifted(axis=0, by=1.0):
    affine = AFFINE.copy()
    affine[axis, 3] += by
    return affine


@pytest.fixture(autouse=True)
def unexpected_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_good_cases_pass_without_a_warning(tmp_path):
    cases = [write(tmp_path, "a"), write(tmp_path, "b", image=np.arange(120, dtype=np.int16).reshape(SHAPE)),
             write(tmp_path, "c", label=organs().astype(np.float64))]
    facts = check_cases(cases, LABELS)
    assert [one.case for one in facts] == ["a", "b", "c"]
    assert facts[0].shape == SHAPE and facts[0].spacing == pytest.approx((1.5, 1.5, 7.7))
    assert facts[0].label_ids == facts[2].label_ids == (0, 1, 2)


def test_three_bad_cases_in_one_error(tmp_path):
    nan, far, unknown = noise(), noise(1, (6, 5, 3)), organs()
    nan[0, 0, :2] = np.nan, np.inf
    unknown[0, 0] = 9
    cases = [write(tmp_path, "good"), write(tmp_path, "p1", image=nan), write(tmp_path, "p2", image=far),
             write(tmp_path, "p3", label=unknown)]
    text = error_of(*cases)
    todo = ("repair the image: numpy.nan_to_num gives each a value", "resample it onto the image's grid",
            "correct or renumber the label, or correct `labels` in dataset.json")
    assert text.splitlines() == [
        "3 problems in 4 cases:",
        f"  p1, {cases[1]['image']}: expected finite voxels, found 2 of 120 that are NaN or Inf; {todo[0]}",
        f"  p2, {cases[2]['label']}: expected the image's shape (6, 5, 3), found (6, 5, 4); {todo[1]}",
        f"  p3, {cases[3]['label']}: expected label ids out of [0, 1, 2], found [0, 1, 2, 9]; {todo[2]}"]


@pytest.mark.parametrize("key", ["image", "label"])
def test_missing_file(tmp_path, key):
    item = write(tmp_path, "a")
    Path(item[key]).unlink()
    assert f"a, {item[key]}: expected the {key}, found no such file; correct the path" in error_of(item)
    Path(item[key]).mkdir()
    assert "found a folder" in error_of(item)


def cut(data):
    return data[: len(data) // 2]


def emptied(data):
    return b""


def not_gzip(data):
    return gzip.decompress(data)


def other_bytes(data):
    return gzip.compress(b"hello " * 200)


def flipped(data):
    return data[:30] + bytes(255 - x for x in data[30:60]) + data[60:]


@pytest.mark.parametrize("damage", [cut, emptied, not_gzip, other_bytes, flipped])
@pytest.mark.parametrize("key", ["image", "label"])
def test_damaged_file(tmp_path, key, damage):
    item = write(tmp_path, "a")
    Path(item[key]).write_bytes(damage(Path(item[key]).read_bytes()))
    text = error_of(item)
    assert f"a, {item[key]}: expected a readable {key}, found " in text
    assert len(text.splitlines()) == 2


def test_truncated_uncompressed_file(tmp_path):
    item = write(tmp_path, "a") | {"image": str(tmp_path / "a.nii")}
    Path(item["image"]).write_bytes(cut(gzip.decompress((tmp_path / "a.nii.gz").read_bytes())))
    assert "expected a readable image" in error_of(item)


def test_unknown_file_format(tmp_path):
    item = write(tmp_path, "a") | {"image": str(tmp_path / "a.mha")}
    Path(item["image"]).write_text("x")
    assert "not that of a NIfTI file" in error_of(item)


def test_constant_image_and_empty_label_warn_once_and_pass(tmp_path):
    cases = [write(tmp_path, "a", image=np.full(SHAPE, 7, np.int16)), write(tmp_path, "b", label=0 * organs())]
    with pytest.warns(UserWarning) as caught:
        check_cases(cases, LABELS)
    lines = str(caught.pop().message).splitlines()
    assert not caught.list
    assert "a, " in lines[1] and "found the value 7 everywhere" in lines[1]
    assert "b, " in lines[2] and "found background only" in lines[2]


def test_one_constant_channel_warns(tmp_path):
    image = noise(0, (*SHAPE, 2))
    image[..., 1] = 0
    with pytest.warns(UserWarning, match="everywhere"):
        check_cases([write(tmp_path, "a", image=image)], LABELS, channels=2)


@pytest.mark.parametrize("shape, channels, ok", [
    (SHAPE, 1, True), ((*SHAPE, 1), 1, True), ((*SHAPE, 2), 2, True),
    ((*SHAPE, 2), 1, False), (SHAPE, 2, False), ((*SHAPE, 3), 2, False),
    ((6, 5), 1, False), ((*SHAPE, 1, 2), 1, False)])
def test_channels(tmp_path, shape, channels, ok):
    item = write(tmp_path, "a", image=noise(0, shape))
    if ok:
        check_cases([item], LABELS, channels=channels)
    else:
        expected = "3 axes" if channels == 1 else "4 axes, the last of 2 channels"
        assert f"expected {expected}, found shape {shape}" in error_of(item, channels=channels)


def test_a_slice_without_a_third_axis(tmp_path):
    item = write(tmp_path, "a", image=noise()[..., 0], label=organs()[..., 0])
    assert "expected 3 axes, found shape (6, 5); give a single slice a third axis of length 1" in error_of(item)


def test_label_of_other_spacing(tmp_path):
    text = error_of(write(tmp_path, "a", label_affine=AFFINE @ np.diag([1, 1, 1.2, 1])))
    assert "expected the image's spacing [1.5, 1.5, 7.7], found [1.5, 1.5, 9.24]" in text
    # the far corner lies 3.5 * 7.7 * 0.2 mm off, 1.5 mm a voxel
    assert "(corners 3.59 voxels apart, tolerance 0.1)" in text


def test_label_of_other_origin(tmp_path):
    text = error_of(write(tmp_path, "a", label_affine=shifted(by=3)))
    assert "expected the image's origin [40.0, -30.0, 12.0], found [43.0, -30.0, 12.0]" in text
    assert "(corners 2 voxels apart, tolerance 0.1)" in text


def test_label_of_other_direction(tmp_path):
    flipped_back = AFFINE @ np.diag([-1, 1, 1, 1])
    assert "expected the image's direction" in error_of(write(tmp_path, "a", label_affine=flipped_back))


def test_tolerance_of_the_affine(tmp_path):
    item = write(tmp_path, "a", label_affine=shifted(by=0.14))  # 0.093 voxel
    check_cases([item], LABELS)
    assert "tolerance 0.05" in error_of(item, affine_tolerance=0.05)
    assert "tolerance 0.1)" in error_of(write(tmp_path, "b", label_affine=shifted(by=0.16)))


def test_oblique_affine_passes(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    check_cases([write(tmp_path, "a", affine=turn @ AFFINE, label_affine=turn @ AFFINE)], LABELS)


@pytest.mark.parametrize("key", ["image", "label"])
def test_singular_affine(tmp_path, key):
    item = write(tmp_path, "a")
    header = bytearray(gzip.decompress(Path(item[key]).read_bytes()))
    header[280:296] = bytes(16)  # srow_x
    Path(item[key]).write_bytes(gzip.compress(header))
    assert f"a, {item[key]}: expected an invertible affine" in error_of(item)


def test_rgb_voxels(tmp_path):
    rgb = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    assert "expected one number for each voxel of the image" in error_of(write(tmp_path, "a", image=rgb))


def test_no_voxels(tmp_path):
    item = write(tmp_path, "a", image=noise(0, (6, 0, 4)))
    assert "expected one number for each voxel of the image, found float32 of shape (0,)" in error_of(item)


def test_label_may_have_a_channel_axis(tmp_path):
    assert check_cases([write(tmp_path, "a", label=organs()[..., None])], LABELS)[0].label_ids == (0, 1, 2)


def test_negative_label(tmp_path):
    assert "found [-1, 0, 1, 2]" in error_of(write(tmp_path, "a", label=np.where(organs() == 0, [0, 0, 0, -1],
                                                                                organs()).astype(np.int16)))


@pytest.mark.parametrize("value", [0.37, np.nan])
def test_label_that_is_no_whole_number(tmp_path, value):
    label = organs().astype(np.float32)
    label[0, 0, 0] = value
    text = error_of(write(tmp_path, "a", label=label))
    assert f"expected whole numbers, found 1 voxels such as {value}; interpolated labels are the usual cause" in text


def dataset(folder, **splits):
    lists = {name: splits.get(name, []) for name in ("training", "validation", "test", "unlabeled")}
    return Dataset(folder, "toy", {"0": "MRI"}, LABELS, **lists, folds=splits.get("folds", []))


def test_dataset_checks_every_split(tmp_path):
    names = {"training": "a", "validation": "b", "test": "c", "unlabeled": "d"}
    splits = {split: [write(tmp_path, name)] for split, name in names.items()}
    facts = check_dataset(dataset(tmp_path, **splits))
    assert {split: one.case for split, (one,) in facts.items()} == names
    for items in splits.values():
        Path(items[0]["image"]).unlink()
    with pytest.raises(DataError, match=f"^4 problems in {tmp_path / 'dataset.json'}:"):
        check_dataset(dataset(tmp_path, **splits))


def test_no_labelled_case(tmp_path):
    item = {k: v for k, v in write(tmp_path, "a").items() if k != "label"}
    with pytest.raises(DataError, match=r"0 of 1 cases are labelled: `training` is empty in .*dataset\.json"):
        check_dataset(dataset(tmp_path, unlabeled=[item]))


def test_same_case_in_two_splits(tmp_path):
    item = write(tmp_path, "a")
    with pytest.raises(DataError, match="a: expected in one split, found in training and validation") as caught:
        check_dataset(dataset(tmp_path, training=[item], validation=[item]))
    assert str(caught.value).startswith("1 problem ")


@pytest.mark.parametrize("split", ["validation", "test", "unlabeled"])
def test_same_image_under_two_names(tmp_path, split):
    first, second = write(tmp_path, "a", image=noise()), write(tmp_path, "b", image=noise())
    Path(second["image"]).write_bytes(gzip.compress(gzip.decompress(Path(second["image"]).read_bytes()), 1))
    with pytest.raises(DataError) as caught:
        check_dataset(dataset(tmp_path, training=[first], **{split: [second]}))
    assert str(caught.value).splitlines()[1] == (
        f"  b, {second['image']}: expected an image that is in one split only, found the same voxels in a, "
        f"{first['image']} ({split} and training); remove one of them")


def test_same_image_in_two_folds(tmp_path):
    cases = [write(tmp_path, name, image=noise()) for name in "ab"]
    check_dataset(dataset(tmp_path, training=cases))  # two readers of one image in one split are no leak
    check_dataset(dataset(tmp_path, training=cases, folds=[["a", "b"]]))
    with pytest.raises(DataError, match=r"\(training, fold 1 and training, fold 0\)"):
        check_dataset(dataset(tmp_path, training=cases, folds=[["a"], ["b"]]))


def test_each_file_is_opened_once_and_labels_of_unlabelled_cases_never(tmp_path, monkeypatch):
    items = {name: write(tmp_path, name) for name in "ab"}
    content = {"name": "x", "modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "spleen"},
               "training": [{"image": "a.nii.gz", "label": "a_label.nii.gz"}],
               "unlabeled": [{"image": "b.nii.gz", "label": "b_label.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    Path(items["b"]["label"]).write_bytes(b"not to be read")
    loaded, load = [], nib.load
    monkeypatch.setattr(nib, "load", lambda file: loaded.append(file) or load(file))
    check_dataset(read_dataset(tmp_path))
    assert loaded == [items["a"]["image"], items["a"]["label"], items["b"]["image"]]


@pytest.mark.skipif(not REAL.is_dir(), reason="the CHAOS T2 set is not beside the checkout")
def test_real_set_passes():
    facts = check_dataset(read_dataset(REAL))["training"]
    assert len(facts) == 14
    assert all(one.label_ids == (0, 1, 2, 3, 4) and one.shape[:2] == (256, 256) for one in facts)


@pytest.mark.parametrize("name", ["a.NII.GZ", "a.NII", "a.Nii.Gz", "a.nii.GZ", "a.nII"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_capital_letters_of_a_suffix(tmp_path, name, kind):
    plain = tmp_path / ("x.nii.gz" if name.lower().endswith("gz") else "x.nii")
    nib.save(kind(np.random.default_rng(0).normal(size=(4, 5, 6)), np.eye(4)), plain)
    file = plain.rename(tmp_path / name)
    assert check_cases([{"image": str(file), "case": "a"}], {})[0].shape == (4, 5, 6)
    file.write_bytes(b"no scan")
    with pytest.raises(DataError, match="the file is damaged or no image: copy it again"):
        check_cases([{"image": str(file), "case": "a"}], {})
