import copy

import numpy as np
import pytest
import torch
from torch import nn

from common.data import make_cleanup
from sgcg_dg.protocol import Protocol, RegionMasks, batch_norm, mean_masks, predict, published_slices, together
from sgcg_dg.regions import Regions

CPU = torch.device("cpu")
ALL = make_cleanup([])  # every pixel stays


@pytest.fixture
def network(make_network):
    """With running averages that are far from the statistics of any batch here."""
    network = make_network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked.fill_(7)
    return network.train()


def photographs(count, size=(16, 16)):
    return [{"image": torch.rand(3, *size) * (1 + i) / count} for i in range(count)]


def scan(depth, size=(16, 16)):
    return {"image": torch.rand(3, *size, depth)}


# --- batch norm ---


def test_statistics_of_the_images_at_hand_leave_the_network_as_it_was(network):
    cases, before = photographs(5), copy.deepcopy(network.state_dict())
    with torch.no_grad():
        found = torch.stack(predict(network, cases, "batch", CPU))
        expected = copy.deepcopy(network).train()(torch.stack([case["image"] for case in cases]))
        running = copy.deepcopy(network).eval()(torch.stack([case["image"] for case in cases]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - running).abs().max() > 0.1
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.momentum == 0.1 and not norm.training for norm in norms)


def test_running_averages_do_not_see_the_other_images(network):
    cases, before = photographs(5), copy.deepcopy(network.state_dict())
    with torch.no_grad():
        found = torch.stack(predict(network, cases, "eval", CPU))
        alone = torch.cat([torch.stack(predict(network, [case], "eval", CPU)) for case in cases])
        transductive = predict(network, cases[:1], "batch", CPU)[0] - predict(network, cases, "batch", CPU)[0]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
    assert transductive.abs().max() > 0.1  # as it should be: the difference between the two columns
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_an_error_leaves_the_network_as_it_was_too(network):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError, match="stop"), batch_norm(network, "batch"):
        network(torch.rand(2, 3, 16, 16))
        raise RuntimeError("stop")
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not any(module.training for module in network.modules())
    assert all(module.momentum == 0.1 for module in network.modules() if isinstance(module, nn.BatchNorm2d))


# --- what goes through the network together ---


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (8, [8]), (9, [5, 4]), (17, [6, 6, 5]), (24, [8, 8, 8]), (0, [])],
)
def test_groups_of_images_are_nearly_equal(count, sizes):
    cases = photographs(count)
    groups = list(together(cases))
    assert [len(group) for group in groups] == sizes
    assert all(one is other for one, other in zip((c for g in groups for c in g), cases, strict=True))


def test_a_scan_is_a_group_of_its_own():
    cases = [scan(3), *photographs(2), scan(5)]
    assert [list(map(id, group)) for group in together(cases)] == [[id(c) for c in cases[1:3]], [id(cases[0])],
                                                                      [id(cases[3])]]  # fmt: skip


@pytest.mark.parametrize(("depth", "sizes"), [(3, [3]), (9, [5, 4]), (17, [6, 6, 5])])
def test_slices_of_a_scan_go_in_nearly_equal_chunks(network, depth, sizes):
    seen, case = [], scan(depth)
    hook = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        (found,) = predict(network, [case], "eval", CPU)
    hook.remove()
    assert [len(images) for images in seen] == sizes and found.shape == (2, 16, 16, depth)
    with torch.no_grad():
        for z in (0, depth - 1):
            torch.testing.assert_close(torch.cat(seen)[z], case["image"][..., z])
            expected = network.eval()(case["image"][None, ..., z])[0]
            torch.testing.assert_close(found[..., z], expected, rtol=0, atol=1e-5)


# --- from logits to masks ---


def case_of(*size, label=None):
    return {"label": torch.zeros(size, dtype=torch.uint8) if label is None else label}


def to_masks(*arguments):
    return np.stack(RegionMasks(*arguments))


def test_thresholds():
    """Of the probability, strictly; ln 3 is three quarters."""
    logits, case = torch.tensor([-1.0, 0.0, 0.1, np.log(3) - 1e-3, np.log(3) + 1e-3]).view(1, 1, 5), case_of(1, 5)
    assert to_masks(logits, case, Protocol(), ALL).flatten().tolist() == [False, False, True, True, True]
    assert to_masks(logits, case, Protocol(threshold=0.75), ALL).flatten().tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("size", [(40, 24), (40, 24, 6)])
