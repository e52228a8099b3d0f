import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from sgcg_dg.inferer import RegionsToLabeld, WholeInferer

REGIONS = {"cup": [2], "disc": [1, 2]}


def logits_of(masks):
    return torch.where(torch.tensor(masks, dtype=torch.bool), 4.0, -4.0)


def test_inner_regions_are_drawn_over_outer_ones():
    logits = logits_of([[[0, 0, 1, 0]], [[0, 1, 1, 1]]])
    for regions in (REGIONS, dict(reversed(REGIONS.items()))):
        given = logits if regions == REGIONS and list(regions) == list(REGIONS) else logits.flip(0)
        found = RegionsToLabeld("pred", regions, [])({"pred": given, "image": 5})
        assert found["pred"].dtype == torch.uint8 and found["pred"].tolist() == [[[0, 1, 2, 1]]] and found["image"] == 5


def test_the_grid_of_the_image_stays():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    logits = MetaTensor(logits_of(np.ones((2, 3, 4, 5))), affine=affine, meta={"filename_or_obj": "scan.nii.gz"})
    given = {"pred": logits}
    found = RegionsToLabeld("pred", REGIONS, [])(given)["pred"]
    assert isinstance(found, MetaTensor) and found.shape == (1, 3, 4, 5) and (found == 2).all()
    np.testing.assert_array_equal(found.affine, affine)
    assert found.meta["filename_or_obj"] == "scan.nii.gz"
    assert given["pred"] is logits and logits.shape[0] == 2  # what came in is as it was


def test_strays_go_and_holes_are_filled_as_asked():
    """A region at a time: a probability above one half is inside."""
    logits = -torch.ones(2, 9, 9)
    logits[1, 1:7, 1:7], logits[1, 3:5, 3:5], logits[1, 8, 8] = 0.1, -0.1, 0.1  # a ring of the disc, and a stray
    logits[0, 0, 8], logits[0, 2, 2:4] = 2.0, 2.0  # two spots of the cup

    def found(*cleanup):
        label = RegionsToLabeld("pred", REGIONS, list(cleanup))({"pred": logits})["pred"][0]
        return {(row, column): int(label[row, column]) for row, column in ((1, 1), (3, 3), (8, 8), (0, 8), (2, 2))}

    assert found() == {(1, 1): 1, (3, 3): 0, (8, 8): 1, (0, 8): 2, (2, 2): 2}
    assert found("largest") == {(1, 1): 1, (3, 3): 0, (8, 8): 0, (0, 8): 0, (2, 2): 2}
    assert found("largest", "fill_holes") == {(1, 1): 1, (3, 3): 1, (8, 8): 0, (0, 8): 0, (2, 2): 2}
    with pytest.raises(ValueError, match="cleanup: expected a list out of .*largest, fill_holes, found 'largest'"):
        RegionsToLabeld("pred", REGIONS, "largest")


def test_a_photograph_goes_through_whole_and_a_scan_slice_by_slice():
    """Each slice as if it were alone, in as few passes as eight at once allow."""
    seen = []

    def network(images):
        seen.append(len(images))
        return torch.cat([images.mean((1, 2, 3), keepdim=True) * images, -images], 1)

    inferer, photograph, scan = WholeInferer([6, 5]), torch.rand(1, 1, 6, 5), torch.rand(1, 1, 6, 5, 11)
    torch.testing.assert_close(inferer(photograph, network), network(photograph), rtol=0, atol=0)
    seen.clear()
    found = inferer(scan, network)
    assert found.shape == (1, 2, 6, 5, 11) and sum(seen) == 11 and len(seen) == 2
    for z in range(11):
        torch.testing.assert_close(found[..., z], network(scan[..., z]), rtol=0, atol=1e-6)


def test_bad_regions_are_refused():
    with pytest.raises(ValueError, match="regions one .* and two .*: expected one inside the other or no label in"):
        RegionsToLabeld("pred", {"one": [1, 2], "two": [2, 3]}, [])
