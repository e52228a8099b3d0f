"""The bundle as its users start it: tiny runs of its configs on the sample data."""

import csv
import json
import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, run
from PIL import Image
from torch.nn import functional as F

from common.data import read_dataset
from common.engine import load_checkpoint
from common.engine.root_cause import root_cause
from common.report import overlay_handler
from sgcg_dg.network import UNet

pytestmark = pytest.mark.usefixtures("restored")
BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "sgcg_dg"
CONFIGS = BUNDLE / "configs"
NETWORK = {"image_size": [32, 32], "width": 4}
REPORT = {"pictures": 0, "distances": False}
TINY = {**NETWORK, **REPORT, "batch_size": 6, "iterations_per_epoch": 3, "max_epochs": 4, "val_interval": 2}


def places(folder, data):
    """Where a run reads and writes."""
    return {"dataset_dir": str(data), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}


def train(folder, data, overlay=None, **overrides):
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", overlay) if name]
    run(config_file=configs, **{**TINY, **places(folder, data), **overrides})
    state, model = (load_checkpoint(folder / "models" / name) for name in ("checkpoint.pt", "model.pt"))
    return [{key: value for key, value in state.items() if key != "settings"}, model]  # tensors and numbers to compare


def rows_of(folder):
    with open(folder / "eval" / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sample_data):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, sample_data, pictures=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_four_epochs_equal_two_and_two_bit_for_bit(trained, tmp_path, sample_data, workers):
    """As a user types it. Against one run without workers, so that their number does not matter either."""
    first = train(tmp_path, sample_data, max_epochs=2, num_workers=workers)
    halves = train(tmp_path, sample_data, resume=True, num_workers=workers)
    assert first[0]["epoch"] == 2 and halves[0]["epoch"] == 4 and halves[0]["iteration"] == 12
    assert set(halves[0]["objects"]) == {"network", "objective", "optimizer", "lr_scheduler"}
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    one, other = (state["objects"] for state in (first[0], halves[0]))
    assert not torch.equal(one["network"]["head.weight"], other["network"]["head.weight"])
    # statistics from a tenth of the steps on: the second one
    assert one["objective"]["contrast.step"] == 6 and other["objective"]["contrast.step"] == 12
    pixels = 2 * 6 * 16 * 16
    assert one["objective"]["contrast.memory.count"].sum() == (6 - 1) * pixels
    assert other["objective"]["contrast.memory.count"].sum() == (12 - 1) * pixels


def test_a_run_is_not_resumed_with_another_split(trained, tmp_path, sample_data):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, sample_data, resume=True, target_domain="centre_a")
    text = ('target_domain was "centre_d" and is now "centre_a"; source_domains was ["centre_a", "centre_b", '
            '"centre_c"] and is now ["centre_b", "centre_c", "centre_d"]. Give')  # fmt: skip
    assert text in str(root_cause(error.value))


