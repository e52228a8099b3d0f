import csv
import math

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.handlers import MeanDice, from_engine
from torch import nn

from common.engine import save_atomic, write_model_record
from common.report import overlay
from sgcg_dg import evaluator as module
from sgcg_dg.data import DomainDataset
from sgcg_dg.evaluator import DomainEvaluator

REGIONS, LABELS = {"cup": [2], "disc": [1, 2]}, {1: "rim", 2: "cup"}
CPU = torch.device("cpu")
SIZE = (12, 16)
MODEL = {"network": "painted", "preprocessing": "none", "labels": LABELS, "regions": REGIONS, "cleanup": ["largest"],
         "target_domain": "d", "source_domains": ["a", "b"]}  # fmt: skip


class Painted(nn.Module):
    """Cup where the first channel is above one half, disc where the second is: with the norm as a stranger to both."""

    def __init__(self):
        super().__init__()
        self.decoder, self.classifier = nn.Module(), nn.Conv2d(3, 2, 1)
        self.decoder.norm = nn.BatchNorm2d(3, affine=False, eps=1e-12)
        self.decoder.forward = lambda maps: self.decoder.norm(maps[-1])
        self.classifier.weight.data = 20 * torch.eye(3)[:2, :, None, None]
        self.classifier.bias.data.fill_(-10)

    def forward(self, image):
        return self.classifier(self.decoder([image]))


def label_of(cup, disc, size=SIZE):
    """A label map with boxes (rows, columns)."""
    label = torch.zeros(size, dtype=torch.uint8)
    for value, box in ((1, disc), (2, cup)):
        if box:
            label[slice(*box[0]), slice(*box[1])] = value
    return label


def masks_of(label):
    return np.stack([label.numpy() == 2, label.numpy() > 0])


def image_of(label, blue=0.0):
    """An image that the painted network segments as ``label``.

    To the right of cup and disc there is a faint edge; batch statistics lift that of the cup above the threshold.
    """
    image = torch.cat([torch.from_numpy(masks_of(label)).float(), torch.full((1, *label.shape), blue)])
    for channel, column in ((0, 10), (1, 13)):
        image[channel, 4:8, column] = image[channel, 4:8, column].clamp(min=0.45)
    return image


def make_case(name, truth, predicted, domain="d", **changes):
    """As :class:`common.data.whole_cases.CaseDataset` gives it."""
    native = torch.rand(3, *truth.shape) * 255
    return {"image": image_of(predicted), "label": truth, "native": native, "affine": None, "spacing": [1.0, 1.0],
            "unit": "px", "case": name, "scan": name, "domain": domain} | changes  # fmt: skip


CUP, DISC = ((4, 8), (5, 10)), ((2, 10), (3, 13))
MOVED = ((5, 9), (6, 11)), ((2, 9), (4, 13))


@pytest.fixture
def cases():
    """Of the domain left out: found, moved, a missed cup, a cup where there is none."""
    found = label_of(CUP, DISC)
    no_cup, moved = label_of(None, DISC), label_of(*MOVED)
    return [make_case("found", found, found), make_case("moved", found, moved), make_case("missed", found, no_cup),
            make_case("extra one", no_cup, found)]  # fmt: skip


def training_set():
    """Seven images of two domains; the blue of a domain is a scatter of its features."""
    items = []
    for i in range(7):
        cup, disc = ((4, 8), (5 + i % 3, 10)), ((2, 10), (3, 11 + i % 3))
        label = label_of(cup, disc)
        image = image_of(label, 0.2 + 0.5 * (i % 2)) + 0.05 * torch.rand(3, *SIZE)
        items.append({"image": image, "label": label[None], "domain": "ab"[i % 2], "case": f"t{i}"})
    return DomainDataset(items, lambda item: {"image": item["image"], "label": item["label"]})


def make_evaluator(cases, network=None, validation=None, **options):
    metric = {"val_dice": MeanDice(include_background=True, output_transform=from_engine(["pred", "label"]))}
    loader = DataLoader(cases if validation is None else validation, collate_fn=lambda batch: batch[0])
    given = {"regions": REGIONS, "labels": LABELS, "cleanup": ["largest"], "test": cases, "training": training_set()}
    return DomainEvaluator(
        device=CPU, val_data_loader=loader, network=Painted() if network is None else network, key_val_metric=metric,
        model=MODEL, **given | options,
    )  # fmt: skip


