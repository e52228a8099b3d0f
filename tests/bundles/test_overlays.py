"""Overlays name what train.json has; those of the printed methods say what of them cannot be run, and train."""

import inspect
import json
from pathlib import Path
from pydoc import locate

import pytest
import torch
from monai.bundle import ConfigComponent, ConfigParser

from common.data.write import write_dataset
from sgcg_dg.phantom import STRUCTURES
from sgcg_dg.sample import CENTRES, draw_case

pytestmark = pytest.mark.usefixtures("restored")
BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
PATCH = {2: {"patch_size": [32, 32]}, 3: {"patch_size": [16, 16, 16]}}
# bundle, overlays of train.json, and what makes the run tiny
TRAINED = [
    ("apscl_fewshot", ["paper"], {"image_size": [32, 32], "network_def::encoder::name": "resnet18",
                                  "network_def::encoder::width": 8, "train::dataset::min_fg": 1}),
    ("diffcl_ssl", ["paper"], {"network_def::width": 4, "network_def::d_state": 2, **PATCH[3]}),
    ("sgcg_dg", ["paper"], {"network_def::width": 4, "image_size": [32, 32]}),
    ("transmedseg_ssl", ["paper"], {"network_def::width": 4, "batch_size": 2, **PATCH[2]}),
    ("transmedseg_ssl", ["volume", "volume_paper"], {"network_def::width": 4, "batch_size": 2, **PATCH[3]}),
    ("apscl_fewshot", ["resnet"], {"image_size": [32, 32], "network_def::encoder::width": 8, "adaptation::steps": 1,
                                   "train::dataset::min_fg": 1}),
    ("apscl_fewshot", ["fem"], {"image_size": [32, 32], "network_def::encoder::width": 8, "adaptation::steps": 1,
                                "train::dataset::min_fg": 1}),
    ("sgcg_dg", ["pretrained"], {"image_size": [32, 32]}),
]  # fmt: skip
SCORED = [("sgcg_dg", ["paper_compat"], {"image_size": [32, 32], "network_def::width": 4})]
UNDER = {"volume_paper": ["volume"]}  # what lies between an overlay and train.json
OTHERS = ("train", "inference", "metadata", "compare", "uncertainty")  # which are no overlays of it, or have rows
OVERLAYS = sorted(file for file in BUNDLES.glob("*/configs/*.json") if not file.stem.startswith(OTHERS))
BROUGHT = {"comment", "trained", "is_rank0", "sync", "train::sampler", "train::dataloader::sampler"}  # by overlays
SHORT = {"max_epochs": 1, "schedule_epochs": 1, "val_interval": 1000, "pictures": 0, "distances": False}


def config(bundle, name):
    return json.loads((BUNDLES / bundle / "configs" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_bundle):
    """Bundle to a data set that it takes; photographs of three centres to train on and one to leave out."""
    made = {}

    def get(bundle):
        folder = tmp_path_factory.mktemp(bundle) / "set"
        if bundle == "sgcg_dg":
            splits = {"training": range(1, 5), "validation": range(5, 6)}
            cases = {split: [draw_case(centre, number, 0) for centre in CENTRES for number in numbers]
                     for split, numbers in splits.items()}  # fmt: skip
            write_dataset(folder, "centres", {"0": "photograph"}, STRUCTURES, **cases)
        elif bundle == "apscl_fewshot":
            tiny_bundle("transmedseg_ssl").write(folder, training=4, unlabeled=0, size=(36, 34, 6))
        else:
            folder = tiny_bundle(bundle).data
        return folder

    return lambda bundle: made.get(bundle) or made.setdefault(bundle, get(bundle))


def parser(bundle, overlays, folder, dataset, **options):
    """Of train.json with overlays: as they are, but for these options."""
    files = [str(BUNDLES / bundle / "configs" / f"{name}.json") for name in ("train", *overlays)]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    places = {"ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval"), "dataset_dir": str(dataset)}
    if bundle == "apscl_fewshot":
        places["novel_labels"] = [2]  # of two structures
    parser.update(places | SHORT | options)
    return parser


def is_known(key, train, merged):
    """Whether a config has the key, or its component an argument of that name."""
    *places, last = key.split("::")
    part, whole = train, merged
    for place in places:
        part, whole = (each[int(place) if isinstance(each, list) else place] for each in (part, whole))
    if last in (map(str, range(len(part))) if isinstance(part, list) else part):
        return True
    if not isinstance(whole, dict) or "_target_" not in whole:
        return False
    return last in inspect.signature(locate(ConfigComponent(whole).resolve_module_name())).parameters