def test_a_run_leaves_a_model_a_report_and_a_log(trained, sample_data):
    folder, (checkpoint, model) = trained
    files = {file.name for file in (folder / "eval").iterdir()}
    assert {"cases.csv", "summary.md", "features.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("overlay_") for name in files) == 1
    assert {file.name for file in (folder / "models").iterdir()} == {"checkpoint.pt", "model.pt", "model.json"}
    assert 0 <= checkpoint["best_metric"] <= 1 and set(model) == set(checkpoint["objects"]["network"])
    UNet(width=4).load_state_dict(model)  # what is deployed, and nothing of training
    rows, dataset = rows_of(folder), read_dataset(sample_data)
    left_out = {item["case"] for item in dataset.training + dataset.validation if item["domain"] == "centre_d"}
    assert {row["case"] for row in rows[:-1]} == left_out and len(left_out) == 7
    assert len(rows) == 7 * 2 * 2 + 1 and {row["domain"] for row in rows} == {"centre_d"}
    assert float(rows[-1]["scatter"]) > 0 and float(rows[-1]["scatter_all"]) > 0
    assert all(float(row["prior_dice"]) > 0.3 for row in rows if row["structure"] == "disc")


def test_two_processes_keep_the_same_weights_and_one_scores_them(tmp_path, sample_data, two_processes):
    """Validation and the report at the end need the network without its wrapper."""
    options = {**TINY, **places(tmp_path, sample_data), "max_epochs": 1, "val_interval": 1}
    ranks = two_processes(CONFIGS, tmp_path, ("@network.module",), **options)
    weights = [{name: value for name, value in rank[0].items() if "running" not in name} for rank in ranks]
    torch.testing.assert_close(*weights, rtol=0, atol=0)  # a CPU's batch norms have statistics of their own
    assert set(load_checkpoint(tmp_path / "models" / "model.pt")) == set(ranks[0][0]) and rows_of(tmp_path)


def test_evaluation_scores_the_saved_model_again(tmp_path, sample_data, trained):
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    options = {**REPORT, **places(tmp_path, sample_data), "ckpt_dir": str(trained[0] / "models")}
    run(config_file=configs, **options)
    assert (tmp_path / "eval" / "cases.csv").read_text() == (trained[0] / "eval" / "cases.csv").read_text()
    assert not (tmp_path / "models").exists()


def test_evaluation_leaves_out_the_domain_that_the_training_did(tmp_path, sample_data, trained):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    file = tmp_path / "models" / "model.json"
    record = json.loads(file.read_text())
    record["settings"]["target_domain"] = "centre_b"
    file.write_text(json.dumps(record))
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    options = {**REPORT, **places(tmp_path, sample_data)}
    run(config_file=configs, **options)
    assert {row["domain"] for row in rows_of(tmp_path)} == {"centre_b"}
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert "The model was trained on centre_b, which is scored here" in summary  # it was, when it left out centre_d
    run(config_file=configs, **options, target_domain="centre_d")  # what is asked for goes before
    assert {row["domain"] for row in rows_of(tmp_path)} == {"centre_d"}
    assert "was trained on" not in (tmp_path / "eval" / "summary.md").read_text()


def test_evaluation_as_published(tmp_path, sample_data, trained):
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate", "paper_compat")]
    options = {**places(tmp_path, sample_data), "ckpt_dir": str(trained[0] / "models"), "pictures": 0}
    run(config_file=configs, **options)
    rows = rows_of(tmp_path)[:-1]
    assert [row["bn"] for row in rows[: 7 * 2]] == ["batch"] * 14 and len(rows) == 28
    missed = [row for row in rows if row["status"] == "missed"]
    assert all(float(row["asd_px"]) == 100 for row in missed)
    sizes = []
    for found in (rows_of(trained[0])[:-1], rows):
        names = [(row["case"], row["bn"], row["structure"]) for row in found]
        sizes.append(dict(zip(names, [int(row["prediction_voxels"]) for row in found], strict=True)))
    fewer = [usual - sizes[1][name] for name, usual in sizes[0].items()]
    assert min(fewer) >= 0 < max(fewer)  # at a threshold of three quarters


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(tmp_path, sample_data, name):
    kind = "train" if name == "train" else "infer"
    workflow = ConfigWorkflow(str(CONFIGS / f"{name}.json"), str(CONFIGS / "metadata.json"), workflow_type=kind,
                              **NETWORK, **places(tmp_path, sample_data))  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


def infer(folder, sample_data, trained, suffix):
    """The label map that inference.json writes, and the logits of the network: both with rows first."""
    pixels = np.asarray(Image.open(read_dataset(sample_data).validation[0]["image"]))[:100, :].repeat(2, axis=1)
    Image.fromarray(pixels).save(folder / f"eye{suffix}", quality=95)
    options = {**places(folder, sample_data), "ckpt_dir": str(trained[0] / "models"),
               "images": str(folder / f"eye{suffix}"), "protocol": {"largest_component": False}}  # fmt: skip
    run(config_file=str(CONFIGS / "inference.json"), **options)
    network = UNet(width=4)
    network.load_state_dict(trained[1][1])
    shown = np.asarray(Image.open(folder / f"eye{suffix}")).astype(np.float32) / 255
    image = F.interpolate(torch.from_numpy(shown).permute(2, 0, 1)[None], (32, 32), mode="area")
    with torch.no_grad():
        logits = network.eval()(image.swapaxes(2, 3)).swapaxes(2, 3)  # trained on photographs with x first
    return np.asarray(Image.open(folder / "eval" / "eye_seg.png")), logits


def label_map(logits, mode):
    """Cup over disc, at the size of the photograph."""
    cup, disc = F.interpolate(logits, (100, 256), mode=mode)[0].numpy() > 0
    return np.where(cup, 2, disc)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_inference_writes_labels_on_the_grid_of_the_photograph(tmp_path, sample_data, trained, monkeypatch, suffix):
    """A photograph that is no square and of another size, with the weights of the run."""
    drawn = []
    monkeypatch.setattr(overlay_handler, "save_overlay", lambda *args: drawn.append(args))
    found, logits = infer(tmp_path, sample_data, trained, suffix)
    assert found.shape == (100, 256) and found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2} and found.any()
    smooth, rough = (label_map(logits, mode) for mode in ("bilinear", "area"))
    clear = smooth == rough  # not at an edge, which depends on how logits are enlarged
    assert clear.mean() > 0.8 and np.array_equal(found[clear], smooth[clear])
    ((_, image, truth, prediction, labels, _, name),) = drawn
    assert name == "eye" and labels == read_dataset(sample_data).labels and truth is None
    assert image.shape == (100, 256, 1, 3) and np.array_equal(np.squeeze(prediction), found)


