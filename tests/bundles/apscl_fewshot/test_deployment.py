"""A saved model is what model.json says, wherever it is run: evaluation, inference, export; no override is needed."""

import json
import math
import re
import shutil
import warnings
from functools import reduce
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, run, verify_net_in_out

from common.data import read_dataset
from common.engine import root_cause

pytestmark = pytest.mark.usefixtures("restored")
CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "apscl_fewshot" / "configs"
# as little as possible is as in train.json
OTHER = {
    "image_size": [40, 24],
    "network_def::encoder": {"_target_": "apscl_fewshot.encoder.ResNetEncoder", "name": "resnet18", "in_channels": 1,
                             "feat_dim": 16, "width": 8, "norm": "batch"},
    "network_def::prior": "$None", "label_branch": "$None", "loss::kl": "$None", "network_def::position::weight": 0.5,
    "network_def::decoder": {"_target_": "apscl_fewshot.decoders.ADNetDecoder", "cos_scale": 10.0},
    "preprocessing_def::intensity": ["zscore"],
    "fold": 1, "support_scans": 2, "novel_labels": [1], "superpixel_share": 0.0, "max_epochs": 1,
}  # fmt: skip
# paper.json but for its sizes
PAPER = {"network_def::encoder::name": "resnet18", "max_epochs": 1}


def config(*names):
    return [str(CONFIGS / f"{name}.json") for name in names]


def evaluate(folder, model, data, **options):
    options |= {"ckpt_dir": str(model / "models"), "dataset_dir": str(data)}
    run(config_file=config("train", "evaluate"), **{"output_dir": str(folder / "eval"), **options})
    return (folder / "eval" / "cases.csv").read_text()


def infer(folder, model, support, overlays=(), **options):
    options = {"adaptation::steps": 1, "ckpt_dir": str(model / "models"), "support_dir": str(support)} | options
    run(config_file=config("inference", *overlays), **{"output_dir": str(folder / "eval"), **options})


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_scans):
    """Six scans for folds, and a support beside them."""
    folder = tmp_path_factory.mktemp("boxes")
    write_scans(folder / "one", ["teacher"])
    return write_scans(folder / "set", [f"case_{number}" for number in range(6)])


@pytest.fixture(scope="module")
def models(trained, train, data, sample_data, tmp_path_factory):
    """Name to the folder of a training, its data set and its support."""
    other, paper = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("paper")
    train(other, data, **OTHER)
    train(paper, sample_data, ["paper"], **PAPER)
    support = sample_data / "support"
    return {"default": (trained[0], sample_data, support), "other": (other, data, data.parent / "one"),
            "paper": (paper, sample_data, support)}  # fmt: skip


@pytest.fixture
def query(tmp_path, sample_data):
    """An image of another orientation and size than the support's."""
    source = nib.load(read_dataset(sample_data).validation[0]["image"])
    turned = nib.as_closest_canonical(source).slicer[10:118, 5:125, 3:20]
    nib.save(turned, tmp_path / "query.nii.gz")
    return tmp_path / "query.nii.gz"


@pytest.mark.parametrize("name", ["default", "other", "paper"])
def test_a_model_is_scored_and_run_as_it_was_trained_without_an_override(models, report, tmp_path, query, capsys, name):
    folder, data, support = models[name]
    found = evaluate(tmp_path, folder, data, **report)
    infer(tmp_path, folder, support, images=str(query))
    assert found == (folder / "eval" / "cases.csv").read_text() and found.count("\n") > 2
    log = capsys.readouterr().err
    assert log.count("weights from ") == 2 and "not as in" not in log
    label, image = nib.load(tmp_path / "eval" / "query_seg.nii.gz"), nib.load(query)
    assert label.shape == image.shape == (108, 120, 17)
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
    known = {0, *read_dataset(support).labels}
    assert set(np.unique(label.dataobj)) <= known
    assert name != "default" or np.asarray(label.dataobj).any()  # after a step or two the others mark nothing


def test_the_parts_of_an_inference_are_those_of_the_training(models):
    """Read off the parts, since another size or prior need not change a map of voxels."""
    folder, _, support = models["other"]
    parser = ConfigParser(ConfigParser.load_config_files(config("inference")))
    parser.update({"ckpt_dir": str(folder / "models"), "support_dir": str(support)})
    network, inferer = (parser.get_parsed_content(key) for key in ("network_def", "inferer"))
    assert list(inferer.roi_size) == [40, 24] and network.prior is None and network.position.weight == 0.5
    assert network.support.scans[0]["image"].shape[1:] == (1, 40, 24) and network.support.labels == [1, 2, 3]
    assert type(network.decoder).__name__ == "ADNetDecoder" and network.decoder.cos_scale == 10
    assert len(network.encoder.projection.weight) == 16 and isinstance(network.encoder.body.bn1, torch.nn.BatchNorm2d)
    assert parser.get_parsed_content("preprocessing_def").intensity == ["zscore"]


def test_the_printed_method_has_its_parts(models):
    folder, _, _ = models["paper"]
    network = json.loads((folder / "models" / "model.json").read_text())["network"]
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert {"decoder.query_projection.weight", "decoder.support_projection.weight"} <= set(state)
    assert state["prior.prior.layers.0.weight"].shape == (32, 8 * 4 * 4)  # no pooling: all of a map of 4 x 4
    assert state["encoder.body.conv1.weight"].shape[1] == 3 and network["position"] is None
    assert network["prior"]["enhancement"]["residual"] is False
    assert (network["decoder"]["cos_scale"], network["decoder"]["normalise"]) == (1.0, False)