@pytest.mark.parametrize(("bundle", "overlays", "tiny"), TRAINED + SCORED)
def test_an_overlay_says_what_is_not_printed(bundle, overlays, tiny):
    comment = config(bundle, overlays[-1])["comment"]
    lines = [comment] if isinstance(comment, str) else comment
    assert lines and all(line.strip() and len(line) <= 140 and line[0] not in "$@%" for line in lines)


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: f"{file.parts[-3]}-{file.stem}")
def test_an_overlay_names_parts_of_what_it_lies_over(file):
    bundle, under = file.parts[-3], UNDER.get(file.stem, [])
    train, merged = ConfigParser(config(bundle, "train")), ConfigParser(config(bundle, "train"))
    for name in under:
        train.update(config(bundle, name))
    for name in (*under, file.stem):
        merged.update(config(bundle, name))
    content = config(bundle, file.stem).keys() - BROUGHT
    assert [key for key in content if not is_known(key, train.get(), merged.get())] == []


def test_a_key_that_nothing_reads_is_found():
    part = {"_target_": "torch.nn.ReLU", "other": 1.0}
    train = {"network_def": {"_target_": "torch.nn.Linear", "bias": True}, "parts": [part]}
    known = ["network_def::bias", "network_def::in_features", "parts::0", "parts::0::other", "parts::0::inplace"]
    unknown = ["network_def::width", "parts::1", "parts::0::bias", "optimizer"]
    assert [key for key in known + unknown if not is_known(key, train, train)] == unknown


@pytest.mark.parametrize(("bundle", "overlays", "tiny"), TRAINED)
def test_an_overlay_trains(tmp_path, data, bundle, overlays, tiny):
    """Two steps; the length of an epoch of sgcg_dg's paper.json follows from the data."""
    printed = (bundle, overlays) == ("sgcg_dg", ["paper"])
    steps = {} if printed else {"iterations_per_epoch": 2}
    trainer = parser(bundle, overlays, tmp_path, data(bundle), **tiny, **steps).get_parsed_content("train::trainer")
    before = [value.detach().clone() for value in trainer.network.parameters()]
    trainer.run()
    assert trainer.state.iteration == (12 // 8 if printed else 2)
    teacher = getattr(trainer.loss_function, "teacher", None)
    assert teacher is None or teacher.begun  # or unlabelled images took no part
    after = list(trainer.network.parameters())
    assert all(value.isfinite().all() for value in after)
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def rates(scheduler, optimizer, steps):
    """The learning rate of the first group at the beginning and after each step."""
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(("bundle", "overlays", "tiny"), [row for row in TRAINED if row[0] == "transmedseg_ssl"])
def test_the_learning_rate_falls_as_in_bcp(tmp_path, data, bundle, overlays, tiny):
    """On slices never; on volumes to a tenth after each 2500 steps of the second stage."""
    made = parser(bundle, overlays, tmp_path, data(bundle), **tiny)
    found = rates(made.get_parsed_content("lr_scheduler"), made.get_parsed_content("optimizer"), 7000)
    expected = [0.01] * 7001 if overlays == ["paper"] else [0.01] * 4500 + [0.001] * 2500 + [0.0001]
    assert found == pytest.approx(expected)


def test_the_contrast_of_sgcg_takes_all_pixels_from_the_first_step_on(tmp_path, data):
    made = parser("sgcg_dg", ["paper"], tmp_path, data("sgcg_dg"), **TRAINED[2][2])
    contrast, optimizer = (made.get_parsed_content(part) for part in ("contrast", "optimizer"))
    assert (contrast.start, contrast.stride, contrast.level, contrast.loss.temperature) == (0, 1, "penultimate", 100)
    assert contrast.loss.reduction == "pixel" and contrast.memory.cov.shape == (3, 3, 8, 8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.001, 0.001]


@pytest.mark.parametrize(("bundle", "overlays", "tiny"), SCORED)
def test_the_published_scoring_can_be_built(tmp_path, data, bundle, overlays, tiny):
    evaluator = parser(bundle, overlays, tmp_path, data(bundle), **tiny).get_parsed_content("validate::evaluator")
    assert evaluator.batch_norms == ["batch", "eval"]
    assert vars(evaluator.protocol) == {"threshold": 0.75, "all_slices": False, "skip_empty": True,
                                        "symmetric": False, "empty_distance": 100.0}  # fmt: skip
