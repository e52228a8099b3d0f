"""Whole cases on their own grid: what is predicted, how it is scored, and what the report says about itself."""

import csv

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.handlers import MeanDice, from_engine
from monai.inferers import SimpleInferer
from monai.transforms import Compose, CopyItemsd, EnsureChannelFirstd, LoadImaged, Zoomd
from torch import nn

from common.data import CaseDataset
from common.description import described
from common.engine import PatchInferer, save_atomic, write_model_record
from common.report import CaseEvaluator

LABELS = {1: "cavity", 2: "wall"}
SIZE = (8, 7, 6)


@described()
class Levels(nn.Module):
    """Of grey values around 0, 1 and 2 the class is the nearest one; works in two and in three dimensions."""

    def __init__(self, classes=3):
        super().__init__()
        self.levels = nn.Parameter(torch.arange(float(classes)))

    def forward(self, image):
        return -((image - self.levels.view(1, -1, *[1] * (image.ndim - 2))) ** 2)


def boxes(cavity=((1, 4), (1, 5), (1, 5)), wall=((5, 7), (2, 6), (2, 5)), size=SIZE):
    label = torch.zeros(size, dtype=torch.uint8)
    for value, box in ((1, cavity), (2, wall)):
        if box:
            label[tuple(slice(*side) for side in box[: len(size)])] = value
    return label


def make_case(name, truth, image=None, scan=None, **changes):
    """As :class:`common.data.CaseDataset` gives it; without an image one that is segmented as the truth."""
    image = (truth if image is None else image)[None].float()
    noise = 0.3 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    native = torch.rand(1, *truth.shape)
    return {"image": image + noise, "label": truth, "native": native, "affine": np.eye(4), "unit": "mm", "case": name,
            "spacing": [1.0] * truth.ndim, "scan": scan or name, "domain": "unknown"} | changes  # fmt: skip


MOVED = boxes(((2, 5), (1, 5), (1, 5)), ((5, 7), (3, 7), (2, 5)))


@pytest.fixture
def cases():
    """Found, moved by one voxel, and with a wall that the network does not find."""
    images = {"found": boxes(), "moved": MOVED, "missed": boxes(wall=None)}
    return [make_case(name, boxes(), image) for name, image in images.items()]


def make_evaluator(validation, test=(), network=None, **options):
    shown = from_engine(["pred", "label"])
    metric = {"val_dice": MeanDice(include_background=False, num_classes=5, output_transform=shown)}
    network = Levels() if network is None else network
    data = DataLoader(validation, collate_fn=lambda batch: batch[0])
    options = {"labels": LABELS, "inferer": SimpleInferer(), "cleanup": ["largest"]} | options
    return CaseEvaluator(
        device=torch.device("cpu"), val_data_loader=data, key_val_metric=metric, network=network, test=test,
        model={"network": network, "labels": options["labels"], "cleanup": options["cleanup"]}, **options,
    )  # fmt: skip


def save(folder, network=None, selection="last", labels=LABELS, cleanup=("largest",)):
    """A trained model."""
    network = network or Levels()
    save_atomic(network.state_dict(), folder / "model.pt")
    model = {"network": network, "preprocessing": {}, "labels": labels, "cleanup": cleanup}
    write_model_record(folder / "model.pt", model, selection)


def report(folder, evaluator, selection="last", cleanup=("largest",), **options):
    save(folder, evaluator.network, selection, cleanup=cleanup)
    returned = evaluator.report(str(folder / "model.pt"), str(folder / "eval"), **options)
    with open(folder / "eval" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(returned)
    return rows, (folder / "eval" / "summary.md").read_text()


def test_labels_of_another_training_are_refused(cases, tmp_path):
    save(tmp_path, labels={1: "cavity", 2: "other"})
    with pytest.raises(ValueError, match="labels: the model was trained on .*'other'.*number and name them alike"):
        make_evaluator(cases).report(str(tmp_path / "model.pt"), str(tmp_path))


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def by_hand(case):
    """Dice of each structure of a case whose image has the size of its label."""
    found, truth = np.rint(case["image"][0].numpy() - 0.15), case["label"].numpy()
    return [dice(found == value, truth == value) for value in LABELS]


def test_validation_scores_whole_cases(cases):
    network = Levels().train()
    evaluator, seen = make_evaluator(cases, network=network), []
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.output))
    evaluator.run()
    # boxes moved by one voxel of three (cavity) and of four (wall) share two and three
    assert [by_hand(case) for case in cases] == [[1, 1], [pytest.approx(2 / 3), pytest.approx(3 / 4)], [1, 0]]
    assert evaluator.state.metrics["val_dice"] == pytest.approx((1 + (2 / 3 + 3 / 4) / 2 + 1 / 2) / 3)
    for case, output in zip(cases, seen, strict=True):
        assert output["pred"].shape == output["label"].shape == (1, *SIZE)
        assert np.array_equal(output["label"][0], case["label"])
    assert network.training  # as it was