def test_inference_enlarges_logits_as_the_report_does(tmp_path, sample_data, trained):
    """What is scored is what a user gets: smooth edges, not the blocks of the network's grid."""
    found, logits = infer(tmp_path, sample_data, trained, ".png")
    assert np.array_equal(found, label_map(logits, "bilinear"))


def test_rings_and_strays_stay_without_the_filter_of_components(tmp_path, sample_data, trained):
    """In the report, which then differs, and in inference, by hand."""
    options = {**REPORT, **places(tmp_path, sample_data), "ckpt_dir": str(trained[0] / "models")}
    configs = [str(CONFIGS / f"{name}.json") for name in ("train", "evaluate")]
    run(config_file=configs, **options, largest_component=False)
    voxels = {(row["case"], row["structure"]): int(row["prediction_voxels"]) for row in rows_of(tmp_path)
              if row["bn"] == "eval" and row["structure"]}  # fmt: skip
    filtered = {(row["case"], row["structure"]): int(row["prediction_voxels"]) for row in rows_of(trained[0])
                if row["bn"] == "eval" and row["structure"]}  # fmt: skip
    assert voxels.keys() == filtered.keys() and voxels != filtered
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / "inference.json")]))
    parser["ckpt_dir"], parser["largest_component"] = str(tmp_path), False
    (step,) = (one for one in parser["postprocessing::transforms"] if one["_target_"].endswith("RegionsToLabeld"))
    parser["step"] = step
    logits = -torch.ones(2, 9, 9)
    logits[1, 1:7, 1:7], logits[1, 3:5, 3:5], logits[1, 8, 8] = 1.0, -1.0, 1.0  # a ring of the disc, and a stray
    found = parser.get_parsed_content("step")({"pred": logits})["pred"]
    assert int((found == 1).sum()) == 6 * 6 - 2 * 2 + 1 and not found[..., 3:5, 3:5].any()


def test_inference_before_any_training_says_so(tmp_path, sample_data):
    with pytest.raises(RuntimeError) as error:
        run(config_file=str(CONFIGS / "inference.json"), **places(tmp_path, sample_data))
    assert "model.pt: no such checkpoint. Expected a file written by an earlier run" in str(root_cause(error.value))


def test_inference_draws_what_it_found(tmp_path, sample_data, trained):
    """All of dataset.json's validation, when no image is named."""
    options = {**places(tmp_path, sample_data), "ckpt_dir": str(trained[0] / "models")}
    run(config_file=str(CONFIGS / "inference.json"), **options)
    cases = {item["case"] for item in read_dataset(sample_data).validation}
    assert len(cases) == 8
    assert {file.name for file in (tmp_path / "eval").iterdir()} == {f"{case}_seg.png" for case in cases} | {
        f"overlay_{case}.png" for case in cases}  # fmt: skip


def test_the_scripted_network_equals_the_eager_one(tmp_path, trained):
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / "inference.json")]))
    parser["width"] = 4
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(trained[1][1])
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(tmp_path / "model.ts")
        loaded = torch.jit.load(tmp_path / "model.ts")
    for size in ((2, 3, 32, 32), (1, 3, 45, 70)):
        image = torch.rand(size)
        with torch.no_grad():
            expected = network(image)
            torch.testing.assert_close(loaded(image), expected, rtol=0, atol=1e-5)
        assert expected.shape == (size[0], 2, *size[2:]) and expected.abs().max() > 0.1


def paths(config, before=""):
    """Every name in a config as an override spells it."""
    for key, value in config.items():
        yield before + key
        if isinstance(value, dict):
            yield from paths(value, f"{before}{key}::")


