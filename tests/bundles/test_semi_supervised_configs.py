"""The configs of the semi-supervised bundles: what MONAI asks for, keys that overlays name, networks that script."""

import inspect
import re
import warnings
from pydoc import locate

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_net_in_out

from common.data import read_dataset
from common.engine import root_cause

pytestmark = pytest.mark.usefixtures("restored")
IMAGE = "_meta_::network_data_format::inputs::image::spatial_shape"
CLASSES = {"1": "a", "2": "b", "3": "c"}  # as many as the sample data have
# bundle, overlays of train.json, the keyword of verify_net_in_out for the size, and two image sizes
NETWORKS = [
    ("transmedseg_ssl", [], {}, [(2, 1, 32, 32), (1, 1, 45, 70)]),
    ("transmedseg_ssl", ["volume"], {IMAGE: ["32*n", "32*n", "16*n"]}, [(2, 1, 32, 32, 16), (1, 1, 37, 34, 20)]),
    ("diffcl_ssl", [], {}, [(2, 1, 32, 32, 32), (1, 1, 17, 20, 33)]),
]  # fmt: skip
# bundle, overlays of train.json, and whether images may be stored in any orientation
KINDS = [("transmedseg_ssl", [], False), ("transmedseg_ssl", ["volume"], True), ("diffcl_ssl", [], True)]


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(bundle, tmp_path, name):
    kind = "train" if name == "train" else "infer"
    bundle.save(tmp_path, **bundle.sizes)
    workflow = ConfigWorkflow(bundle.config(name)[0], bundle.meta, workflow_type=kind, **bundle.places(tmp_path))
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize(("name", "overlays", "shape", "sizes"), NETWORKS)
def test_the_network_takes_and_gives_what_metadata_says(tiny_bundle, tmp_path, name, overlays, shape, sizes):
    bundle = tiny_bundle(name)
    bundle.save(tmp_path, overlays=overlays, labels=CLASSES)
    places = {"ckpt_dir": str(tmp_path / "models")}
    verify_net_in_out("network_def", bundle.meta, bundle.config("inference"), device="cpu", **places, **shape)


