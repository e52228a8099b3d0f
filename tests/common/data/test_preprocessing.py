"""From files to what a network sees, in training, evaluation and inference, against numpy."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd
from PIL import Image

from common.data import Preprocessing
from common.description import describe, rebuild

SIZE = (12, 8, 6)
OPTIONS = {
    "nothing": {"intensity": []},
    "turned": {},
    "not turned": {"orientation": None, "intensity": ["percentiles"]},
    "halved": {"zoom": 0.5, "intensity": ["bytes"]},
    "halved in plane": {"zoom": [0.5, 0.5, 1.0], "intensity": ["percentiles", "zscore"]},
    "of one size": {"image_size": [4, 4], "intensity": ["bytes", "zscore"]},
    "halved, then of one size": {"zoom": 0.5, "image_size": [3, 2]},
}


@pytest.fixture
def scan(tmp_path):
    """The files of a scan that runs from left and back, with its voxels and labels as they lie in the file."""
    rng = np.random.default_rng(0)
    voxels = {"image": rng.gamma(2.0, 40.0, SIZE).astype(np.float32), "label": rng.integers(0, 4, SIZE, np.uint8)}
    for key, values in voxels.items():
        nib.save(nib.Nifti1Image(values, np.diag([-2.0, -3.0, 5.0, 1.0])), tmp_path / f"{key}.nii.gz")
    return {key: str(tmp_path / f"{key}.nii.gz") for key in voxels}, voxels


def blocks(values, factors):
    """The voxels of each block, in a new last axis."""
    pairs = [part for size, factor in zip(values.shape, factors, strict=True) for part in (size // factor, factor)]
    split = values.reshape(pairs)
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(*split.shape[::2], -1)


def turned(values, orientation="RAS", **_):
    return values if orientation is None else values[::-1, ::-1]


def zoom_of(zoom=None, **_):
    return [round(1 / factor) for factor in (zoom if isinstance(zoom, list) else [zoom or 1.0] * 3)]


def seen(image, **options):
    """What the network sees of the image."""
    image = blocks(turned(image.astype(np.float64), **options), zoom_of(**options)).mean(-1)
    for step in options.get("intensity", ["zscore"]):
        low, high = {"bytes": (0, 255)}.get(step, (image.min(), np.percentile(image, 99.5)))
        image = (image - image.mean()) / image.std() if step == "zscore" else ((image - low) / (high - low)).clip(0, 1)
    height, width = options.get("image_size", image.shape[:2])
    return blocks(image, [image.shape[0] // height, image.shape[1] // width, 1]).mean(-1)


def majority(label, factors):
    """The class that most voxels of a block have, the least one of several."""
    voxels = blocks(label, factors)
    return np.argmax([(voxels == value).sum(-1) for value in range(4)], 0)


def nearest(label, height, width):
    """The voxel in whose middle the middle of the new one lies, or the next one."""
    rows, columns = ((np.arange(new) + 0.5) * old / new for old, new in zip(label.shape, (height, width), strict=False))
    return label[rows.astype(int)][:, columns.astype(int)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_scan_in_training(scan, options):
    files, voxels = scan
    preprocessing = Preprocessing(**options)
    done, alone = preprocessing.training(4)(files), preprocessing.training(4)({"image": files["image"]})
    image = seen(voxels["image"], **options)
    np.testing.assert_allclose(done["image"][0].numpy(), image, rtol=1e-4, atol=1e-4)
    label = majority(turned(voxels["label"], **options), zoom_of(**options))
    label = nearest(label, *options.get("image_size", label.shape[:2]))
    assert done["label"].shape == done["image"].shape and np.array_equal(done["label"][0].numpy(), label)
    assert torch.equal(alone["image"], done["image"]) and "label" not in alone


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_scan_in_evaluation_keeps_its_own_grid(scan, options):
    files, voxels = scan
    done = Preprocessing(**options).evaluation()(files)
    np.testing.assert_allclose(done["image"][0].numpy(), seen(voxels["image"], **options), rtol=1e-4, atol=1e-4)
    assert np.array_equal(done["label"][0].numpy(), turned(voxels["label"], **options))
    assert np.array_equal(done["native"][0].numpy(), turned(voxels["image"], **options))
    assert done["label"].pixdim.tolist() == [2, 3, 5]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_scan_in_inference_and_back(scan, options):
    """What comes back is the file's own grid; of a flat map, whatever its size, the same flat map."""
    files, voxels = scan
    steps = Preprocessing(**options).inference()
    done = steps({"image": files["image"]})
    np.testing.assert_allclose(done["image"][0].numpy(), seen(voxels["image"], **options), rtol=1e-4, atol=1e-4)
    ramp = torch.linspace(0, 1, done["image"].shape[1])[None, :, None, None].expand(done["image"].shape)
    done["pred"] = MetaTensor(torch.cat([ramp, torch.full_like(ramp, 3.0)]))
    back = Invertd("pred", steps, "image", nearest_interp=False)(done)["pred"]
    assert back.shape == (2, *SIZE) and np.allclose(back.affine, np.diag([-2.0, -3.0, 5.0, 1.0]))
    torch.testing.assert_close(back[1].as_tensor(), torch.full(SIZE, 3.0))
    slope = back[0, :, 0, 0].diff()
    assert (slope <= 1e-6).all() if options.get("orientation", "RAS") else (slope >= -1e-6).all()
    assert (slope.abs() > 1e-3).sum() >= 7  # linear, where blocks would have 2 or 5 steps