def test_overlays_name_only_keys_of_train_json():
    """A dictionary replaces a component whole, so only the overlay's own keys are compared."""
    configs = {file.stem: json.loads(file.read_text()) for file in CONFIGS.glob("*.json")}
    known = set(paths(configs["train"])) | {"optimizer::params::0::params", "optimizer::params::1::params"}
    for overlay in ("evaluate", "paper", "paper_compat", "volume", "multi_gpu_train"):
        assert configs[overlay].keys() - {"is_rank0", "trained"} <= known, overlay
    protocol = configs["paper_compat"]["validate::protocol"]
    assert configs["train"]["validate"]["protocol"].items() <= protocol.items()
    for compare in (configs["compare"], configs["compare_volume"]):
        settings = [compare["overrides"], compare["grid"], *compare["variants"].values(),
                    *compare.get("rivals", {}).values()]  # fmt: skip
        assert all(setting.keys() - {"config"} <= known for setting in settings)


def test_inference_has_the_preprocessing_of_training():
    train, inference = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    own, scored = inference["preprocessing"]["transforms"], train["validate"]["preprocessing"]["transforms"]
    assert own[2] == scored[3] and own[2]["_target_"] == "ScaleIntensityRanged"
    assert [step["_target_"] for step in own[:2]] == [step["_target_"] for step in scored[:2]]


def test_a_misspelt_override_ends_the_run_before_it_starts(tmp_path, sample_data):
    with pytest.raises(RuntimeError) as error:
        train(tmp_path, sample_data, target_domains="centre_a")
    assert "unknown override --target_domains: did you mean --target_domain?" in str(root_cause(error.value))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("dims", "size"), [(2, [32, 32]), (3, [16, 16, 16])])
def test_volumes(tmp_path, write_photos, dims, size):
    """Slice by slice or whole, at sizes that are no multiple of anything."""
    data = write_photos(tmp_path / "set", {"a": 2, "b": 2, "c": 2}, {"a": 1, "b": 1}, size=(20, 18, 10), channels=1)
    options = {"spatial_dims": dims, "image_size": size, "batch_size": 4, "iterations_per_epoch": 2, "max_epochs": 1}
    checkpoint, model = train(tmp_path, data, "volume", val_interval=1, distances=True, **options)
    assert model["head.weight"].ndim == 2 + dims and checkpoint["epoch"] == 1
    rows = rows_of(tmp_path)
    scores = [row for row in rows if row["structure"]]
    assert len(scores) == 2 * 2 * 2 and {row["case"] for row in scores} == {"c_1", "c_2"}
    assert all(float(row["truth_ml"]) > 0 and 0 <= float(row["prior_dice"]) <= 1 for row in scores)
    # all discs lie at the same place, so the mean training mask is nearly exact, but for two changes of size
    assert min(float(row["prior_dice"]) for row in scores if row["structure"] == "disc") > 0.85
    assert checkpoint["objects"]["objective"]["contrast.memory.count"].sum() > 0
    image = read_dataset(data).training[0]["image"]
    configs = [str(CONFIGS / f"{name}.json") for name in ("inference", "volume_inference")]
    with pytest.raises(RuntimeError) as error:  # it would take the scan for a photograph
        run(config_file=configs[0], images=image, **places(tmp_path, data))
    assert "for scans put volume_inference.json over inference.json" in str(root_cause(error.value))
    run(config_file=configs, images=image, **places(tmp_path, data))
    found, shown = nib.load(tmp_path / "eval" / f"{Path(image).name.split('.')[0]}_seg.nii.gz"), nib.load(image)
    assert found.shape == shown.shape[:3] and set(np.unique(found.dataobj)) <= {0, 1, 2}
    np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)


def test_a_single_source(tmp_path, sample_data):
    checkpoint, _ = train(tmp_path, sample_data, source_domains=["centre_b"], single_source=True, max_epochs=1)
    count = checkpoint["objects"]["objective"]["contrast.memory.count"]
    assert count.shape == (1, 3) and count.sum() == 2 * 2 * 6 * 16 * 16  # steps, views, images
    rows = rows_of(tmp_path)
    assert {row["domain"] for row in rows} == {"centre_d"} and not rows[-1].get("scatter") and rows[-1]["scatter_all"]


def test_variants_of_the_comparison_run(tmp_path, sample_data):
    """What differs most from train.json: all of it off but elastic deformation, and the memory bank."""
    compare = json.loads((CONFIGS / "compare.json").read_text())
    for group, name in (("variants", "ERM + BigAug"), ("rivals", "memory bank")):
        options = {"max_epochs": 1, "iterations_per_epoch": 2, **compare[group][name]}
        checkpoint, _ = train(tmp_path / group, sample_data, **options)
        assert checkpoint["epoch"] == 1
    assert checkpoint["objects"]["objective"]["contrast.memory.filled"].any()
