"""Boxes, mixtures and their losses, worked out again by hand."""

import math

import pytest
import torch

from common.losses import DiceCERegionLoss
from common.semi_supervised import CopyPaste
from common.semi_supervised.copy_paste import outside_box

TOTAL = 100


def drawn_box(size=(16, 16), share=2 / 3, seed=11):
    """The box that a base draws after the same seed."""
    torch.manual_seed(seed)
    outside = outside_box(torch.Size(size), share)
    torch.manual_seed(seed)
    return outside.tolist()


@pytest.mark.parametrize(("size", "edges"), [((12, 9), (8, 6)), ((6, 12, 4), (4, 8, 2)), ((1, 2), (1, 1))])
def test_a_box_of_two_thirds_of_each_axis_anywhere(size, edges):
    firsts = [set() for _ in size]
    for _ in range(150):
        inside = (~outside_box(torch.Size(size), 2 / 3)).nonzero()
        assert len(inside) == math.prod(edges)
        for axis, edge in enumerate(edges):
            values = inside[:, axis].unique()
            assert values.tolist() == list(range(int(values[0]), int(values[0]) + edge))
            firsts[axis].add(int(values[0]))
    assert firsts == [set(range(length - edge + 1)) for length, edge in zip(size, edges, strict=True)]


def test_box_of_all_and_of_nearly_nothing():
    assert not outside_box(torch.Size((5, 4)), 1.0).any()
    assert (~outside_box(torch.Size((5, 4)), 0.01)).sum() == 1


def test_first_stage_pastes_labelled_into_labelled(network, teacher, batch, inputs_of):
    base, seen, taught = CopyPaste(), inputs_of(network), inputs_of(teacher.network)
    outside = drawn_box()
    done = base(network, teacher, batch, 29, TOTAL)
    image, labels = batch["image"].clone(), batch["label"][:, 0].clone()
    for b in range(4):
        for i in range(16):
            for j in range(16):
                source = b if outside[i][j] else (b + 2) % 4
                image[b, 0, i, j] = batch["image"][source, 0, i, j]
                labels[b, i, j] = batch["label"][source, 0, i, j]
    assert len(seen) == 1 and torch.equal(seen[0], image) and not taught
    assert torch.equal(done.labelled.labels, labels) and done.unlabelled is None
    assert done.loss.item() == pytest.approx(DiceCERegionLoss()(done.labelled.logits, labels).item())


def test_second_stage_by_hand(network, teacher, batch, inputs_of):
    """Half of the images show the labelled one outside the box, the other half inside; four losses."""
    base, seen = CopyPaste(pseudo_weight=0.3, largest_component=False), inputs_of(network)
    outside = drawn_box()
    done = base(network, teacher, batch, 30, TOTAL)
    image, true, pseudo = (torch.full((4, 16, 16), -1.0), *(torch.full((4, 16, 16), -1) for _ in range(2)))
    taught = teacher.network(batch["unlabeled"]).argmax(1)
    for b in range(4):
        for i in range(16):
            for j in range(16):
                labelled = outside[i][j] == (b < 2)
                image[b, i, j] = batch["image" if labelled else "unlabeled"][b, 0, i, j]
                if labelled:
                    true[b, i, j] = batch["label"][b, 0, i, j]
                else:
                    pseudo[b, i, j] = taught[b, i, j]
    assert len(seen) == 1 and torch.equal(seen[0][:, 0], image)
    assert torch.equal(done.labelled.labels, true)
    loss, logits = DiceCERegionLoss(), done.labelled.logits
    seg, pseudo = (loss(logits[:2], y[:2]).item() + loss(logits[2:], y[2:]).item() for y in (true, pseudo))
    assert done.terms["seg"].item() == pytest.approx(seg) and done.terms["pseudo"].item() == pytest.approx(pseudo)
    assert done.loss.item() == pytest.approx(seg + 0.3 * pseudo)
    assert torch.equal(network.classifier(done.labelled.features), logits)


def test_the_teacher_sees_unlabelled_images_as_they_are(network, teacher, batch, inputs_of):
    taught = inputs_of(teacher.network)
    done = CopyPaste(pretrain=0.0)(network, teacher, batch, 0, TOTAL)
    assert len(taught) == 1 and torch.equal(taught[0], batch["unlabeled"])
    assert torch.equal(done.unlabelled.logits, teacher(batch["unlabeled"])[0])
    assert not done.unlabelled.logits.requires_grad and not done.unlabelled.features.requires_grad
    done.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_pair_and_a_box_of_everything(network, teacher, batch):
    """One of the two mixtures has then no labelled voxel, the other no pseudo-labelled one."""
    pair = {key: value[:2] for key, value in batch.items()}
    done = CopyPaste(pretrain=0.0, box=1.0)(network, teacher, pair, 0, TOTAL)
    loss = DiceCERegionLoss()
    assert done.terms["seg"].item() == pytest.approx(loss(done.labelled.logits[1:], pair["label"][1:, 0]).item())
    assert (done.labelled.labels[0] == -1).all() and done.loss.isfinite()


@pytest.mark.parametrize("step", [0, 50])
def test_an_odd_batch_is_refused(step, network, teacher, batch):
    odd = {key: value[:3] for key, value in batch.items()}
    with pytest.raises(ValueError, match="needs an even batch_size, got 3"):
        CopyPaste()(network, teacher, odd, step, TOTAL)


@pytest.mark.parametrize("options", [{"box": 0.0}, {"box": 1.5}, {"pretrain": -0.1}, {"pretrain": 30}])
def test_copy_paste_out_of_range(options):
    with pytest.raises(ValueError, match=r"expected pretrain in \[0, 1\] and box in \(0, 1\], got"):
        CopyPaste(**options)