@pytest.mark.parametrize(("name", "overlays", "shape", "sizes"), NETWORKS)
def test_the_exported_network_equals_the_eager_one(tiny_bundle, tmp_path, name, overlays, shape, sizes):
    bundle, options = tiny_bundle(name), {"labels": CLASSES, "network_def::width": 8}
    torch.manual_seed(0)
    network = bundle.save(tmp_path, overlays=overlays, **options).eval()
    for parameter in network.parameters():  # none of them as it starts: some parts do nothing then
        parameter.data += 0.1 * torch.randn_like(parameter)
    bundle.save(tmp_path, overlays=overlays, weights=network.state_dict(), **options)
    file, places = tmp_path / "models" / "model.ts", {"ckpt_dir": str(tmp_path / "models")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ckpt_export("network_def", str(file), str(file.with_suffix(".pt")), bundle.meta, bundle.config("inference"),
                    **places)  # fmt: skip
        loaded = torch.jit.load(file)
    for size in sizes:
        image = torch.rand(size)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(loaded(image), expected, rtol=1e-4, atol=1e-4)
        assert expected.shape == (size[0], 4, *size[2:]) and expected.abs().max() > 0.1


def paths(settings, before=""):
    """Every name in a config as an override spells it."""
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        yield f"{before}{key}"
        if isinstance(value, (dict, list)):
            yield from paths(value, f"{before}{key}::")


def takes(key, *settings):
    """Whether it is an argument of the component that the first of these settings to name one has at its place."""
    place, _, name = key.rpartition("::")
    targets = (each.get(f"{place}::_target_") or each.get(place, {}).get("_target_") for each in settings)
    target = next(filter(None, targets), None)
    return target is not None and name in inspect.signature(locate(target)).parameters


def test_overlays_name_only_keys_of_what_they_lie_over(bundle):
    names = {file.stem for file in bundle.configs.glob("*.json")} - {"train", "inference", "metadata"}
    assert {"evaluate", "paper", "multi_gpu_train", "compare", "supervised", "mean_teacher", "uamt"} <= names
    train = bundle.read("train")
    known = set(paths(train)) | {"is_rank0", "sync", "trained", "comment"}  # what overlays bring with them
    for name in sorted(names):
        settings = [bundle.read(name)]
        if name.startswith("compare"):
            overrides, rows = bundle.rows(name)
            settings = [overrides, settings[0]["grid"], *(own for _, own in rows)]
            assert {overlay for overlays, _ in rows for overlay in overlays} <= names
        assert not [key for setting in settings for key in setting
                    if key not in known and not takes(key, setting, train)], name  # fmt: skip


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_bundles_have_their_keys_in_one_order(tiny_bundle, name):
    one, other = (list(tiny_bundle(bundle).read(name)) for bundle in ("transmedseg_ssl", "diffcl_ssl"))
    assert [key for key in one if key in other] == [key for key in other if key in one]


def test_train_json_has_few_numbers_at_the_top(bundle):
    """What a user turns; a number of a part stands at the part."""
    top = [key for key, value in bundle.read("train").items() if not isinstance(value, (dict, list))
           and not str(value).startswith("$")]  # fmt: skip
    assert len(top) <= 25 and len((bundle.configs / "train.json").read_text().splitlines()) <= 220


def test_inference_uses_the_inferer_of_training(bundle):
    assert bundle.read("train")["validate"]["inferer"] == bundle.read("inference")["inferer"]


@pytest.mark.parametrize(("steps", "first"), [(["largest"], 0), ([], 1), (["largest_together", "largest"], 1)])
def test_inference_cleans_as_the_scores_are(bundle, tmp_path, steps, first):
    parser = bundle.parser(["inference"], tmp_path, cleanup=steps)
    (place,) = (i for i, part in enumerate(parser["postprocessing::transforms"]) if "cleanup" in str(part))
    maps = torch.zeros(1, 6, 3, 3, dtype=torch.uint8)
    maps[:, 1], maps[:, 2], maps[:, 4:, 1:] = 1, 2, 1  # the stray is larger than its structure, but not than both
    clean = parser.get_parsed_content(f"postprocessing::transforms::{place}")
    assert (clean({"pred": maps})["pred"][:, 1] == first).all()
    other = bundle.parser(["inference"], tmp_path, cleanup=["joint"])
    with pytest.raises(RuntimeError) as error:
        other.get_parsed_content(f"postprocessing::transforms::{place}")
    assert re.search("cleanup: expected a list out of .*found .'joint'", str(root_cause(error.value)))


@pytest.mark.parametrize(("name", "overlays", "turns"), KINDS)
def test_inference_of_volumes_takes_no_photographs(tiny_bundle, tmp_path, name, overlays, turns):
    bundle = tiny_bundle(name)
    folder = bundle.write_photographs(tmp_path / "set")
    bundle.save(tmp_path, overlays=overlays, **{"network_def::width": 4})
    parser = bundle.parser(["inference"], tmp_path, folder)
    if turns:  # volumes
        with pytest.raises(RuntimeError) as error:
            parser.get_parsed_content("dataset")
        assert "2 images, such as " in (text := str(root_cause(error.value))) and "expected scans (NIfTI)" in text
    else:
        assert len(parser.get_parsed_content("dataset")) == 2


@pytest.mark.parametrize(("name", "overlays", "turns"), KINDS)
def test_volumes_are_brought_to_one_orientation(tiny_bundle, tmp_path, name, overlays, turns):
    """Slices are not: what their axes are called says nothing of the way that they were cut."""
    bundle = tiny_bundle(name)
    item = read_dataset(bundle.data).training[0]
    paths = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")}
    for key, path in paths.items():
        scan = nib.load(item[key])
        assert nib.aff2axcodes(scan.affine) == ("L", "P", "S")
        turn = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(codes) for codes in ("LPS", "SAR")))
        nib.save(scan.as_reoriented(turn), path)
    bundle.save(tmp_path, overlays=overlays, **{"network_def::width": 4})
    for files, part in ((["train", *overlays], "train"), (["train", *overlays], "validate"), (["inference"], "")):
        read = bundle.parser(files, tmp_path).get_parsed_content(f"{part}::preprocessing".removeprefix("::"))
        one, other = (read({key: found[key] for key in ("image", "label")}) for found in (item, paths))
        assert (one["image"].shape == other["image"].shape and torch.equal(one["image"], other["image"])) == turns
        if part:
            expected = np.asarray(nib.load(item["label"]).dataobj)
            np.testing.assert_array_equal(one["label"][0], expected[::-1, ::-1] if turns else expected)


@pytest.mark.parametrize(("name", "overlays", "rot_flip"), [
    ("transmedseg_ssl", [], True), ("transmedseg_ssl", ["volume"], False), ("diffcl_ssl", [], False)])  # fmt: skip
def test_rot_flip_turns_and_mirrors(tiny_bundle, tmp_path, name, overlays, rot_flip):
    """Eight ways in all; the patch is the whole image, so that the crop is always the same."""
    bundle = tiny_bundle(name)
    options = {"patch_size": [40, 40] if name == "transmedseg_ssl" and not overlays else [40, 40, 16]}
    for value in (None, not rot_flip):
        changes = options | ({} if value is None else {"rot_flip": value})
        dataset = bundle.parser(["train", *overlays], tmp_path, **changes).get_parsed_content("train::dataset")
        drawn = {dataset[0, 0, draw]["label"].numpy().tobytes() for draw in range(60)}
        assert len(drawn) == (8 if (rot_flip if value is None else value) else 1)


@pytest.mark.parametrize(("name", "comparison", "overlays"), [
    ("transmedseg_ssl", "compare_hippocampus", ["volume"]), ("diffcl_ssl", "compare_hippocampus", [])])  # fmt: skip
def test_hippocampi_are_mirrored_along_one_axis(tiny_bundle, tmp_path, name, comparison, overlays):
    """From left to right; the patch is the whole image."""
    bundle = tiny_bundle(name)
    overrides = bundle.rows(comparison)[0] | {"labelled": None, "patch_size": [40, 40, 16]}
    dataset = bundle.parser(["train", *overlays], tmp_path, **overrides).get_parsed_content("train::dataset")
    one, other = {dataset[0, 0, draw]["label"].numpy().tobytes() for draw in range(20)}
    shape = dataset[0, 0, 0]["label"].shape
    one, other = (np.frombuffer(drawn, np.int64).reshape(shape) for drawn in (one, other))
    np.testing.assert_array_equal(one, other[:, ::-1])
