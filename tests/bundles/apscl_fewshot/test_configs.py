"""The configs: each row of the comparison, and each overlay, builds a network and a loss that a file can describe."""

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from common.description import describe, rebuild

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "apscl_fewshot" / "configs"
COMPARE = {name: json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("compare", "compare_resnet")}
ROWS = [(file, group, name) for file, groups in COMPARE.items() for group in ("variants", "alignment", "ablation")
        for name in groups.get(group, {})]  # fmt: skip
SMALL = {"image_size": [32, 32], "network_def::encoder::feat_dim": 8, "network_def::encoder::width": 8}
# parts that a row has beyond the encoder and what decodes it: prior, position, contrast, alignment
PARTS = {
    "APSCL (FEM and position prior)": "prior position", "PANet": "alignment", "ALPNet": "alignment",
    "PANet with position prior": "position alignment", "ALPNet with position prior": "position alignment",
    "ADNet": "alignment", "ADNet with position prior": "position alignment",
    "the annotated scan alone": "position", "position prior (default)": "position",
    "PANet without alignment": "", "ALPNet without alignment": "",
    "FEM and position prior": "prior position", "none": "", "FEM": "prior", "SCL": "contrast", "MGD": "",
    "all": "prior contrast", "all (two projections)": "prior contrast", "position prior": "position",
    "all and position prior": "prior position contrast",
}  # fmt: skip
DECODERS = {"ALPNet": "ALPNetDecoder", "ADNet": "ADNetDecoder", "MGD": "MutualGuidanceDecoder",
            "all": "MutualGuidanceDecoder"}  # fmt: skip


def build(changes, overlays=()):
    """Network and loss of train.json with these changes."""
    parser = ConfigParser(ConfigParser.load_config_files([str(CONFIGS / f"{n}.json") for n in ("train", *overlays)]))
    parser.update({**SMALL, **changes})
    return parser.get_parsed_content("network_def"), parser.get_parsed_content("loss")


@pytest.mark.parametrize(("file", "group", "name"), ROWS)
def test_a_row_has_the_parts_of_its_name_and_can_be_rebuilt(file, group, name):
    changes = dict(COMPARE[file][group][name])
    files = changes.pop("config", [])
    overlays = [Path(part).stem for part in ([files] if isinstance(files, str) else files)]
    network, loss = build(changes, overlays)
    assert ("resnet" in overlays) == (file == "compare_resnet")
    found = {"prior": network.prior, "position": network.position, "contrast": loss.contrast,
             "alignment": loss.align_weight}  # fmt: skip
    assert [part for part, there in found.items() if there] == PARTS[name].split()
    assert (loss.kl is not None) == (network.prior is not None)  # the KL is of the prior's latent
    decoder = next((kind for start, kind in DECODERS.items() if name.startswith(start)), "PANetDecoder")
    assert type(network.decoder).__name__ == decoder
    assert describe(network)["decoder"].get("shared", True) == (name != "all (two projections)")
    again = rebuild(json.loads(json.dumps(describe(network))))
    again.load_state_dict(network.state_dict(), strict=True)
    assert describe(again) == describe(network)


def test_the_rows_of_the_tables_are_those_of_the_readme():
    readme = (CONFIGS.parent / "docs" / "README.md").read_text()
    listed = {line.strip("|").split("|")[0].strip() for line in readme.splitlines() if line.startswith("| ")}
    assert set(COMPARE["compare_resnet"]["ablation"]) <= listed
    assert [name for name in COMPARE["compare"]["variants"] if name not in readme] == []


@pytest.mark.parametrize("name", ["paper", "resnet", "fem", "evaluate", "multi_gpu_train"])
def test_overlays_and_comparisons_name_only_keys_of_train_json(name):
    train = json.loads((CONFIGS / "train.json").read_text())
    keys = {key.split("::")[0] for key in json.loads((CONFIGS / f"{name}.json").read_text())}
    keys |= {key.split("::")[0] for file, group, row in ROWS for key in COMPARE[file][group][row]}
    for compare in COMPARE.values():
        keys |= {*compare["overrides"], *compare["grid"]}
    assert keys <= {*train, "trained", "comment", "config", "is_rank0", "train::superpixels::cache_dir"}


def test_the_printed_method_is_built_of_its_parts():
    network, loss = build({"network_def::encoder::name": "resnet18"}, ["paper"])
    branch = loss.label_branch
    assert network.position is None and not network.prior.enhancement.residual
    assert type(branch.encoder) is type(network.encoder) and branch.encoder.body.conv1.in_channels == 1
    assert (loss.kl_weight, loss.scl_weight, loss.align_weight) == (0.1, 0.07, 0.0)
    told = describe(loss, strict=False)["contrast"]  # what a run is not resumed without
    assert (told["temperature"], told["normalisation"]) == (0.1, "paper")