def test_label_ids_need_not_be_consecutive():
    truth = boxes() * 2  # 2 and 4; channels 1 and 3 belong to nothing
    evaluator = make_evaluator([make_case("a", truth)], network=Levels(5), labels={2: "cavity", 4: "wall"})
    evaluator.run()
    assert evaluator.state.output[0]["pred"].unique(return_counts=True)[1].tolist()[1:] == [48, 24]
    assert evaluator.state.metrics["val_dice"] == 1


def test_a_reduced_image_is_scored_on_the_grid_of_its_label():
    """Linearly: between the second and the third value lie 0.5 and 3.5, both above the threshold of 0."""

    class Above(nn.Module):
        def forward(self, image):
            return torch.cat([torch.zeros_like(image), image], 1)

    truth = torch.zeros(8, 6, 4, dtype=torch.uint8)
    truth[3:] = 1  # a nearest neighbour would begin at 4
    image = torch.tensor([-1.0, -1, 5, 5])[None, :, None, None].expand(1, 4, 3, 2)
    case = make_case("a", truth) | {"image": image}
    evaluator = make_evaluator([case], network=Above(), labels={1: "cavity"})
    evaluator.run()
    assert torch.equal(evaluator.segment(case), truth) and evaluator.segment(case).dtype == torch.uint8
    assert evaluator.state.output[0]["pred"].shape == (1, 8, 6, 4) and evaluator.state.metrics["val_dice"] == 1


@pytest.mark.parametrize("largest", [True, False])
def test_the_largest_component_of_each_structure_is_kept(largest):
    image = boxes()
    image[7, 6, 5] = 1  # far from the cavity
    image[6, 2:4, 0] = 2
    case = make_case("a", boxes(), image)
    evaluator = make_evaluator([case], cleanup=["largest"] * largest)
    assert torch.equal(evaluator.segment(case), boxes() if largest else image)
    assert (evaluator.segment(make_case("b", boxes(), boxes(None, None))) == 0).all()


def test_a_stray_larger_than_its_structure_goes_with_the_largest_of_all():
    """Alone, the cavity's stray would stay and the cavity go."""
    truth = boxes(cavity=((2, 4), (1, 5), (1, 5)), wall=((4, 6), (1, 5), (1, 5)))
    image = truth.clone()
    image[7] = 1  # 42 voxels against 32, but 64 with the wall
    case = make_case("a", truth, image)
    assert torch.equal(make_evaluator([case], cleanup=["largest_together", "largest"]).segment(case), truth)
    alone = make_evaluator([case]).segment(case)
    assert (alone[7] == 1).all() and not (alone[2:4] == 1).any()
    with pytest.raises(ValueError, match="cleanup: expected a list out of largest_together, .*found .'joint'"):
        make_evaluator([case], cleanup=["joint"])


@pytest.mark.usefixtures("bfloat16_units")
@pytest.mark.parametrize("inferer", [PatchInferer((4, 4)), PatchInferer((16, 16, 16)), PatchInferer((4, 4, 4))])
@pytest.mark.parametrize("amp", [True, False])
def test_windows_and_slices(cases, inferer, amp):
    evaluator = make_evaluator(cases, inferer=inferer, amp=amp)
    assert torch.equal(evaluator.segment(cases[1]), MOVED)


def test_the_rows_of_a_case(cases, tmp_path):
    rows, summary = report(tmp_path, make_evaluator(cases), pictures=0)
    assert list(rows[0])[:7] == ["case", "scan", "structure", "status", "dice", "jaccard", "hd95_mm"]
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, structure) for case in ("found", "moved", "missed") for structure in ("cavity", "wall")]
    for row, share in zip(rows, [score for case in cases for score in by_hand(case)], strict=True):
        assert float(row["dice"]) == pytest.approx(share, rel=1e-5)
        assert float(row["jaccard"]) == pytest.approx(share / (2 - share), rel=1e-5)
    assert float(rows[2]["hd95_mm"]) == 1 and rows[5]["status"] == "missed"
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in summary.splitlines()[:5]]
    assert lines[0][:4] == ["structure", "Dice", "Jaccard", "HD95 mm"]
    assert [line[0] for line in lines[2:]] == ["cavity", "wall", "all"] and lines[2][1].startswith("0.889 ± ")
    rows, _ = report(tmp_path, make_evaluator(cases, distances=False), pictures=0)
    assert not any(row["hd95_mm"] or row["asd_mm"] for row in rows)
    rows, _ = report(tmp_path, make_evaluator(cases, distance_unit="voxels"), pictures=0)
    assert float(rows[2]["hd95_voxels"]) == 1 and "hd95_mm" not in rows[2]
    with pytest.raises(ValueError, match="distance_unit: expected one of mm, voxels, found voxel"):
        make_evaluator(cases, distance_unit="voxel")


