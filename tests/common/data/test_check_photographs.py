"""The data check on photographs; what is the same for all files is tested in test_check.py."""

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.data.check import DataError, check_cases, check_dataset
from common.data.dataset import Dataset, read_dataset

LABELS = {1: "rim", 2: "cup"}
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "fundus_odoc"


def photograph(seed=0, size=(16, 12), colour=True):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3) if colour else size, dtype=np.uint8)


def disc(size=(16, 12)):
    label = np.zeros(size, np.uint8)
    label[4:12, 3:9], label[6:9, 5:7] = 1, 2
    return label


def write(folder, name="a", image=None, label=None, suffix=".png", label_suffix=".png", mode=None):
    item = {"case": name, "image": str(folder / f"{name}{suffix}"),
            "label": str(folder / f"{name}_label{label_suffix}")}
    Image.fromarray(photograph(list(name.encode())) if image is None else image).save(item["image"])
    label = disc() if label is None else label
    if label_suffix == ".nii.gz":
        nib.save(nib.Nifti1Image(label, np.eye(4)), item["label"])
    else:
        Image.fromarray(label).convert(mode).save(item["label"])
    return item


def error_of(*cases, **options):
    with pytest.raises(DataError) as caught:
        check_cases(list(cases), LABELS, **({"channels": 3} | options))
    return str(caught.value)


@pytest.fixture(autouse=True)
def unexpected_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_good_photographs_pass(tmp_path):
    cases = [write(tmp_path, "a"), write(tmp_path, "b", suffix=".jpg"),
             write(tmp_path, "c", label=disc()[..., None], label_suffix=".nii.gz")]
    for one in check_cases(cases, LABELS, channels=3):
        assert one.shape == (16, 12, 1) and one.spacing == (1, 1, 1) and one.label_ids == (0, 1, 2)
    check_cases([write(tmp_path, "d", image=photograph(colour=False))], LABELS)


def test_palette_labels(tmp_path):
    item = write(tmp_path)
    picture = Image.fromarray(disc()).convert("P")
    picture.putdata(disc().ravel().tolist())
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(item["label"])
    assert check_cases([item], LABELS, channels=3)[0].label_ids == (0, 1, 2)


def test_colour_where_grey_is_configured_and_the_reverse(tmp_path):
    colour, grey = write(tmp_path, "a"), write(tmp_path, "b", image=photograph(colour=False))
    assert error_of(colour, channels=1).splitlines()[1] == (
        f"  a, {colour['image']}: expected a grey image (1 channel), found a colour image (3 channels); "
        "convert it to grey")
    assert error_of(colour, grey).endswith(
        f"b, {grey['image']}: expected a colour image (3 channels), found a grey image (1 channel); save it in colour, "
        "for example with its grey values in three channels")
    assert "expected an image of 2 channels, found a grey image (1 channel)" in error_of(grey, channels=2)


def test_channels_as_they_come(tmp_path):
    cases = [write(tmp_path, "a"), write(tmp_path, "b", image=photograph(colour=False))]
    check_cases(cases, LABELS, channels=None)
    volume = tmp_path / "c.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((4, 4, 4, 20)), np.eye(4)), volume)
    assert "or 4 axes, the last of 3 channels, found shape (4, 4, 4, 20)" in error_of(
        {"case": "c", "image": str(volume)}, channels=None)


def test_labels_that_are_refused(tmp_path):
    equal, mixed = np.repeat(disc()[..., None], 3, axis=-1), np.stack([disc(), disc(), 0 * disc()], axis=-1)
    cases = [write(tmp_path, "a", label_suffix=".jpg"), write(tmp_path, "b", label=equal),
             write(tmp_path, "c", label=mixed), write(tmp_path, "d", label=disc((12, 16))),
             write(tmp_path, "e", label=disc() * 127), write(tmp_path, "f", label=disc(), label_suffix=".nii.gz")]
    text = error_of(*cases)
    for part in (
        "a_label.jpg: expected class numbers kept exactly, found a JPEG, whose compression",
        "b_label.png: expected a grey image (1 channel) of class numbers, found a colour image (3 channels); all three",
        "c_label.png: expected a grey image (1 channel) of class numbers, found a colour image (3 channels); save the",
        "d_label.png: expected the image's shape (16, 12, 1), found (12, 16, 1)",
        "e_label.png: expected label ids out of [0, 1, 2], found [0, 127, 254]",
        "f_label.nii.gz: expected the image's shape (16, 12, 1), found (16, 12)",
    ):
        assert part in text, part
    assert text.startswith("6 problems")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_a_label_with_an_alpha_channel_is_refused(tmp_path, mode):
    """MONAI would read the alpha as a second channel."""
    assert f"a_label.png: expected class numbers as a grey or palette PNG, found pixels of mode {mode}; save it wi" in (
        error_of(write(tmp_path, "a", mode=mode)))
    check_cases([write(tmp_path, "b", label=disc().astype(np.uint16))], LABELS, channels=3)  # 16 bits are read as such


