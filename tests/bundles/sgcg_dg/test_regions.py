import pytest
import torch

from sgcg_dg.regions import Regions

LABELS = {1: "rim", 2: "cup", 3: "vessel"}
NESTED = {"cup": [2], "disc": [1, 2]}


def test_masks_by_hand():
    label = torch.tensor([[0, 1, 2], [3, 2, 1]])[None, None]
    masks = Regions({**NESTED, "vessel": [3]}, LABELS).masks(label)
    assert masks.dtype == torch.bool and masks.shape == (1, 3, 2, 3)
    assert masks[0].int().tolist() == [[[0, 0, 1], [0, 1, 0]], [[0, 1, 1], [0, 1, 1]], [[0, 0, 0], [1, 0, 0]]]


@pytest.mark.parametrize("names", [["cup", "disc", "vessel"], ["disc", "vessel", "cup"]])
@pytest.mark.parametrize("size", [(4, 5), (3, 4, 5)])
def test_a_label_map_comes_back_from_its_masks(names, size):
    """Whatever the order of the regions: the inner one is drawn last."""
    regions = Regions({name: {**NESTED, "vessel": [3]}[name] for name in names}, LABELS)
    label = torch.randint(0, 4, (2, 1, *size))
    for one, masks in zip(label[:, 0], regions.masks(label), strict=True):
        found = regions.label_map(masks)
        assert found.dtype == torch.uint8 and torch.equal(found.long(), one)


def test_predicted_masks_that_no_label_map_has():
    """A cup outside the disc is still a cup; a float mask above 0 is inside."""
    cup, disc = torch.tensor([[1.0, 0, 1], [0, 0, 0]]), torch.tensor([[0.0, 1, 1], [0.5, 0, 0]])
    assert Regions(NESTED, LABELS).label_map(torch.stack([cup, disc])).tolist() == [[2, 1, 2], [1, 0, 0]]


def test_three_levels_and_regions_of_several_labels():
    regions = Regions({"whole": [1, 2, 3, 4], "core": [2, 3], "point": [3], "apart": [5, 6]}, dict.fromkeys(range(7)))
    masks = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])[..., None]
    assert regions.label_map(masks)[:, 0].tolist() == [1, 2, 3, 5]  # the first label that no inner region has
    swapped = Regions({"whole": [1, 2], "core": [1]}, LABELS)
    assert swapped.label_map(torch.tensor([[1, 1, 0], [0, 1, 0]])[..., None])[:, 0].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ({"cup": [2, 9], "disc": []}, [r"region cup: expected label ids out of {1: 'rim', .*}, found \[2, 9\]",
                                       r"region disc: .* found \[\]; correct `regions`"]),
        ({"one": [1, 2], "two": [2, 3]}, [r"regions one \[1, 2\] and two \[2, 3\]: expected one inside the other or no "
                                          "label in both"]),
        ({"one": [1], "two": [1]}, [r"regions one \[1\] and two \[1\]: expected one inside the other"]),
        ({"background": [0]}, [r"region background: expected label ids out of .*, found \[0\]"]),
    ],
)  # fmt: skip
def test_regions_that_cannot_be_used(regions, expected):
    with pytest.raises(ValueError, match="(?s)regions that cannot be used:.*" + ".*".join(expected)) as error:
        Regions(regions, LABELS)
    assert len(str(error.value).splitlines()) == 1 + len(expected)
    assert Regions.problems(regions, LABELS) == [line.strip() for line in str(error.value).splitlines()[1:]]
    assert Regions.problems(NESTED, LABELS) == []


@pytest.mark.parametrize("names", [("Cup", "cup"), ("cup", "c up"), ("all", "disc")])
def test_regions_that_reports_could_not_tell_apart(names):
    (line,) = Regions.problems(dict(zip(names, ([2], [1, 2]), strict=True)), LABELS)
    assert line.startswith("`regions`: expected") and line.endswith("rename it" if "all" in names else "rename one")


def test_missing_regions_are_named_with_the_case():
    regions = Regions(NESTED, LABELS)
    assert regions.missing("a", (0, 1, 2)) == regions.missing("b", (2,)) == []
    assert len(regions.missing("c", ())) == 2
    (line,) = regions.missing("case_7", (0, 1))
    assert line.startswith("case_7: expected a cup (labels [2]), found labels [0, 1]; correct the mask")


def test_text_ids_are_numbers_too():
    """JSON has no other keys, and a command line no other values."""
    regions = Regions({"disc": ["2", 1]}, LABELS)
    assert regions.ids == {"disc": [1, 2]} and regions.names == ["disc"]


def test_a_region_whose_labels_all_have_regions_of_their_own():
    regions = Regions({"disc": [1, 2], "cup": [2], "rim": [1]}, {1: "rim", 2: "cup"})
    disc, cup, rim = torch.tensor([1, 1, 1, 0]), torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 1, 0])
    assert regions.label_map(torch.stack([disc, cup, rim])).tolist() == [1, 2, 1, 0]
