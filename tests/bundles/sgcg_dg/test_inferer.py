import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sgcg_dg.inferer import RegionsToLabeld

REGIONS = {"cup": [2], "disc": [1, 2]}


def logits_of(masks):
    return torch.where(torch.tensor(masks, dtype=torch.bool), 4.0, -4.0)


def test_inner_regions_are_drawn_over_outer_ones():
    logits = logits_of([[[0, 0, 1, 0]], [[0, 1, 1, 1]]])
    for regions in (REGIONS, dict(reversed(REGIONS.items()))):
        given = logits if regions == REGIONS and list(regions) == list(REGIONS) else logits.flip(0)
        found = RegionsToLabeld("pred", regions)({"pred": given, "image": 5})
        assert found["pred"].dtype == torch.uint8 and found["pred"].tolist() == [[[0, 1, 2, 1]]] and found["image"] == 5


def test_the_grid_of_the_image_stays():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    logits = MetaTensor(logits_of(np.ones((2, 3, 4, 5))), affine=affine, meta={"filename_or_obj": "scan.nii.gz"})
    given = {"pred": logits}
    found = RegionsToLabeld("pred", REGIONS)(given)["pred"]
    assert isinstance(found, MetaTensor) and found.shape == (1, 3, 4, 5) and (found == 2).all()
    np.testing.assert_array_equal(found.affine, affine)
    assert found.meta["filename_or_obj"] == "scan.nii.gz"
    assert given["pred"] is logits and logits.shape[0] == 2  # what came in is as it was


def test_the_protocol_decides():
    logits = torch.tensor([[[0.5, 2.0, -1.0, 2.0]], [[2.0, 2.0, -1.0, 2.0]]])

    def found(**protocol):
        return RegionsToLabeld("pred", REGIONS, protocol)({"pred": logits})["pred"][0, 0].tolist()

    assert found(largest_component=False) == [2, 2, 0, 2]
    assert found() == [2, 2, 0, 0]  # the two at the left are more than the one at the right
    assert found(threshold=0.75, largest_component=False) == [1, 2, 0, 2]


def test_a_softmax_head():
    logits = torch.tensor([[2.0, 0.0, 1.0], [1.0, 3.0, 0.0], [0.0, 1.0, 2.0]])[:, None]
    found = RegionsToLabeld("pred", {"left": [1], "right": [4]}, {"head": "softmax"})({"pred": logits})
    assert found["pred"].tolist() == [[[0, 1, 4]]]


def test_bad_regions_are_refused():
    with pytest.raises(ValueError, match="regions one .* and two .*: expected one inside the other or no label in"):
        RegionsToLabeld("pred", {"one": [1, 2], "two": [2, 3]})