def save(folder, network, selection="last", **changes):
    """A trained model."""
    save_atomic(network.state_dict(), folder / "model.pt")
    write_model_record(folder / "model.pt", MODEL | changes, selection)


def report(folder, evaluator, record=None, **options):
    save(folder, evaluator.network, **record or {})
    returned = evaluator.report(str(folder / "model.pt"), str(folder / "eval"), **options)
    with open(folder / "eval" / "cases.csv", newline="") as file:
        return returned, list(csv.DictReader(file))


def floor_of(folder):
    """Structure to the Dice of the mean training mask that the summary tells."""
    lines = (folder / "eval" / "summary.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if "Dice of the mean training mask" in line)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines[first + 2 :]]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def dice(predicted, truth):
    return 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())


def test_validation_scores_the_regions_of_whole_cases(cases):
    """With running averages: whatever lies beside a case."""
    evaluator, seen = make_evaluator(cases), []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.output))
    evaluator.run()
    for case, output in zip(cases, seen, strict=True):
        assert np.array_equal(output["pred"].numpy() > 0, case["image"][:2].numpy() > 0.5)
        assert np.array_equal(output["label"].numpy() > 0, masks_of(case["label"])) and output["pred"].ndim == 3
    moved, truth = masks_of(label_of(*MOVED)), masks_of(label_of(CUP, DISC))
    # mean of the cases; of the last one the disc alone counts, as it has no cup
    scores = [1, (dice(moved[0], truth[0]) + dice(moved[1], truth[1])) / 2, 0.5, 1]
    assert evaluator.state.metrics["val_dice"] == pytest.approx(np.mean(scores)) and not evaluator.network.training


def test_the_report_has_both_columns_of_batch_norm(cases, tmp_path):
    returned, rows = report(tmp_path, make_evaluator(cases, validation=cases[:1]), pictures=0)
    names = [(row["case"], row["bn"], row["structure"]) for row in rows[:-1]]
    expected = [(case, bn, region) for bn in ("eval", "batch") for case in ("found", "moved", "missed", "extra one")
                for region in ("cup", "disc")]  # fmt: skip
    assert sorted(names) == sorted(expected) and len(returned) == 16 and {row["domain"] for row in rows} == {"d"}
    # statistics of the four images at hand, by hand: the paint is normalised before its threshold of one half
    images, sizes = torch.stack([case["image"] for case in cases]).numpy(), {"eval": [], "batch": []}
    means, deviations = images.mean((0, 2, 3), keepdims=True), images.std((0, 2, 3), keepdims=True)
    for bn, painted in (("eval", images), ("batch", (images - means)[:, :2] / deviations[:, :2])):
        for i, case in enumerate(cases):
            for k, region in enumerate(REGIONS):
                row = next(r for r in rows if (r["case"], r["bn"], r["structure"]) == (case["case"], bn, region))
                sizes[bn].append(int(row["prediction_voxels"]))
                assert sizes[bn][-1] == (painted[i, k] > 0.5).sum()
                assert int(row["truth_voxels"]) == masks_of(case["label"])[k].sum()
    assert all(one > other for one, other in zip(sizes["batch"][::2], sizes["eval"][::2], strict=True))  # the cups


def test_the_scores_of_a_case(cases, tmp_path):
    _, rows = report(tmp_path, make_evaluator(cases, batch_norms=["eval"]), pictures=0)
    found = {(row["case"], row["structure"]): row for row in rows}
    moved, truth = masks_of(label_of(*MOVED)), masks_of(label_of(CUP, DISC))
    for k, region in enumerate(REGIONS):
        assert float(found["moved", region]["dice"]) == pytest.approx(dice(moved[k], truth[k]), rel=1e-5)
    assert [found[name, "cup"]["status"] for name in ("found", "moved", "missed", "extra one")] == [
        "ok", "ok", "missed", "false_positive"]  # fmt: skip
    assert float(found["found", "disc"]["asd_px"]) == 0 and float(found["moved", "cup"]["hd95_px"]) > 0.9
    assert float(found["missed", "cup"]["hd95_px"]) == pytest.approx(math.hypot(*SIZE), rel=1e-5)
    assert not found["extra one", "cup"]["asd_px"]


