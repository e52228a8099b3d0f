"""The configs: overlays and rows of the comparisons name what there is, and build what they say."""

import pytest

from common.description import describe
from common.engine import ObjectiveTrainer

pytestmark = pytest.mark.usefixtures("restored")
ROWS = [(name, group, row)
        for name, groups in (
            ("compare", {"variants": ["SgCG", "SgCG diagonal", "RAM-DSIR", "ERM + BigAug", "ERM"],
                         "rivals": ["SgCG", "prototypes", "memory bank", "RAM-DSIR"],
                         "sweep": ["RAM-DSIR", "tau 0.1 lambda 0.1", "tau 0.2 lambda 0.1", "tau 0.2 lambda 0.3",
                                   "tau 0.5 lambda 0.1", "tau 0.5 lambda 1", "tau 0.5 lambda 2", "tau 1 lambda 1",
                                   "tau 100 lambda 1", "classes balanced", "classes balanced lambda 2", "deepest map",
                                   "logits"]}),
            ("compare_volume", {"variants": ["SgCG", "SgCG diagonal", "RAM-DSIR", "ERM"]}),
            ("compare_pretrained", {"variants": ["SgCG", "RAM-DSIR", "ERM"]}),
        )
        for group, rows in groups.items() for row in rows]  # fmt: skip
# of the rows above: what is not as in train.json
BARE = {"contrast": None, "consistency": None, "restoration": None, "encoder": 0.002, "mix": None}
CHANGES = {
    "SgCG diagonal": {"cov": "diag"},
    "prototypes": {"cov": "none"},
    "memory bank": {"memory": "ClassMemoryBank", "loss": "BankContrastiveLoss", "cov": None, "reduction": None},
    "RAM-DSIR": {"contrast": None},
    "ERM": BARE,
    "ERM + BigAug": BARE | {"augmentation": 9},
    "classes balanced": {"reduction": "class"},
    "classes balanced lambda 2": {"reduction": "class", "weight": 2.0},
    "deepest map": {"level": "deep", "features": 64},
    "logits": {"level": "logits", "features": 2},
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory, write_photos):
    """Two hospitals of one case each, as the comparison of scans has them: with a single source."""
    counts = {"a": 2, "b": 2}
    return write_photos(tmp_path_factory.mktemp("scans") / "set", counts, size=(20, 18, 3), channels=1)


def found_in(parser):
    """What CHANGES names, of a training."""
    trainer = parser.get_parsed_content("train::trainer")
    objective, dataset = trainer.loss_function, parser.get_parsed_content("train::dataset")
    assert isinstance(trainer, ObjectiveTrainer)
    contrast, groups = objective.contrast, trainer.optimizer.param_groups
    found = {name: getattr(objective, name) and "there" for name in ("consistency", "restoration")}
    found |= {"weight": objective.contrast_weight, "encoder": groups[0]["initial_lr"], "rest": groups[1]["initial_lr"]}
    found |= {"augmentation": len(dataset.augmentation.transforms), "mix": dataset.mix and "there"}
    if contrast is None:
        return found | {"contrast": None}
    memory, loss = describe(contrast.memory), describe(contrast.loss)
    return found | {
        "contrast": "there", "memory": memory["class"].split(".")[-1], "loss": loss["class"].split(".")[-1],
        "cov": memory.get("cov"), "features": memory["feat_dim"], "level": contrast.level,
        "temperature": loss["temperature"], "reduction": loss.get("reduction"), "stride": contrast.stride,
        "start": contrast.start,
    }  # fmt: skip


def step_of(parser):
    """The terms of the loss of one step that has all of them."""
    loader, network = parser.get_parsed_content("train::dataloader"), parser.get_parsed_content("network")
    return parser.get_parsed_content("objective").train()(network.train(), next(iter(loader)), step=200)[1]


DEFAULT = {
    "contrast": "there", "consistency": "there", "restoration": "there", "mix": "there", "augmentation": 2,
    "encoder": 0.001, "rest": 0.002, "memory": "ClassStatistics", "loss": "GaussianContrastiveLoss", "cov": "full",
    "features": 8, "level": "penultimate", "temperature": 0.5, "reduction": "pixel", "stride": 2, "start": 20,
    "weight": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "group", "row"), ROWS)