def test_a_nifti_label_whose_axes_may_be_exchanged_is_refused(tmp_path):
    item = write(tmp_path, image=photograph(size=(12, 12)), label=disc((12, 12))[..., None], label_suffix=".nii.gz")
    check_cases([item], LABELS, channels=3)
    # as programs that number columns first write the label of a PNG
    nib.save(nib.Nifti1Image(disc((12, 12)).T[..., None], np.diag([-1.0, -1, 1, 1])), item["label"])
    assert "expected the identity as affine, as the image is a photograph, found [[-1.0, " in error_of(item)


def test_a_palette_image_is_refused(tmp_path):
    item = write(tmp_path)
    Image.fromarray(photograph()).quantize(8).save(item["image"])
    assert "expected intensities or colours, found a palette PNG, which holds indices; save it as" in error_of(item)


def test_a_kind_that_is_not_read_is_not_called_damaged(tmp_path):
    item = write(tmp_path, suffix=".jpg")
    Image.fromarray(photograph()).convert("CMYK").save(item["image"])
    text = error_of(item)
    assert "expected a readable image, found pixels of mode CMYK; save it as grey" in text and "damaged" not in text


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_photographs(tmp_path, suffix):
    """Every cut and every run of wrong bytes ends in the error's line or in a picture, never in a traceback."""
    item = write(tmp_path, suffix=suffix)
    del item["label"]
    file = Path(item["image"])
    whole = file.read_bytes()
    for data in (b"", b"hello", whole[:20], whole[: len(whole) // 2]):
        file.write_bytes(data)
        assert f"a, {file}: expected a readable image, found " in error_of(item)
    for start in range(0, len(whole) - 4, max(len(whole) // 60, 1)):
        file.write_bytes(whole[:start] + bytes(255 - x for x in whole[start : start + 4]) + whole[start + 4 :])
        try:
            check_cases([item], LABELS, channels=3)
        except DataError as error:
            assert f"a, {file}: expected " in str(error)


def test_a_damaged_chunk_between_the_pixels(tmp_path):
    item = write(tmp_path, image=photograph(size=(300, 300)))
    whole = Path(item["image"]).read_bytes()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    Path(item["image"]).write_bytes(whole[:second] + b"\1\2\3\4" + whole[second + 4 :])
    assert "expected a readable image, found SyntaxError: broken PNG file" in error_of(item)


def test_constant_photograph_and_empty_label_warn(tmp_path):
    item = write(tmp_path, image=np.full((16, 12, 3), 7, np.uint8), label=disc() * 0)
    with pytest.warns(UserWarning, match="(?s)found the value 7 everywhere.*found background only"):
        check_cases([item], LABELS, channels=3)


def test_the_same_photograph_in_two_splits(tmp_path):
    lists = {split: [] for split in ("training", "validation", "test", "unlabeled")}
    lists |= {"training": [write(tmp_path, "a", image=photograph())],
              "validation": [write(tmp_path, "b", image=photograph())]}
    with pytest.raises(DataError, match="b.png: expected an image that is in one split only, found the same voxels"):
        check_dataset(Dataset(tmp_path, "toy", {"0": "x"}, LABELS, **lists, folds=[]), channels=3)


@pytest.mark.skipif(not REAL.is_dir(), reason="the fundus set is not beside the checkout")
def test_real_photographs_pass():
    dataset = read_dataset(REAL)
    assert len(dataset.training) == 418 and len({item["domain"] for item in dataset.training}) == 5
    facts = check_cases(dataset.training[::20] + dataset.validation[::20], dataset.labels, channels=3)
    assert all(one.shape == (384, 384, 1) and {1, 2} <= set(one.label_ids) for one in facts)