@pytest.mark.parametrize("kind", ["evaluate", "inference"])
@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ([], "model.json: expected what the training wrote of its model .* found no such file"),
        (["network", "encoder", "width"], r"LiteUNetEncoder: expected `width`, found none \(the default .* is 16\)"),
        (["preprocessing", "intensity"], r"Preprocessing: expected `intensity`, found none"),
    ],
)
def test_a_default_never_stands_in_for_what_model_json_does_not_say(
    trained, report, tmp_path, sample_data, query, kind, lost, text
):
    """The whole file, or one value in it."""
    (tmp_path / "models").mkdir()
    shutil.copy(trained[0] / "models" / "model.pt", tmp_path / "models")
    if lost:
        record = json.loads((trained[0] / "models" / "model.json").read_text())
        *path, last = lost
        del reduce(dict.get, path, record)[last]
        (tmp_path / "models" / "model.json").write_text(json.dumps(record))
    with pytest.raises(RuntimeError) as error:
        if kind == "evaluate":
            evaluate(tmp_path, tmp_path, sample_data, **report)
        else:
            infer(tmp_path, tmp_path, sample_data / "support", images=str(query))
    assert re.search(text, str(root_cause(error.value)))
    assert not list(tmp_path.glob("eval/*.*"))


def test_what_an_inference_does_otherwise_is_told(trained, tmp_path, sample_data, query, capsys):
    """The position prior is left out, as for images that do not show the whole body."""
    maps = []
    for number, overrides in enumerate(({}, {"trained_network::position": "$None"})):
        infer(tmp_path / str(number), trained[0], sample_data / "support", images=str(query), **overrides)
        maps.append(np.asarray(nib.load(tmp_path / str(number) / "eval" / "query_seg.nii.gz").dataobj))
        assert ("model.json: network.position null (there " in capsys.readouterr().err) == bool(overrides)
    assert (maps[0] != maps[1]).any()


def test_inference_before_any_training_says_so_and_takes_no_photographs(trained, tmp_path, sample_data):
    with pytest.raises(RuntimeError) as error:
        infer(tmp_path, tmp_path, sample_data / "support", dataset_dir=str(sample_data))
    assert "model.pt: expected a trained model, found no such file; train first" in str(root_cause(error.value))
    with pytest.raises(RuntimeError) as error:
        infer(tmp_path, trained[0], sample_data / "support", images=str(tmp_path / "a.png"))
    assert "a.png: expected scans (NIfTI)" in str(root_cause(error.value))


def test_a_support_that_does_not_show_a_structure_is_refused_before_any_map(trained, write_scans, tmp_path, query):
    """Each scan and structure is named."""
    folder = write_scans(tmp_path / "set", ["one", "two"], extents={1: (1, 7), 2: (2, 6)})
    with pytest.raises(RuntimeError) as error:
        infer(tmp_path, trained[0], folder, images=str(query))
    text = str(root_cause(error.value))
    for name in ("one", "two"):
        assert f"{name}: expected label 3 in the support mask, found [0, 1, 2]" in text
    assert "annotate it or leave the class out" in text and not list(tmp_path.glob("eval/*"))


def test_structures_are_chosen_by_id(trained, tmp_path, sample_data, query):
    infer(tmp_path, trained[0], sample_data / "support", images=str(query), structures=[2, 4])
    found = np.asarray(nib.load(tmp_path / "eval" / "query_seg.nii.gz").dataobj)
    assert set(np.unique(found)) <= {0, 2, 4} and found.any()


def test_a_map_of_the_uncertainty(trained, tmp_path, sample_data, query):
    """Entropy of a background and four structures, in nats."""
    infer(tmp_path, trained[0], sample_data / "support", ["uncertainty"], images=str(query), num_samples=2)
    assert [file.name for file in (tmp_path / "eval").iterdir()] == ["query_uncertainty.nii.gz"]
    found = np.asarray(nib.load(tmp_path / "eval" / "query_uncertainty.nii.gz").dataobj)
    assert found.shape == (108, 120, 17) and 0 <= found.min() < found.max() <= math.log(5) + 1e-4


def test_the_exported_network_equals_the_eager_one(models, tmp_path):
    """Its support travels with it."""
    folder, _, support = models["default"]
    options = {"ckpt_dir": str(folder / "models"), "support_dir": str(support), "structures": [4, 1],
               "adaptation::steps": 2}
    verify_net_in_out("network_def", str(CONFIGS / "metadata.json"), config("inference"), device="cpu",
                      **options | {"structures": None})  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ckpt_export("network_def", str(tmp_path / "model.ts"), str(folder / "models" / "model.pt"),
                    str(CONFIGS / "metadata.json"), config("inference"), **options)  # fmt: skip
        loaded = torch.jit.load(tmp_path / "model.ts")
    parser = ConfigParser(ConfigParser.load_config_files(config("inference")))
    parser.update(options)
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    for size in ((2, 1, 32, 32), (1, 1, 48, 40)):
        image = torch.rand(size)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(loaded(image), expected, rtol=1e-4, atol=1e-4)
        assert expected.shape == (size[0], 3, *size[2:]) and expected.abs().max() > 1


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(trained, tiny, places, tmp_path, sample_data, name):
    options = places(tmp_path, sample_data)
    if name == "train":
        options |= tiny
    else:
        options |= {"ckpt_dir": str(trained[0] / "models"), "support_dir": str(sample_data / "support")}
    kind = "train" if name == "train" else "infer"
    workflow = ConfigWorkflow(*config(name), str(CONFIGS / "metadata.json"), workflow_type=kind, **options)
    workflow.initialize()
    assert workflow.check_properties() == []