def test_the_checks_of_inference_see_what_was_read(scan):
    files, voxels = scan
    found = []
    Preprocessing(zoom=0.5).inference([lambda data: (found.append(data["image"].numpy().copy()), data)[1]])(files)
    assert len(found) == 1 and np.array_equal(found[0], voxels["image"])


@pytest.mark.parametrize("kinds", [["scans"], ("scans",)])
def test_each_slice_of_a_scan_is_resized_for_itself(scan, kinds):
    files, voxels = scan
    preprocessing = Preprocessing(kinds=kinds, intensity=[], image_size=(6, 2))
    for steps in (preprocessing.training(), preprocessing.evaluation(), preprocessing.inference()):
        assert steps(files)["image"].shape == (1, 6, 2, 6)
    whole = Preprocessing(intensity=[], image_size=[6, 4, 3]).evaluation()(files)["image"]
    expected = blocks(turned(voxels["image"]), (2, 2, 2)).mean(-1)
    np.testing.assert_allclose(whole[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("colours", [1, 3])
def test_photographs(tmp_path, colours):
    """MONAI reads them with x first."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 3)[: 2 + (colours > 1)], np.uint8)
    label = np.random.default_rng(1).integers(0, 2, (20, 12), np.uint8)
    files = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "b.png")}
    for key, values in zip(files, (pixels, label), strict=True):
        Image.fromarray(values).save(files[key])
    preprocessing = Preprocessing(colours, ["photographs"], None, None, ["bytes"], [6, 10])
    image = np.moveaxis(pixels.reshape(10, 2, 6, 2, colours).mean((1, 3)), [0, 1], [2, 1]) / 255
    for steps in (preprocessing.training(), preprocessing.evaluation(), preprocessing.inference()):
        np.testing.assert_allclose(steps(files)["image"].numpy(), image, rtol=1e-5, atol=1e-6)
    done = preprocessing.evaluation()(files)
    assert np.array_equal(done["label"][0].numpy(), label.T) and done["native"].shape == (colours, 12, 20)
    assert preprocessing.training()(files)["label"].shape == (1, 6, 10)


@pytest.mark.parametrize(("options", "text"), [
    ({"kinds": "scans"}, "kinds: expected a list out of photographs, scans, found 'scans'"),
    ({"kinds": []}, r"kinds: .*found \[\]"), ({"kinds": None}, "found None"), ({"kinds": [["scans"]]}, "kinds"),
    ({"kinds": ["scans", "films"]}, "found .*'films'"), ({"kinds": [{}]}, "kinds"), ({"kinds": 3}, "found 3"),
    ({"intensity": ["zscore", "max"]}, "intensity: expected a list out of bytes, percentiles, zscore, found .*'max'"),
    ({"intensity": "zscore"}, "intensity"), ({"intensity": None}, "intensity"), ({"intensity": True}, "found True"),
])  # fmt: skip
def test_another_kind_and_another_step_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        Preprocessing(**options)


def test_a_label_is_not_zoomed_without_its_classes():
    assert Preprocessing().training()
    with pytest.raises(ValueError, match="expected the number of classes, which zoom asks for, found none"):
        Preprocessing(zoom=1.0).training()


def test_its_description_makes_the_same(scan):
    for options in OPTIONS.values():
        one = Preprocessing(**options)
        other = rebuild(json.loads(json.dumps(describe(one))))
        assert vars(other).keys() == vars(one).keys() and describe(other) == describe(one)
        assert torch.equal(other.inference()(scan[0])["image"], one.inference()(scan[0])["image"])


@pytest.mark.parametrize(("option", "values"), [
    ("channels", ["1", 0, None, 1.5, [1], True]),
    ("orientation", ["", "RA", "RRS", "RAX", "$RAS", 3, ["R", "A", "S"]]),
    ("zoom", ["x", [0.5, "x"], {"_target_": "os.getcwd"}, True]),
    ("image_size", [64, "64", [64], [64, 0], [64, 64.0], [8, 8, 8, 8], {"a": 1, "b": 2}]),
])  # fmt: skip
def test_a_value_of_another_type_is_refused(option, values):
    for value in values:
        with pytest.raises(ValueError) as error:
            Preprocessing(**{option: value})
        text = str(error.value)
        assert text.startswith(f"{option}: expected ") and f"found {value!r}; correct it." in text


def test_all_values_of_another_type_are_named_at_once():
    with pytest.raises(ValueError, match=r"channels: .*; orientation: .*; zoom: .*; image_size: .*; correct it"):
        Preprocessing(channels="a", orientation="b", zoom="c", image_size="d")
    Preprocessing(channels=3, orientation="LPS", zoom=(0.5, 1, 1.0), image_size=(4, 5, 6))


@pytest.mark.parametrize("name", ["a.NII.GZ", "a.Nii.Gz", "a.nII"])
def test_capital_letters_of_a_suffix(tmp_path, name):
    plain = tmp_path / ("x.nii.gz" if name.lower().endswith("gz") else "x.nii")
    nib.save(nib.Nifti1Image(np.arange(120.0).reshape(4, 5, 6), np.eye(4)), plain)
    file = plain.rename(tmp_path / name)
    assert Preprocessing(orientation=None).training()({"image": str(file)})["image"].shape == (1, 4, 5, 6)