def test_a_missed_structure_has_the_distance_that_is_asked_for(cases, tmp_path):
    """In place of the image's diagonal; a structure that is found keeps its own, and so does what is not measured."""
    evaluator = make_evaluator(cases, batch_norms=["eval"], protocol={"empty_distance": 100.0})
    _, rows = report(tmp_path, evaluator, pictures=0)
    cups = {row["case"]: row for row in rows if row["structure"] == "cup"}
    assert [float(cups["missed"][name]) for name in ("dice", "hd95_px", "asd_px")] == [0, 100, 100]
    assert float(cups["moved"]["hd95_px"]) < 5 and not cups["missed"]["asd_px_found_only"]
    evaluator.distances = False
    _, rows = report(tmp_path, evaluator, pictures=0)
    assert all(row["hd95_px"] == row["asd_px"] == row["prior_asd_px"] == "" for row in rows)
    assert any(row["dice"] for row in rows)
    evaluator.distances, evaluator.distance_unit = True, "voxels"
    _, rows = report(tmp_path, evaluator, pictures=0)
    in_voxels = {row["case"]: row for row in rows if row["structure"] == "cup"}
    assert [float(in_voxels["missed"][name]) for name in ("hd95_voxels", "asd_voxels")] == [100, 100]
    assert in_voxels["moved"]["prior_hd95_voxels"] == cups["moved"]["prior_hd95_px"]
    with pytest.raises(ValueError, match="distance_unit: expected one of mm, voxels, found voxel"):
        make_evaluator(cases, distance_unit="voxel")


def test_the_floor_has_the_same_protocol(cases, tmp_path):
    """A mean mask without a cup: its distance is the one asked for."""
    evaluator = make_evaluator(cases, batch_norms=["eval"], protocol={"empty_distance": 100.0})
    for label in evaluator.training.labels[:4]:
        label[label == 2] = 1
    _, rows = report(tmp_path, evaluator, pictures=0)
    cups = {row["case"]: row for row in rows if row["structure"] == "cup"}
    assert [float(cups["found"][name]) for name in ("prior_dice", "prior_hd95_px", "prior_asd_px")] == [0, 100, 100]
    assert not cups["extra one"]["prior_dice"]  # nothing to find and nothing found
    assert floor_of(tmp_path)["cup"] == "0.000"


@pytest.mark.parametrize("symmetric", [True, False])
def test_directed_distances(cases, tmp_path, symmetric):
    """A cup without its right half: from prediction to truth it is near, back it is not."""
    truth = label_of(((4, 8), (4, 14)), DISC)
    case = make_case("half", truth, label_of(((4, 8), (4, 9)), DISC))
    evaluator = make_evaluator([case], batch_norms=["eval"], protocol={"symmetric": symmetric})
    _, rows = report(tmp_path, evaluator, pictures=0)
    cup = next(row for row in rows if row["structure"] == "cup")
    # only the two inner pixels of the right edge of the prediction lie off the edge of the truth, by one each
    assert (float(cup["asd_px"]) > 1) == symmetric and float(cup["hd95_px"]) > 4


def test_the_floor_is_the_mean_training_mask(cases, tmp_path):
    """Boxes whose right edges vary: more than half of the images agree up to the middle one."""
    larger = make_case("larger", label_of(CUP, DISC, (24, 16)), label_of(CUP, DISC))
    evaluator = make_evaluator([*cases, larger], batch_norms=["eval"])
    _, rows = report(tmp_path, evaluator, pictures=0)
    labels = np.stack([label[0].numpy() for label in evaluator.training.labels])
    prior = np.stack([(labels == 2).mean(0) > 0.5, (labels > 0).mean(0) > 0.5])
    assert 0 < prior[0].sum() < prior[1].sum()
    for case in (*cases[:3], larger):
        own = prior.repeat(2, 1) if case is larger else prior  # twice the rows
        for k, region in enumerate(REGIONS):
            row = next(r for r in rows if (r["case"], r["structure"]) == (case["case"], region))
            assert float(row["prior_dice"]) == pytest.approx(dice(own[k], masks_of(case["label"])[k]), rel=1e-5)
            assert float(row["prior_hd95_px"]) >= float(row["prior_asd_px"]) >= 0
    for region in REGIONS:
        values = [float(row["prior_dice"]) for row in rows if row["structure"] == region and row["status"] != "absent"]
        assert floor_of(tmp_path)[region] == f"{np.mean(values):.3f}"


def scatter_of(domains):
    """Naive, in float64: of each class the spread of the domains' means over the trace of the covariance of all."""
    shares = []
    for k in range(3):
        own = [features[labels == k] for features, labels in domains]
        means = np.stack([x.mean(0) for x in own])
        together = np.concatenate(own)
        shares.append(((means - means.mean(0)) ** 2).sum(1).mean() / together.var(0).sum())
    return np.mean(shares)


