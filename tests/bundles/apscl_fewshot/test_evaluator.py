import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.handlers import MeanDice, from_engine

from apscl_fewshot.adaptation import Adaptation
from apscl_fewshot.encoder import LightEncoder
from apscl_fewshot.evaluator import FewShotEvaluator
from apscl_fewshot.latent import LatentBlock
from apscl_fewshot.objective import LabelBranch, Objective, SpatialSimilarity
from common.engine import ObjectiveTrainer, loss_terms, save_atomic, write_model_record
from common.losses import GaussianKLLoss, SimilarityContrastiveLoss

EPOCHS = 15
TERMS = {"loss", "ce", "kl", "scl", "sigma", "active_latents"}


def make_objective():
    torch.manual_seed(2)
    branch = LabelBranch(LightEncoder(8, (8, 8)), LatentBlock(8, 4, (8, 8), pool=2))
    return Objective(branch, SpatialSimilarity(8, 8), GaussianKLLoss(), SimilarityContrastiveLoss())


@pytest.fixture
def batch(make_scan):
    """Two episodes of two scans: organs 1 and 3."""
    one, two = make_scan("one", native=(32, 32)), make_scan("two", native=(32, 32))
    masks = [torch.stack([(scan["label"][4] == organ)[None].float() for organ in (1, 3)]) for scan in (one, two)]
    images = [scan["image"][[4, 4]] for scan in (one, two)]
    return {"support": images[0][:, None], "support_mask": masks[0][:, None], "query": images[1],
            "query_mask": masks[1], "label": torch.tensor([1, 3]), "case": ["one[4] two[4]"] * 2}  # fmt: skip


def make_trainer(network, objective, batch, optimizer=torch.optim.SGD, lr=0.01, epochs=1, **options):
    parameters = [*network.parameters(), *objective.parameters()]
    return ObjectiveTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=[batch], network=network,
        optimizer=optimizer([p for p in parameters if p.requires_grad], lr=lr), loss_function=objective,
        image_key="query", label_key="query_mask", **options,
    )  # fmt: skip


@pytest.mark.usefixtures("bfloat16_units")
@pytest.mark.parametrize("amp", [False, True])
def test_a_repeated_batch_is_learnt_with_all_terms(make_network, batch, amp):
    network, seen = make_network(), []
    trainer = make_trainer(network, make_objective(), batch, torch.optim.Adam, epochs=EPOCHS, amp=amp)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(loss_terms(engine.state.output)))
    trainer.run()
    assert len(seen) == EPOCHS and all(set(terms) == TERMS for terms in seen)
    assert seen[-1]["loss"] < 0.6 * seen[0]["loss"] and seen[-1]["ce"] < 0.6 * seen[0]["ce"]
    assert all(isinstance(value, (int, float)) and np.isfinite(value) for terms in seen for value in terms.values())
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert trainer.state.output["pred"].shape == (2, 2, 32, 32)
    assert torch.equal(trainer.state.output["label"], batch["query_mask"])


@pytest.fixture
def queries(make_scan):
    """Two query scans with two supports each; the second lacks organ 3."""
    supports = [make_scan("left"), make_scan("right", {1: (0, 4), 3: (2, 8)})]
    scans = [make_scan("first"), make_scan("second", {1: (1, 7), 2: (2, 6)})]
    return [{**scan, "support": supports, "novel_labels": {1: "box 1", 3: "box 3"}} for scan in scans]


def make_evaluator(network, queries, **options):
    metric = {"val_dice": MeanDice(include_background=True, output_transform=from_engine(["pred", "label"]))}
    return FewShotEvaluator(device=torch.device("cpu"), val_data_loader=queries, network=network,
                            model=model_of(network), key_val_metric=metric, **options)  # fmt: skip


def model_of(network):
    return {"network": network, "preprocessing": None, "labels": {1: "box 1", 3: "box 3"}}


def save(network, folder, selection="last"):
    """A model as a training leaves it."""
    save_atomic(network.state_dict(), folder / "model.pt")
    write_model_record(folder / "model.pt", model_of(network), selection)


def test_validation_segments_every_class_from_every_support(network, queries):
    evaluator, seen = make_evaluator(network, queries), []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.output))
    evaluator.run()
    names = [(e["case"], e["support"], e["protocol"], e["structure"], e["first"]) for e in seen]
    assert names == [
        ("first", "left", "parts3", "box 1", 1), ("first", "left", "parts3", "box 3", 3),
        ("first", "right", "parts3", "box 1", 1), ("first", "right", "parts3", "box 3", 3),
        ("second", "left", "parts3", "box 1", 1), ("second", "left", "parts3", "box 3", 0),
        ("second", "right", "parts3", "box 1", 1), ("second", "right", "parts3", "box 3", 0),
    ]  # fmt: skip
    present = [entry for entry in seen if (entry["case"], entry["structure"]) != ("second", "box 3")]
    absent = [entry for entry in seen if (entry["case"], entry["structure"]) == ("second", "box 3")]
    assert not any(entry[key].any() for entry in absent for key in ("pred", "label", "copy"))
    scores = []
    for entry in present:
        predicted, truth = entry["pred"] > 0, entry["label"] > 0
        assert predicted.shape == truth.shape == (1, 40, 36, 3 if entry["structure"] == "box 3" else 7)
        scores.append(2 * (predicted & truth).sum().item() / (predicted.sum() + truth.sum()).item())
    assert evaluator.state.metrics["val_dice"] == pytest.approx(np.mean(scores)) and not network.training


