"""The bundle as its users start it: tiny runs of its configs on the sample data."""

import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image
from torch.nn import functional as F

from common.data import read_dataset
from common.engine import load_checkpoint, root_cause
from common.report import overlay_handler
from sgcg_dg.network import UNet

pytestmark = pytest.mark.usefixtures("restored")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sample_data, bundle):
    """The folder of one run of four epochs, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, bundle.train(folder, sample_data, pictures=1)


# --- training ---


@pytest.mark.parametrize("workers", [0, 2])
def test_four_epochs_equal_two_and_two_bit_for_bit(trained, tmp_path, sample_data, bundle, workers):
    """As a user types it. Against one run without workers, so that their number does not matter either."""
    first = bundle.train(tmp_path, sample_data, max_epochs=2, num_workers=workers)
    halves = bundle.train(tmp_path, sample_data, resume=True, num_workers=workers)
    assert first[0]["epoch"] == 2 and halves[0]["epoch"] == 4 and halves[0]["iteration"] == 12
    assert set(halves[0]["objects"]) == {"network", "objective", "optimizer", "lr_scheduler"}
    torch.testing.assert_close(halves, trained[1], rtol=0, atol=0)
    one, other = (state["objects"] for state in (first[0], halves[0]))
    assert not torch.equal(one["network"]["classifier.weight"], other["network"]["classifier.weight"])
    pixels = 2 * 6 * 16 * 16  # of a step: views, images, every second pixel of each axis
    # statistics from a tenth of the steps on: the second one
    assert one["objective"]["contrast.memory.count"].sum() == (6 - 1) * pixels
    assert other["objective"]["contrast.memory.count"].sum() == (12 - 1) * pixels


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target_domain": "centre_a"},
         'model.target_domain was "centre_d" and is now "centre_a"; model.source_domains was ["centre_a", "centre_b", '
         '"centre_c"] and is now ["centre_b", "centre_c", "centre_d"]'),
        ({"contrast_weight": 0.5}, "objective.contrast_weight was 1.0 and is now 0.5. Give"),
        ({"temperature": 0.2}, "objective.contrast.loss.temperature was 0.5 and is now 0.2. Give"),
        ({"contrast::memory::cov": "diag"}, 'objective.contrast.memory.cov was "full" and is now "diag". Give'),
        ({"train::sampler::policy": "proportional"}, 'policy was "equal" and is now "proportional". Give'),
        ({"image_size": [32, 16]}, "model.preprocessing.image_size was [32, 32] and is now [32, 16]. Give"),
    ],
)  # fmt: skip
def test_a_run_is_not_resumed_with_other_settings(trained, tmp_path, sample_data, bundle, changes, text):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, sample_data, resume=True, max_epochs=5, **changes)
    assert f"found others: {text}" in str(root_cause(error.value))
    assert load_checkpoint(tmp_path / "models" / "checkpoint.pt")["epoch"] == 4


def test_a_run_leaves_a_model_a_report_and_a_log(trained, sample_data, bundle):
    folder, (checkpoint, model) = trained
    files = {file.name for file in (folder / "eval").iterdir()}
    assert {"cases.csv", "summary.md", "features.png"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert sum(name.startswith("overlay_") for name in files) == 1
    assert {file.name for file in (folder / "models").iterdir()} == {"checkpoint.pt", "model.pt", "model.json"}
    assert 0 <= checkpoint["best_metric"] <= 1 and set(model) == set(checkpoint["objects"]["network"])
    UNet(width=4).load_state_dict(model)  # what is deployed, and nothing of training
    rows, dataset = bundle.rows(folder), read_dataset(sample_data)
    left_out = {item["case"] for item in dataset.training + dataset.validation if item["domain"] == "centre_d"}
    assert {row["case"] for row in rows[:-1]} == left_out and len(left_out) == 7
    assert len(rows) == 7 * 2 * 2 + 1 and {row["domain"] for row in rows} == {"centre_d"}
    assert float(rows[-1]["scatter"]) > 0 and float(rows[-1]["scatter_all"]) > 0
    assert all(float(row["prior_dice"]) > 0.3 for row in rows if row["structure"] == "disc")


@pytest.mark.parametrize("given", [{}, {"contrast": "$None", "restoration": "$None"}], ids=["default", "no weights"])
def test_two_processes_keep_the_same_weights_and_one_scores_them(tmp_path, sample_data, bundle, two_processes, given):
    """Validation and the report at the end need the network without its wrapper; an objective may have no weights."""
    options = {**bundle.tiny, **bundle.places(tmp_path, sample_data), "max_epochs": 1, "val_interval": 1, **given}
    ranks = two_processes(bundle.configs, tmp_path, ("@network.module",), **options)
    weights = [{name: value for name, value in rank[0].items() if "running" not in name} for rank in ranks]
    torch.testing.assert_close(*weights, rtol=0, atol=0)  # a CPU's batch norms have statistics of their own
    model = load_checkpoint(tmp_path / "models" / "model.pt")
    assert set(model) == set(ranks[0][0]) and bundle.rows(tmp_path)


def test_a_single_source(tmp_path, sample_data, bundle):
    """Scored again without a word of it, too."""
    options = {"source_domains": ["centre_b"], "single_source": True}
    checkpoint, _ = bundle.train(tmp_path, sample_data, max_epochs=1, **options)
    count = checkpoint["objects"]["objective"]["contrast.memory.count"]
    assert count.shape == (1, 3) and count.sum() == 2 * 2 * 6 * 16 * 16  # steps, views, images
    rows = bundle.rows(tmp_path)
    assert {row["domain"] for row in rows} == {"centre_d"} and not rows[-1].get("scatter") and rows[-1]["scatter_all"]
    bundle.evaluate(tmp_path, sample_data, output_dir=str(tmp_path / "again" / "eval"))
    assert bundle.rows(tmp_path / "again") == rows


def test_a_batch_too_small_for_the_domains_is_refused(tmp_path, sample_data, bundle):
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, sample_data, batch_size=5)
    text = "batch_size: expected 6 or more, 2 images of each of 3 domains, found 5; raise it, or name fewer source_"
    assert text in str(root_cause(error.value)) and not list((tmp_path / "models").glob("*.pt"))


def test_a_misspelt_override_ends_the_run_before_it_starts(tmp_path, sample_data, bundle):
    with pytest.raises(RuntimeError) as error:
        bundle.train(tmp_path, sample_data, target_domains="centre_a")
    assert "unknown override --target_domains: did you mean --target_domain?" in str(root_cause(error.value))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["train", "inference"])
def test_the_config_has_all_that_monai_asks_of_it(tmp_path, sample_data, trained, bundle, name):
    kind, sizes = ("train", bundle.sizes) if name == "train" else ("infer", {})
    options = bundle.places(tmp_path, sample_data) | {"ckpt_dir": str(trained[0] / "models")} | sizes
    workflow = ConfigWorkflow(*bundle.config(name), bundle.meta, workflow_type=kind, **options)
    workflow.initialize()
    assert workflow.check_properties() == []


# --- evaluation ---


def test_evaluation_scores_the_saved_model_again(tmp_path, sample_data, trained, bundle):
    bundle.evaluate(tmp_path, sample_data, ckpt_dir=str(trained[0] / "models"))
    assert (tmp_path / "eval" / "cases.csv").read_text() == (trained[0] / "eval" / "cases.csv").read_text()
    assert not (tmp_path / "models").exists()


def test_evaluation_on_a_domain_that_the_model_was_trained_on_says_so(tmp_path, sample_data, trained, bundle):
    """Without that domain in the floor; the domain left out in training stays out of both."""
    dataset = read_dataset(sample_data)
    items = [item for item in dataset.training + dataset.validation if item["domain"] == "centre_b"]
    bundle.evaluate(tmp_path, sample_data, ckpt_dir=str(trained[0] / "models"), target_domain="centre_b")
    rows = bundle.rows(tmp_path)
    assert {row["domain"] for row in rows} == {"centre_b"}
    assert {row["case"] for row in rows[:-1]} == {item["case"] for item in items}
    assert "The model was trained on centre_b, which is scored here" in bundle.summary(tmp_path)
    sources = [item["label"] for item in dataset.training if item["domain"] in ("centre_a", "centre_c")]
    discs = [np.asarray(Image.open(label).resize((32, 32), Image.Resampling.NEAREST)) > 0 for label in sources]
    mean = np.mean(discs, 0) > 0.5
    for row in rows[:-1]:
        if row["structure"] == "disc" and row["bn"] == "eval":
            (label,) = (item["label"] for item in items if item["case"] == row["case"])
            truth, floor = np.asarray(Image.open(label)) > 0, mean.repeat(4, 0).repeat(4, 1)
            dice = 2 * (truth & floor).sum() / (truth.sum() + floor.sum())
            assert float(row["prior_dice"]) == pytest.approx(dice, abs=0.03)  # "nearest" of the two differs by a pixel
    assert "was trained on" not in bundle.summary(trained[0])


def test_evaluation_as_published(tmp_path, sample_data, trained, bundle):
    places = bundle.places(tmp_path, sample_data) | {"ckpt_dir": str(trained[0] / "models")}
    bundle.run(["train", "evaluate", "paper_compat"], pictures=0, **places)
    rows = bundle.rows(tmp_path)[:-1]
    assert [row["bn"] for row in rows[: 7 * 2]] == ["batch"] * 14 and len(rows) == 28
    missed = [row for row in rows if row["status"] == "missed"]
    assert all(float(row["asd_px"]) == 100 for row in missed)
    sizes = []
    for found in (bundle.rows(trained[0])[:-1], rows):
        names = [(row["case"], row["bn"], row["structure"]) for row in found]
        sizes.append(dict(zip(names, [int(row["prediction_voxels"]) for row in found], strict=True)))
    fewer = [usual - sizes[1][name] for name, usual in sizes[0].items()]
    assert min(fewer) >= 0 < max(fewer)  # at a threshold of three quarters


def test_strays_stay_when_asked(tmp_path, sample_data, trained, bundle):
    """In the report, which then differs from that of the training."""
    bundle.evaluate(tmp_path, sample_data, ckpt_dir=str(trained[0] / "models"), cleanup=[])
    voxels, cleaned = ({(row["case"], row["structure"]): int(row["prediction_voxels"]) for row in bundle.rows(folder)
                        if row["bn"] == "eval" and row["structure"]} for folder in (tmp_path, trained[0]))  # fmt: skip
    assert voxels.keys() == cleaned.keys() and voxels != cleaned


# --- inference ---


def infer(folder, data, trained, bundle, suffix):
    """The label map that inference.json writes, and the logits of the network: both with rows first."""
    pixels = np.asarray(Image.open(read_dataset(data).validation[0]["image"]))[:100, :].repeat(2, axis=1)
    Image.fromarray(pixels).save(folder / f"eye{suffix}", quality=95)
    places = bundle.places(folder, data) | {"ckpt_dir": str(trained[0] / "models")}
    bundle.run(["inference"], images=str(folder / f"eye{suffix}"), cleanup=[], **places)
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
def test_inference_writes_labels_on_the_grid_of_the_photograph(
    tmp_path, sample_data, trained, bundle, monkeypatch, suffix
):
    """A photograph that is no square and of another size; logits are enlarged as the report does, smoothly."""
    drawn = []
    monkeypatch.setattr(overlay_handler, "save_overlay", lambda *args: drawn.append(args))
    found, logits = infer(tmp_path, sample_data, trained, bundle, suffix)
    assert found.shape == (100, 256) and found.dtype == np.uint8 and set(np.unique(found)) <= {0, 1, 2} and found.any()
    smooth, rough = (label_map(logits, mode) for mode in ("bilinear", "area"))
    assert np.array_equal(found, smooth) and not np.array_equal(smooth, rough)
    ((_, image, truth, prediction, labels, _, name),) = drawn
    assert name == "eye" and labels == read_dataset(sample_data).labels and truth is None
    assert image.shape == (100, 256, 1, 3) and np.array_equal(np.squeeze(prediction), found)


def test_inference_before_any_training_says_so(tmp_path, sample_data, bundle):
    with pytest.raises(RuntimeError) as error:
        bundle.run(["inference"], **bundle.places(tmp_path, sample_data))
    assert "model.pt: expected a trained model, found no such file; train first" in str(root_cause(error.value))


def test_inference_draws_what_it_found(tmp_path, sample_data, trained, bundle):
    """All of dataset.json's validation, when no image is named."""
    bundle.run(["inference"], **bundle.places(tmp_path, sample_data) | {"ckpt_dir": str(trained[0] / "models")})
    cases = {item["case"] for item in read_dataset(sample_data).validation}
    assert len(cases) == 8
    assert {file.name for file in (tmp_path / "eval").iterdir()} == {f"{case}_seg.png" for case in cases} | {
        f"found_{case}.png" for case in cases}  # fmt: skip