def test_the_features_have_a_row_of_their_own(cases, tmp_path):
    """All pixels count here, as they are few."""
    evaluator = make_evaluator(cases)
    _, rows = report(tmp_path, evaluator, pictures=0)
    *others, last = rows
    assert (last["case"], last["domain"], last["bn"], last["structure"]) == ("features", "d", "eval", "")
    assert not last["dice"] and not any(row["scatter"] for row in others)
    training = evaluator.training
    domains = []
    for members in training.members:
        images = np.stack([training.images[i].numpy() for i in members]).astype(float)
        domains.append((images, np.stack([training.labels[i][0].numpy() for i in members])))
    domains.append((np.stack([case["image"].numpy() for case in cases]).astype(float),
                    np.stack([case["label"].numpy() for case in cases])))  # fmt: skip
    pixels = []
    for images, labels in domains:
        vectors = np.moveaxis(images, 1, -1).reshape(-1, 3)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        pixels.append((vectors / np.maximum(lengths, 1e-12), labels.ravel()))
    assert float(last["scatter"]) == pytest.approx(scatter_of(pixels[:2]), rel=1e-4)
    assert float(last["scatter_all"]) == pytest.approx(scatter_of(pixels), rel=1e-4)
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert f"scatter of the features between source domains: {scatter_of(pixels[:2]):.4f}" in summary
    assert not list((tmp_path / "eval").glob("*.png"))


def test_pictures_of_the_first_cases_replace_older_ones(cases, tmp_path, monkeypatch):
    drawn, save, maps = [], overlay.save_overlay, []
    monkeypatch.setattr(overlay, "save_overlay", lambda *args: (drawn.append(args), save(*args)))
    monkeypatch.setattr(module, "save_tsne", lambda *args: maps.append(args))  # tested with the features
    network = Painted()
    other = make_case("extra one", cases[0]["label"], cases[0]["label"], scan="its other eye")
    evaluator = make_evaluator([cases[3], other, *cases[:3]], network)
    report(tmp_path, evaluator, pictures=2)
    names = sorted(file.name for file in (tmp_path / "eval").glob("*.png"))
    assert names == ["overlay_extra_one.png", "overlay_its_other_eye.png"]
    assert maps[0][0].name == "features.png" and list(maps[0][1]) == ["a", "b", "d (target)"] and maps[0][2] == LABELS
    assert all(file.stat().st_size > 5000 for file in (tmp_path / "eval").glob("*.png"))
    _, image, truth, prediction, labels, affine, title, scores = drawn[0]
    # with x first, as MONAI reads photographs; a picture has its rows first
    assert image.shape == (3, 16, 12) and affine is None and labels == LABELS and title == "extra one"
    assert np.array_equal(truth, cases[3]["label"].numpy().T)
    assert np.array_equal(prediction, label_of(CUP, DISC).numpy().T)
    assert np.array_equal(image, cases[3]["native"].numpy().swapaxes(1, 2)) and scores == {"cup": 0.0, "disc": 1.0}
    report(tmp_path, make_evaluator(cases, network), pictures=0)
    assert not list((tmp_path / "eval").glob("overlay_*.png"))


def test_the_report_is_of_the_weights_in_the_file(cases, tmp_path):
    network = Painted()
    save(tmp_path, network)
    network.classifier.bias.data.fill_(-100)  # finds nothing
    rows = make_evaluator(cases, network).report(str(tmp_path / "model.pt"), str(tmp_path), pictures=0)
    assert next(row for row in rows if row["structure"] == "disc")["status"] == "ok"
    summary = (tmp_path / "summary.md").read_text()
    assert all(text in summary for text in ("| domain", "| bn", "HD95 px", "ASD px", "batch", "eval", "missed"))
    assert "Dice of the mean training mask" in summary


def test_the_columns_are_chosen_by_name(cases, tmp_path):
    _, rows = report(tmp_path, make_evaluator(cases, batch_norms="batch", distances=False), pictures=0)  # as typed
    assert {row["bn"] for row in rows[:-1]} == {"batch"} and len(rows) == 9 and rows[-1]["bn"] == "eval"
    with pytest.raises(ValueError, match=r"unknown batch norms \['train'\]; there are \['eval', 'batch'\]"):
        make_evaluator(cases, batch_norms=["eval", "train"])