def test_all_supports_in_one_bank(network, queries):
    entries = make_evaluator(network, queries, pool_supports=True).segment_query(queries[0], ["ep2", "no_oracle"])
    assert [(e["support"], e["protocol"]) for e in entries] == [
        ("left+right", "ep2")] * 2 + [("left+right", "no_oracle")] * 2  # fmt: skip


def test_two_supports_of_one_case_have_banks_of_their_own(network, queries):
    left, right = (scan | {"case": "twin"} for scan in queries[0]["support"])
    entries = make_evaluator(network, queries).segment_query(queries[0] | {"support": [left, right]}, ["ep2"])
    own = make_evaluator(network, queries).segment_query(queries[0] | {"support": [right]}, ["ep2"])
    again = [entry for entry in entries if entry["support"] == "twin"][len(own) :]
    assert all(torch.equal(a["pred"], b["pred"]) for a, b in zip(again, own, strict=True))
    assert not torch.equal(entries[0]["pred"], own[0]["pred"])


def test_a_changed_network_encodes_the_supports_anew(network, queries):
    evaluator, seen = make_evaluator(network, queries[:1]), []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))
    evaluator.run()
    banks = dict(evaluator._banks)
    with torch.no_grad():
        network.encoder.first.weight.mul_(-2)
    evaluator.run()
    assert len(banks) == 2 and all(evaluator._banks[key] is not bank for key, bank in banks.items())


def test_a_query_without_any_of_the_organs_is_no_end_of_validation(network, queries, make_scan):
    bare = {**queries[0], **make_scan("bare", {2: (2, 6)})}
    evaluator = make_evaluator(network, [*queries, bare])
    evaluator.run()
    assert evaluator.state.metrics["val_dice"] > 0


def read(folder):
    with open(folder / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_has_cases_a_summary_and_pictures(make_network, network, queries, tmp_path):
    """Of the weights in the file, whatever the network holds."""
    save(network, tmp_path)
    (tmp_path / "eval").mkdir()
    other = make_network()
    with torch.no_grad():
        other.encoder.first.weight.mul_(-2)
    evaluator = make_evaluator(other, queries)
    returned = evaluator.report(str(tmp_path / "model.pt"), str(tmp_path / "eval"), pictures=3)
    rows = read(tmp_path / "eval")
    # 2 supports, 3 protocols, 2 organs of 2 scans; the organ that one scan lacks is "absent" in parts3
    assert len(rows) == len(returned) == 2 * 3 * 2 * 2
    absent = [row for row in rows if row["case"] == "second" and row["structure"] == "box 3"]
    assert {row["status"] for row in absent} <= {"absent", "false_positive"} and len(absent) == 6
    expected = make_evaluator(network, queries).segment_query(queries[0], ["ep2"])[0]
    row = next(row for row in rows if (row["case"], row["protocol"]) == ("first", "ep2"))
    assert int(row["prediction_voxels"]) == int(expected["pred"].sum()) and float(row["hd95_mm"]) > 0
    copied, truth = expected["copy"] > 0, expected["label"] > 0
    dice = 2 * (copied & truth).sum() / (copied.sum() + truth.sum())
    assert float(row["copy_dice"]) == pytest.approx(dice.item(), rel=1e-4)
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert all(word in summary for word in ("parts3", "ep2", "no_oracle", "box 1", "HD95 mm", "copied support mask"))
    pictures = sorted(file.name for file in (tmp_path / "eval").glob("overlay_*.png"))
    assert pictures == [f"overlay_first_{name}.png" for name in ("box_1_left", "box_1_right", "box_3_left")]
    assert all(file.stat().st_size > 5000 for file in (tmp_path / "eval").glob("overlay_*.png"))


def test_a_report_without_distances_leaves_them_empty(network, queries, tmp_path):
    save(network, tmp_path)
    evaluator = make_evaluator(network, queries[:1], protocols=["ep2"], distances=False)
    evaluator.report(str(tmp_path / "model.pt"), str(tmp_path), pictures=0)
    rows = read(tmp_path)
    assert len(rows) == 4 and all(row["dice"] and not row["hd95_mm"] and not row["asd_mm"] for row in rows)
    assert not list(Path(tmp_path).glob("*.png"))
    evaluator = make_evaluator(network, queries[:1], protocols=["ep2"], distance_unit="voxels")
    evaluator.report(str(tmp_path / "model.pt"), str(tmp_path), pictures=0)
    assert all(float(row["hd95_voxels"]) > 0 and "hd95_mm" not in row for row in read(tmp_path))
    with pytest.raises(ValueError, match="distance_unit: expected one of mm, voxels, found voxel"):
        make_evaluator(network, queries[:1], distance_unit="voxel")


def test_unknown_protocols_are_refused(network):
    assert make_evaluator(network, [], protocols="ep2").protocols == ["ep2"]
    with pytest.raises(ValueError, match=r"unknown protocols \['ep1'\]; there are \['parts3', 'ep2',"):
        make_evaluator(network, [], protocols=["parts3", "ep1"])


@pytest.mark.parametrize("protocol", ["parts3", "ep2", "no_oracle", "adapted"])
def test_log_odds_that_are_not_finite_end_the_run(network, make_scan, protocol):
    """The features are finite; of NaN the map would be empty."""
    network.position.weight = torch.nan
    evaluator = make_evaluator(network, [], protocols=[protocol], adaptation=Adaptation(steps=0))
    query = {**make_scan("the-case"), "support": [make_scan("support")], "novel_labels": {1: "one"}}
    with pytest.raises(FloatingPointError, match="the-case: expected finite logits of the network, found"):
        evaluator.segment_query(query, [protocol])