def test_masks_lie_on_the_grid_of_the_case(size):
    """Logits are enlarged before the threshold: an edge lies where they cross it."""
    ramp = torch.linspace(-1, 1, 10).view(1, 10, *[1] * (len(size) - 1)).expand(2, 10, 6, *[6] * (len(size) - 2))
    logits = torch.stack([ramp[0], -ramp[1] + 0.5])
    masks = to_masks(logits, case_of(*size), Protocol(), ALL)
    assert masks.dtype == bool and masks.shape == (2, *size)
    rows = masks.reshape(2, 40, -1)
    assert (rows == rows[..., :1]).all()
    # half-pixel centres: row i of 40 lies at (i + 0.5) / 4 - 0.5 of the 10, where the ramp is 0 at 4.5 and 0.5 at 6.75
    places = np.clip((np.arange(40) + 0.5) / 4 - 0.5, 0, 9)
    assert rows[0, :, 0].tolist() == (places > 4.5).tolist() and rows[1, :, 0].tolist() == (places < 6.75).tolist()


def picture(*rows):
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_each_region_keeps_its_own_largest_component_without_holes():
    """A hole with a way out is none; what lies in it is another component."""
    closed = picture("######...",
                     "#....#..#",
                     "#.##.#.##",
                     "#....#...",
                     "######...")  # fmt: skip
    open_ = closed.copy()
    open_[0, 3] = False
    logits = torch.from_numpy(np.where([closed, open_[:, ::-1]], 5.0, -5.0)).float()
    clean, case = make_cleanup(["largest", "fill_holes"]), case_of(5, 9)
    found = to_masks(logits, case, Protocol(), clean)
    whole, ring = np.zeros_like(closed), open_.copy()
    whole[:, :6] = True
    ring[:, 6:] = ring[2, 2:4] = False
    assert found.dtype == bool and np.array_equal(found, np.stack([whole, ring[:, ::-1]]))
    assert np.array_equal(to_masks(logits, case, Protocol(), ALL), np.stack([closed, open_[:, ::-1]]))
    assert not to_masks(torch.full((2, 5, 9), -5.0), case, Protocol(), clean).any()


def test_holes_of_a_scan_are_filled():
    solid = torch.full((1, 5, 5, 5), 5.0)
    solid[0, 2, 2, 2] = -5.0
    assert to_masks(solid, case_of(5, 5, 5), Protocol(), make_cleanup(["largest", "fill_holes"])).all()
    assert to_masks(solid, case_of(5, 5, 5), Protocol(), ALL).sum() == 124


# --- the slices of the published protocol ---


@pytest.mark.parametrize(
    ("depth", "count"), [(15, 8), (16, 14), (20, 16), (22, 16), (23, 16), (24, 22), (40, 38), (7, 0), (2, 0), (1, 0)]
)
def test_published_slices(depth, count):
    """``depth // 8`` batches of the slices but for the first and the last, from the second one on."""
    assert list(published_slices(depth)) == list(range(1, 1 + count))


@pytest.mark.parametrize("depth", [15, 20, 23])
def test_slices_that_the_published_loop_leaves_out_are_empty(depth):
    logits, case = torch.full((2, 4, 4, depth), 5.0), case_of(4, 4, depth)
    assert to_masks(logits, case, Protocol(), ALL).all()
    masks = to_masks(logits, case, Protocol(all_slices=False), ALL)
    kept = masks.all((0, 1, 2))
    assert kept.tolist() == [0 < z <= {15: 8, 20: 16, 23: 16}[depth] for z in range(depth)]
    assert np.array_equal(masks.any((0, 1, 2)), kept)


def test_slices_without_truth_are_empty_when_asked():
    label = torch.zeros(4, 4, 5, dtype=torch.uint8)
    label[2, 1, 1], label[0, 3, 3] = 2, 1
    logits, asked = torch.full((2, 4, 4, 5), 5.0), Protocol(skip_empty=True)
    masks = to_masks(logits, case_of(label=label), asked, ALL)
    assert masks.all((0, 1, 2)).tolist() == masks.any((0, 1, 2)).tolist() == [False, True, False, True, False]
    both = Protocol(skip_empty=True, all_slices=False)
    assert not to_masks(logits, case_of(label=label), both, ALL).any()  # five slices: none of a batch
    photograph = to_masks(torch.full((2, 4, 5), 5.0), case_of(4, 5), both, ALL)
    assert photograph.all()  # both are about slices


def test_the_constant_prediction_is_where_more_than_half_agree():
    labels = [torch.tensor(rows)[None] for rows in ([[1, 2, 2, 0]], [[1, 2, 1, 0]], [[0, 2, 0, 1]], [[0, 1, 0, 1]])]
    regions = Regions({"cup": [2], "disc": [1, 2]}, {1: "rim", 2: "cup"})
    found = mean_masks(labels, regions.masks)
    assert found.dtype == torch.bool and found.shape == (2, 1, 4)
    assert found[:, 0].int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]  # two of four is not more than half
