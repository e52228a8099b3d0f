"""Fundus in the layout of the public archive, with small pictures: an ellipse in an ellipse."""

import warnings

import numpy as np
import pytest
from PIL import Image

from common.data.check import check_dataset, read_volume
from common.data.dataset import read_dataset
from tools.prepare import fundus, prepare

SIZE = 40
BACKGROUND, RIM, CUP = 255, 128, 0


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Pictures of 800 x 800 would take seconds; warnings are errors, but for that of the missing scans."""
    monkeypatch.setattr(fundus, "SIZE", SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is the download whole")
        yield


def mask(disc=16, cup=6, size=(SIZE, SIZE), at=(20, 15)):
    rows, columns = np.ogrid[: size[0], : size[1]]
    away = np.hypot(rows - at[0], columns - at[1])
    return np.where(away < cup / 2, CUP, np.where(away < disc / 2, RIM, BACKGROUND)).astype(np.uint8)


def write(root, name, image=None, label=None, domain=1, part="train"):
    """A pair of the archive; the photograph depends on its name."""
    folder = root / "Fundus" / f"Domain{domain}" / part / "ROIs"
    label = mask() if label is None else label
    if image is None:
        image = np.random.default_rng(list(name.encode())).integers(0, 256, (*label.shape[:2], 3), dtype=np.uint8)
    for kind, pixels in (("image", image), ("mask", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")
    for other in ("train", "test"):
        for kind in ("image", "mask"):
            (folder.parents[1] / other / "ROIs" / kind).mkdir(parents=True, exist_ok=True)
    return image, folder


def error_of(tmp_path):
    with pytest.raises(SystemExit) as caught:
        prepare("fundus", str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_domains_splits_pixels_and_classes(tmp_path, capsys):
    image, _ = write(tmp_path / "in", "gdrishtiGS_001")
    write(tmp_path / "in", "nd 002", domain=1, part="test")
    write(tmp_path / "in", "G-1-L", domain=2)
    write(tmp_path / "in", "V0001", domain=4, part="test")
    prepare("fundus", str(tmp_path / "in"), str(tmp_path / "out"))
    found = read_dataset(tmp_path / "out")
    check_dataset(found, channels=3)
    assert [(item["case"], item["domain"]) for item in found.training] == [
        ("drishti_gs_gdrishtiGS_001", "drishti_gs"), ("rim_one_r3_G-1-L", "rim_one_r3")]
    assert [(item["case"], item["domain"]) for item in found.validation] == [
        ("drishti_gs_nd_002", "drishti_gs"), ("refuge_val_V0001", "refuge_val")]
    assert found.labels == {1: "optic disc rim (disc without the cup)", 2: "optic cup"} and found.folds == []
    np.testing.assert_array_equal(read_volume(found.training[0]["image"])[0][:, :, 0], image)
    label = read_volume(found.training[0]["label"])[0][..., 0]
    np.testing.assert_array_equal(label, np.select([mask() == CUP, mask() == RIM], [2, 1], 0))
    assert label[20, 15] == 2 and label[15, 20] == 1 and label[25, 25] == 0  # the first axis runs down
    assert "no redistribution" in capsys.readouterr().out


@pytest.mark.parametrize(("grey", "number"), [(0, 2), (50, 2), (51, 1), (200, 1), (201, 0), (255, 0)])
def test_grey_values_between_the_published_ones(tmp_path, grey, number):
    label = mask()
    label[0, 0] = grey
    write(tmp_path / "in", "a", label=label)
    prepare("fundus", str(tmp_path / "in"), str(tmp_path / "out"))
    written = read_volume(read_dataset(tmp_path / "out").training[0]["label"])[0]
    assert written[0, 0, 0] == number


def test_published_counts(tmp_path):
    for i in range(2):
        write(tmp_path / "in", f"a{i}", domain=3)
    with pytest.warns(UserWarning, match="is the download whole") as caught:
        prepare("fundus", str(tmp_path / "in"), str(tmp_path / "out"))
    text = str(caught[0].message)
    for name, train, test in (("drishti_gs", 50, 51), ("rim_one_r3", 99, 60), ("refuge_val", 320, 80)):
        assert f"{name}, training: expected {train} scans, found 0; {name}, validation: expected {test} scans" in text
    assert "refuge_train, training: expected 320 scans, found 2" in text


def test_grey_values_saved_in_colour_are_a_mask(tmp_path):
    write(tmp_path / "in", "a", label=np.repeat(mask()[..., None], 3, axis=-1))
    prepare("fundus", str(tmp_path / "in"), str(tmp_path / "out"))
    assert read_volume(read_dataset(tmp_path / "out").training[0]["label"])[0].sum() > 0


def test_every_bad_file_in_one_error(tmp_path):
    root = tmp_path / "in"
    folder = [write(root, name)[1] for name in "abcdef"][0]
    write(root, "ok", domain=2, part="test")
    (folder / "mask" / "a.png").unlink()
    (folder / "image" / "b.png").unlink()
    (folder / "image" / "c.png").write_bytes(b"no picture")
    Image.fromarray(mask()).save(folder / "image" / "d.png")
    Image.fromarray(mask(size=(30, SIZE))).save(folder / "mask" / "e.png")
    Image.fromarray(np.stack([mask(), mask(), mask() * 0], -1)).save(folder / "mask" / "f.png")
    write(root, "g", label=mask() // 127)  # class numbers: all would be cup
    write(root, "h", label=255 - np.where(mask() == RIM, CUP, mask()).astype(np.uint8))  # a disc alone, inverted
    write(root, "i", domain=2, part="test")
    Image.fromarray(mask()).quantize(3).save(folder.parents[2] / "Domain2" / "test" / "ROIs" / "mask" / "i.png")
    write(root, "twice", domain=2)
    write(root, "twice", domain=2, part="test")
    for part in ("image", "mask"):
        (root / "Fundus" / "Domain4" / "train" / "ROIs" / part).mkdir(parents=True)
    text = error_of(tmp_path)
    for part in (
        "a.png: expected a.png in", "b.png: expected b.png in",
        "drishti_gs_c, " + str(folder / "image" / "c.png") + ": expected a PNG file, found UnidentifiedImageError",
        "image/d.png: expected a colour image (3 channels), found a grey one",
        "mask/e.png: expected the size (40, 40) of its image, found (30, 40)",
        "mask/f.png: expected a grey mask, found colours",
        "mask/g.png: expected background above 200 and a rim of 51 to 200, found grey values [0, 1, 2]",
        "mask/h.png: expected a rim of 51 to 200, found grey values [0, 255]",
        "mask/i.png: expected intensities or colours, found a palette PNG",
        "Domain2/test/ROIs/image/twice.png: expected once, found",
        "Domain4/test/ROIs: expected the folders image and mask, found none",
    ):
        assert part in text, part
    assert text.startswith("11 problems")


@pytest.mark.parametrize(("label", "texts"), [
    (mask(disc=38), []), (mask(disc=10, cup=2), []),
    (mask(disc=6, cup=2), ["expected a disc that spans 0.2 to 0.98 of the picture, found 0.12"]),
    (mask(disc=90), ["found 1.00"]),
    (mask(size=(SIZE, 2 * SIZE)), ["expected 40 x 40 pixels, found 40 x 80"]),
    (np.minimum(mask(14), mask(14, at=(20, 31))), ["expected one disc, found two"]),
    (np.minimum(mask(14), mask(3, 0, at=(20, 31))), []),  # a speck is no disc
    (mask(cup=0), ["expected a cup of at most 50, found none"]),
])
def test_pictures_that_are_not_cut_out_around_one_disc(label, texts):
    classes = np.select([label <= 50, label <= 200], [2, 1], 0)
    found = fundus.doubts(np.zeros((*label.shape, 3)), classes)
    assert len(found) == len(texts) and all(text in line for text, line in zip(texts, found, strict=True)), found


def test_what_looks_unusual_names_the_case(tmp_path):
    write(tmp_path / "in", "whole", label=mask(disc=6, cup=2))
    with pytest.warns(UserWarning, match=r"(?s)as it is:\n  drishti_gs_whole, .*/image/whole.png: expected a disc"):
        prepare("fundus", str(tmp_path / "in"), str(tmp_path / "out"))