@pytest.mark.parametrize(
    ("test", "selection", "expected", "optimistic"),
    [
        (True, "last", "that of the last iteration (selection: last).", False),
        (True, "validation", "the best on the validation cases (selection: validation).", False),
        (False, "last", "that of the last iteration (selection: last).", False),
        (False, "validation", "the best on the validation cases (selection: validation).", True),
    ],
)  # fmt: skip
def test_the_summary_says_what_was_scored_and_what_chose_the_checkpoint(
    cases, tmp_path, test, selection, expected, optimistic
):
    evaluator = make_evaluator(cases[:2], cases[2:] if test else None)
    rows, summary = report(tmp_path, evaluator, pictures=0, selection=selection)
    assert {row["case"] for row in rows} == ({"missed"} if test else {"found", "moved"})
    statements = summary.strip().split("\n\n")[1:]
    scored = f"Scored: {'`test`, 1 case' if test else '`validation`, 2 cases'}, of each structure the largest component"
    assert statements[0] == f"{scored}. Checkpoint: {expected}" and len(statements) == 1 + optimistic
    assert ("optimistic" in summary) == optimistic


def test_the_summary_without_components_and_without_cases(cases, tmp_path):
    _, summary = report(tmp_path, make_evaluator(cases, cleanup=[]), cleanup=[], pictures=0)
    assert "Scored: `validation`, 3 cases. Checkpoint" in summary
    rows, summary = report(tmp_path, make_evaluator([]), pictures=2)
    assert not rows and "Nothing was scored.\n\nNeither `test` nor `validation` holds a labelled case." in summary


def test_the_report_is_of_the_weights_in_the_file(cases, tmp_path):
    network = Levels()
    save(tmp_path, network)
    network.levels.data.fill_(0)
    rows = make_evaluator(cases, network=network).report(str(tmp_path / "model.pt"), str(tmp_path), pictures=0)
    assert rows[0]["dice"] == 1


def test_what_differs_from_the_models_record_is_told_in_one_line(cases, tmp_path, caplog):
    report(tmp_path, make_evaluator(cases), pictures=0)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    report(tmp_path, make_evaluator(cases, cleanup=[]), pictures=0)
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == f'not as in {tmp_path / "model.json"}: cleanup [] (there ["largest"])'


def test_pictures_of_the_first_cases_replace_those_of_the_report_before(cases, tmp_path):
    """And no others, whatever they are called."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "overlay_mine.png").touch()
    second = cases[0] | {"scan": "found 2"}
    report(tmp_path, make_evaluator([cases[0], second, cases[1]]), pictures=2)
    files = sorted((tmp_path / "eval").glob("*.png"))
    assert [file.name for file in files] == ["overlay_found.png", "overlay_found_2.png", "overlay_mine.png"]
    assert all(file.stat().st_size > 5000 for file in files[:2])
    report(tmp_path, make_evaluator([second, cases[1]]), pictures=1)
    files = sorted((tmp_path / "eval").glob("*.png"))
    assert [file.name for file in files] == ["overlay_found_2.png", "overlay_mine.png"]


def test_a_photograph_is_scored_in_pixels(tmp_path):
    truth = boxes(size=SIZE[:2])
    case = make_case("a", truth, affine=None, unit="px", native=torch.rand(3, *SIZE[:2]))
    rows, summary = report(tmp_path, make_evaluator([case]), pictures=1)
    assert [row["dice"] for row in rows] == ["1", "1"] and "HD95 px" in summary and rows[0]["hd95_px"] == "0"


def test_two_images_of_a_case_have_rows_of_their_own(tmp_path):
    """Read from files, in half the resolution: a patient's two time points, one of them without a wall."""
    size = (16, 14, 6)
    truths = {"p1_frame01": boxes(size=size), "p1_frame09": boxes(((6, 12), (4, 12), (1, 5)), None, size)}
    items = []
    for name, truth in truths.items():
        item = {"case": "p1"}
        for key in ("image", "label"):
            item[key] = str(tmp_path / f"{key}s" / f"{name}.nii.gz")
            (tmp_path / f"{key}s").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(truth.numpy(), np.diag([2.0, 2.0, 8.0, 1.0])), item[key])
        items.append(item)
    both = ["image", "label"]
    transform = Compose([LoadImaged(both), EnsureChannelFirstd(both), CopyItemsd("image", names="native"),
                         Zoomd("image", (0.5, 0.5, 1), mode="area", keep_size=False)])  # fmt: skip
    data = CaseDataset(items, transform)
    assert data[0]["image"].shape == (1, 8, 7, 6) and data[0]["label"].shape == (16, 14, 6)
    rows, summary = report(tmp_path, make_evaluator([], data), pictures=2)
    assert [(row["case"], row["scan"], row["structure"]) for row in rows] == [
        ("p1", scan, structure) for scan in truths for structure in ("cavity", "wall")]
    for row in rows:
        value = {name: number for number, name in LABELS.items()}[row["structure"]]
        assert int(row["truth_voxels"]) == (truths[row["scan"]] == value).sum()
    # the edges of the first cut through the voxels of the reduced image, those of the second run between them
    assert 0.3 < float(rows[0]["dice"]) < 1 and rows[2]["dice"] == "1" and rows[3]["status"] == "absent"
    assert "Scored: `test`, 1 case (2 images), " in summary
    pictures = sorted(file.name for file in (tmp_path / "eval").glob("*.png"))
    assert pictures == ["overlay_p1_frame01.png", "overlay_p1_frame09.png"]