def test_strays_count_or_not_as_asked(cases, tmp_path):
    truth = cases[0]["label"]
    stray = truth.clone()
    stray[0, 15] = 1
    sizes = {}
    for steps in ((), ("largest",)):
        evaluator = make_evaluator([make_case("stray", truth, stray)], batch_norms=["eval"], cleanup=steps)
        _, rows = report(tmp_path, evaluator, pictures=0)
        sizes[steps] = {row["structure"]: int(row["prediction_voxels"]) for row in rows[:-1]}
    assert sizes == {(): {"cup": 20, "disc": 81}, ("largest",): {"cup": 20, "disc": 80}}


def test_without_a_domain_left_out_the_validation_is_reported(cases, tmp_path):
    """Its features are the sources': there is no target."""
    validation = [case | {"domain": "a"} for case in cases[:2]]
    _, rows = report(tmp_path, make_evaluator([], validation=validation), pictures=0)
    assert {row["case"] for row in rows} == {"found", "moved", "features"} and {row["domain"] for row in rows} == {"a"}
    assert rows[-1]["scatter"] and "scatter_all" not in rows[-1]


OPTIMISTIC = "figures of those are optimistic"
TRAINED_ON = "The model was trained on d, which is scored here"


@pytest.mark.parametrize(
    ("left_out", "record", "expected"),
    [
        (True, {}, set()),
        (True, {"source_domains": ["a", "d"]}, {TRAINED_ON}),
        # the cases that chose it are the sources': the left out domain's figures are honest
        (True, {"selection": "validation"}, set()),
        (False, {"selection": "validation"}, {OPTIMISTIC}),
        (False, {"source_domains": ["a", "d"]}, set()),  # as it must be: these are the sources' validation
    ],
)
def test_the_summary_says_what_the_model_has_seen(cases, tmp_path, caplog, left_out, record, expected):
    evaluator = make_evaluator(cases if left_out else [], validation=cases, batch_norms=["eval"], distances=False)
    report(tmp_path, evaluator, record, pictures=0)
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert {text for text in (OPTIMISTIC, TRAINED_ON) if text in summary} == expected
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    seen = TRAINED_ON in expected
    assert summary.startswith(TRAINED_ON) == seen and any(text.startswith(TRAINED_ON) for text in warned) == seen
    chosen = "the best on the validation cases" if "selection" in record else "that of the last iteration"
    assert f"Checkpoint: {chosen}" in summary


def test_nothing_to_score_is_said(cases, tmp_path):
    _, rows = report(tmp_path, make_evaluator([], validation=[]))
    assert [row["case"] for row in rows] == ["features"]
    summary = (tmp_path / "eval" / "summary.md").read_text()
    assert summary.startswith("Nothing was scored.\n\nThere is no target domain, and no domain has images enough")


def test_scans_are_scored_in_millimetres(tmp_path, monkeypatch):
    """Slice by slice, with the mean training slice as the floor of each."""
    monkeypatch.setattr(module, "save_tsne", lambda *args: None)
    truth = torch.zeros(*SIZE, 5, dtype=torch.uint8)
    truth[..., 1:4] = label_of(CUP, DISC)[..., None]
    predicted = truth.clone()
    predicted[..., 1] = 0
    grid = {"affine": np.diag([2.0, 2.0, 5.0, 1.0]), "spacing": [2.0, 2.0, 5.0], "unit": "mm"}
    evaluator = make_evaluator([make_case("scan", truth, predicted, **grid)], batch_norms=["eval"])
    _, rows = report(tmp_path, evaluator, pictures=1)
    disc = next(row for row in rows if row["structure"] == "disc")
    assert float(disc["dice"]) == pytest.approx(2 * 2 / 5) and float(disc["hd95_mm"]) == 5
    assert float(disc["truth_ml"]) == pytest.approx(3 * 80 * 20 / 1000)
    labels = np.stack([label[0].numpy() for label in evaluator.training.labels])
    prior = np.repeat(((labels > 0).mean(0) > 0.5)[..., None], 5, axis=-1)
    assert float(disc["prior_dice"]) == pytest.approx(dice(prior, truth.numpy() > 0), rel=1e-5)
    assert (tmp_path / "eval" / "overlay_scan.png").is_file()
    assert rows[-1]["scatter"] and "scatter_all" not in rows[-1]  # of a scan's slices no features are taken