def test_the_scripted_network_equals_the_eager_one(tmp_path, trained, bundle):
    """As inference.json builds it, with the width of the training."""
    parser = ConfigParser(ConfigParser.load_config_files(bundle.config("inference")))
    parser["ckpt_dir"] = str(trained[0] / "models")
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


# --- scans ---


SCANS = {"image_size": [24, 18], "network_def::width": 6, "regions": {"disc": [1, 2]}, "cleanup": [], "batch_size": 4,
         "iterations_per_epoch": 2, "max_epochs": 1, "val_interval": 1, "distances": True}  # fmt: skip


@pytest.fixture(scope="module")
def scans(tmp_path_factory, write_photos, bundle):
    """Data, and the folder of a training with volume.json and other settings than those of train.json."""
    folder = tmp_path_factory.mktemp("scans")
    counts = {"a": 2, "b": 2, "c": 2}, {"a": 1, "b": 1}
    data = write_photos(folder / "set", *counts, size=(20, 18, 10), channels=1)
    return data, folder, bundle.train(folder, data, ["volume"], **SCANS)


def test_scans_are_trained_on_and_scored_slice_by_slice(scans, bundle):
    _, folder, (checkpoint, model) = scans
    assert checkpoint["epoch"] == 1 and model["classifier.weight"].shape == (1, 12, 3, 3)
    assert model["encoder.blocks.0.1.weight"].shape == (6, 1, 3, 3)
    rows = bundle.rows(folder)
    scores = [row for row in rows if row["structure"]]
    assert len(scores) == 2 * 2 and {row["case"] for row in scores} == {"c_1", "c_2"}
    assert all(float(row["truth_ml"]) > 0 and row["hd95_mm"] for row in scores)
    # all discs lie at the same place, so the mean training mask is nearly exact, but for two changes of size
    assert min(float(row["prior_dice"]) for row in scores) > 0.85
    assert checkpoint["objects"]["objective"]["contrast.memory.count"].sum() > 0


