"""The configs of the semi-supervised bundles: what MONAI asks for, keys that overlays name, networks that script."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_net_in_out

from common.data import read_dataset
from common.engine import root_cause, save_atomic

pytestmark = pytest.mark.usefixtures("restored")
IMAGE = "_meta_::network_data_format::inputs::image::spatial_shape"
# bundle, overlays of inference.json, the keyword of verify_net_in_out for the size, and two image sizes
NETWORKS = [
    ("transmedseg_ssl", [], {}, [(2, 1, 32, 32), (1, 1, 45, 70)]),
    ("transmedseg_ssl", ["volume_inference"], {IMAGE: ["32*n", "32*n", "16*n"]},
     [(2, 1, 32, 32, 16), (1, 1, 37, 34, 20)]),
    ("diffcl_ssl", [], {}, [(2, 1, 32, 32, 32), (1, 1, 17, 20, 33)]),
]  # fmt: skip
# bundle, overlays of train.json, of inference.json, and whether images may be stored in any orientation
KINDS = [("transmedseg_ssl", [], [], False), ("transmedseg_ssl", ["volume"], ["volume_inference"], True),
         ("diffcl_ssl", [], [], True)]  # fmt: skip


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(bundle, tmp_path, name):
    kind = "train" if name == "train" else "infer"
    options = {**bundle.sizes, **bundle.places(tmp_path)}
    workflow = ConfigWorkflow(bundle.config(name)[0], bundle.meta, workflow_type=kind, **options)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize(("name", "overlays", "shape", "sizes"), NETWORKS)
def test_the_network_takes_and_gives_what_metadata_says(tiny_bundle, tmp_path, name, overlays, shape, sizes):
    bundle, files = tiny_bundle(name), tiny_bundle(name).config("inference", *overlays)
    verify_net_in_out("network_def", bundle.meta, files, device="cpu", ckpt_dir=str(tmp_path), **shape)


@pytest.mark.parametrize(("name", "overlays", "shape", "sizes"), NETWORKS)
def test_the_exported_network_equals_the_eager_one(tiny_bundle, tmp_path, name, overlays, shape, sizes):
    bundle = tiny_bundle(name)
    files = bundle.config("inference", *overlays)
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser["width"], parser["ckpt_dir"] = 8, str(tmp_path)  # no model there
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    for parameter in network.parameters():  # none of them as it starts: some parts do nothing then
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_atomic(network.state_dict(), tmp_path / "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ckpt_export("network_def", str(tmp_path / "model.ts"), str(tmp_path / "model.pt"), bundle.meta, files, width=8,
                    ckpt_dir=str(tmp_path))
        loaded = torch.jit.load(tmp_path / "model.ts")
    for size in sizes:
        image = torch.rand(size)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(loaded(image), expected, rtol=1e-4, atol=1e-4)
        assert expected.shape == (size[0], 4, *size[2:]) and expected.abs().max() > 0.1


def paths(settings, before=""):
    """Every name in a config as an override spells it."""
    for key, value in settings.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths(value, f"{before}{key}::")


def test_overlays_name_only_keys_of_what_they_lie_over(bundle):
    names = {file.stem for file in bundle.configs.glob("*.json")} - {"train", "inference", "metadata"}
    assert {"evaluate", "paper", "multi_gpu_train", "compare"} <= names
    known = {name: set(paths(bundle.read(name))) for name in ("train", "inference")}
    for name in sorted(names):
        settings = [bundle.read(name)]
        if name.startswith("compare"):
            overrides, variants = bundle.settings(name)
            settings = [overrides, settings[0]["grid"], *variants]
        under = known["inference" if "inference" in name else "train"]
        assert all(setting.keys() - {"config", "is_rank0", "trained"} <= under for setting in settings), name


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_bundles_have_their_keys_in_one_order(tiny_bundle, name):
    one, other = (list(tiny_bundle(bundle).read(name)) for bundle in ("transmedseg_ssl", "diffcl_ssl"))
    assert [key for key in one if key in other] == [key for key in other if key in one]


def test_inference_uses_the_inferer_of_training(bundle):
    assert bundle.read("train")["validate"]["inferer"] == bundle.read("inference")["inferer"]


@pytest.mark.parametrize("value", [True, False, "together"])
def test_inference_keeps_the_components_that_the_scores_keep(bundle, value):
    parser = ConfigParser(bundle.read("inference"))
    parser["largest_component"] = value
    (keep,) = (part for part in parser["postprocessing::transforms"] if "largest_component" in str(part))
    parser["keep"] = keep["func"]
    maps = torch.zeros(1, 6, 3, 3, dtype=torch.uint8)
    maps[:, 1], maps[:, 2], maps[:, 4:, 1:] = 1, 2, 1  # the stray is larger than its structure, but not than both
    assert (parser.get_parsed_content("keep")(maps)[:, 1] == (0 if value is True else 1)).all()
    parser["largest_component"] = "joint"
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("keep")
    assert "got 'joint'" in str(error.value.__cause__)


@pytest.mark.parametrize(("name", "train", "inference", "turns"), KINDS)
def test_inference_of_volumes_takes_no_photographs(tiny_bundle, tmp_path, name, train, inference, turns):
    bundle = tiny_bundle(name)
    folder = bundle.write_photographs(tmp_path / "set")
    parser = ConfigParser(ConfigParser.load_config_files(bundle.config("inference", *inference)))
    parser.update(bundle.places(tmp_path, folder))
    if turns:  # volumes
        with pytest.raises(RuntimeError) as error:
            parser.get_parsed_content("dataset")
        assert "2 images, such as " in (text := str(root_cause(error.value))) and "expected scans (NIfTI)" in text
    else:
        assert len(parser.get_parsed_content("dataset")) == 2


@pytest.mark.parametrize(("name", "train", "inference", "turns"), KINDS)
def test_volumes_are_brought_to_one_orientation(tiny_bundle, tmp_path, name, train, inference, turns):
    """Slices are not: what their axes are called says nothing of the way that they were cut."""
    bundle = tiny_bundle(name)
    item = read_dataset(bundle.data).training[0]
    paths = {key: str(tmp_path / f"{key}.nii.gz") for key in ("image", "label")}
    for key, path in paths.items():
        scan = nib.load(item[key])
        assert nib.aff2axcodes(scan.affine) == ("L", "P", "S")
        turn = nib.orientations.ornt_transform(*(nib.orientations.axcodes2ornt(codes) for codes in ("LPS", "SAR")))
        nib.save(scan.as_reoriented(turn), path)
    for file, overlays, part in (("train", train, "train"), ("train", train, "validate"), ("inference", inference, "")):
        parser = ConfigParser(ConfigParser.load_config_files(bundle.config(file, *overlays)))
        parser.update(bundle.places(tmp_path, bundle.data))
        read = parser.get_parsed_content(f"{part}::preprocessing".removeprefix("::"))
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
        parser = ConfigParser(ConfigParser.load_config_files(bundle.config("train", *overlays)))
        parser.update(bundle.places(tmp_path, bundle.data) | options | ({} if value is None else {"rot_flip": value}))
        dataset = parser.get_parsed_content("train::dataset")
        drawn = {dataset[0, 0, draw]["label"].numpy().tobytes() for draw in range(60)}
        assert len(drawn) == (8 if (rot_flip if value is None else value) else 1)