def test_every_row_of_a_comparison_is_what_it_says(bundle, tmp_path, sample_data, scans, name, group, row):
    table = bundle.read(name)
    setting = dict(table[group][row])
    overlays = [overlay.removesuffix(".json") for overlay in [setting.pop("config", None)] if overlay]
    assert overlays == {"compare_volume": ["volume"], "compare_pretrained": ["pretrained"]}.get(name, [])
    data = scans if overlays == ["volume"] else sample_data
    parser = bundle.build(tmp_path, data, overlays, **table["overrides"] | bundle.sizes | setting)
    changes = CHANGES.get(row, {})
    if row.startswith("tau"):
        _, tau, _, weight = row.split()
        changes = {"temperature": float(tau), "weight": float(weight)}
    expected = DEFAULT | changes
    if overlays == ["pretrained"]:  # trained weights move by small steps; the penultimate map is `width` wide
        expected |= {"encoder": 0.0003, "features": 4, "start": 30}
    found = found_in(parser)
    assert found == {key: expected[key] for key in found} and ("memory" in found) == (expected["contrast"] is not None)
    terms = step_of(parser)
    assert all(term.isfinite() for term in terms.values())
    parts = {"feat": "contrast", "kd": "consistency", "rec": "restoration", "seg_ram": "mix"}
    assert terms.keys() - {"loss", "seg"} == {term for term, part in parts.items() if expected[part]}


def test_the_rows_above_are_all_there_are(bundle):
    tables = {name: bundle.read(name) for name in ("compare", "compare_volume", "compare_pretrained")}
    rows = [(name, group, row) for name, table in tables.items() for group in ("variants", "rivals", "sweep")
            for row in table.get(group, {})]  # fmt: skip
    assert rows == ROWS


def test_the_paper_as_it_is_printed(bundle, tmp_path, sample_data):
    """One rate for all, the contrast from the first step on, of every pixel; an epoch is a pass over the sources."""
    parser = bundle.build(tmp_path, sample_data, ["paper"])
    rates = {"encoder": 0.001, "rest": 0.001}
    assert found_in(parser) == DEFAULT | rates | {"temperature": 100.0, "stride": 1, "start": 0, "features": 32}
    sampler, trainer = (parser.get_parsed_content(f"train::{name}") for name in ("sampler", "trainer"))
    assert sampler.counts.tolist() == [3, 3, 2]  # three domains of five images each
    assert (trainer.state.max_epochs, len(sampler)) == (400, 15 // 8)
    assert parser.get_parsed_content("total_steps") == 400 * (15 // 8)
    assert trainer.network.encoder.blocks[0][1].out_channels == 16
    assert parser.get_parsed_content("train::dataset").images[0].shape == (3, 256, 256)


def test_paper_compat_changes_the_evaluation_alone(bundle, tmp_path, sample_data):
    parser = bundle.build(tmp_path, sample_data, ["paper_compat"], **bundle.sizes)
    evaluator = parser.get_parsed_content("validate::evaluator")
    assert evaluator.batch_norms == ["batch", "eval"]
    assert vars(evaluator.protocol) == {"threshold": 0.75, "all_slices": False, "skip_empty": True, "symmetric": False,
                                        "empty_distance": 100.0}  # fmt: skip
    assert found_in(parser) == DEFAULT


def unknown(key, config):
    """The part of an override that names nothing; arguments of a component are its own business."""
    for part in key.split("::"):
        if isinstance(config, list):
            part = int(part)
        elif part not in config:
            return None if "_target_" in config else part
        config = config[part]
    return None


def test_overlays_and_rows_name_only_keys_of_train_json(bundle):
    train = bundle.read("train")
    overlays = ("paper", "paper_compat", "volume", "pretrained")
    keys = {key for overlay in overlays for key in bundle.read(overlay)} - {"comment"}
    keys |= bundle.read("evaluate").keys() - {"trained"}
    keys |= bundle.read("multi_gpu_train").keys() - {"is_rank0", "sync"}
    for name in ("compare", "compare_volume", "compare_pretrained"):
        table = bundle.read(name)
        rows = [table[group][row] for file, group, row in ROWS if file == name]
        keys |= {key for setting in (table["overrides"], table["grid"], *rows) for key in setting} - {"config"}
    assert {key: unknown(key, train) for key in keys if unknown(key, train)} == {}
    assert unknown("contrast::memori::cov", train) is None and unknown("trian::mix", train) == "trian"