def test_a_model_of_scans_is_scored_without_a_word_of_its_settings(scans, tmp_path, bundle, capsys):
    """No other file, and nothing on the command line: the size, the width, the regions and the kind of its images."""
    data, folder, _ = scans
    places = bundle.places(tmp_path, data) | {"ckpt_dir": str(folder / "models")}
    capsys.readouterr()
    bundle.run(["train", "evaluate"], pictures=0, **places)
    assert bundle.rows(tmp_path) == bundle.rows(folder)
    told = capsys.readouterr().err
    assert "weights from" in told and "not as in" not in told  # nothing differs from model.json


def test_a_model_of_scans_segments_without_a_word_of_its_settings(scans, tmp_path, bundle, capsys):
    data, folder, (_, model) = scans
    image = read_dataset(data).training[0]["image"]
    places = bundle.places(tmp_path, data) | {"ckpt_dir": str(folder / "models")}
    capsys.readouterr()
    bundle.run(["inference"], images=image, **places)
    told = capsys.readouterr().err
    assert "weights from" in told and "not as in" not in told
    found, shown = nib.load(tmp_path / "eval" / "a_1_seg.nii.gz"), nib.load(image)
    assert found.shape == shown.shape == (20, 18, 10)
    np.testing.assert_allclose(found.affine, shown.affine, atol=1e-4)
    network = UNet(1, 1, width=6).eval()
    network.load_state_dict(model)
    assert nib.aff2axcodes(shown.affine) == ("L", "P", "S")
    voxels = torch.tensor(shown.get_fdata(dtype=np.float32)).flip(0, 1)  # RAS
    scaled = (voxels - voxels.min()) / (np.percentile(voxels, 99.5) - voxels.min().item())
    slices = F.interpolate(scaled.clamp(0, 1).movedim(-1, 0)[:, None], (24, 18), mode="area")
    with torch.no_grad():
        logits = network(slices)[:, 0].movedim(0, -1)
    enlarged = F.interpolate(logits[None, None], (20, 18, 10), mode="trilinear")[0, 0]
    expected = (enlarged > 0).flip(0, 1).numpy()
    assert (found.get_fdata() > 0).any() and set(np.unique(found.dataobj)) <= {0, 1}
    assert (expected == (found.get_fdata() > 0))[enlarged.flip(0, 1).abs().numpy() > 1e-3].all()


def test_scans_and_photographs_have_models_of_their_own(scans, tmp_path, sample_data, trained, bundle):
    """Either way what the model takes is told, and nothing is written."""
    data, folder, _ = scans
    for ckpt, other, kind in ((folder, sample_data, "scans (NIfTI)"), (trained[0], data, "photographs (PNG, JPEG)")):
        image = read_dataset(other).training[0]["image"]
        for configs, options in ((["inference"], {"images": image}), (["train", "evaluate"], {})):
            with pytest.raises(RuntimeError) as error:
                bundle.run(configs, **bundle.places(tmp_path, other) | {"ckpt_dir": str(ckpt / "models")}, **options)
            assert f"expected {kind}, as the preprocessing of this model" in str(root_cause(error.value))
    assert not list((tmp_path / "eval").glob("*_seg*"))
