"""Which voxels enter the bank, which are contrasted, and whom the two losses train."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.semi_supervised import Voxels
from diffcl_ssl import propagation as module
from diffcl_ssl.peers import Seen
from diffcl_ssl.propagation import LabelPropagation, LabelPropagationLoss

CLASSES, WIDTH = 3, 5


def make(**options):
    loss = LabelPropagationLoss(min_bank=1)
    return LabelPropagation(CLASSES, WIDTH, **{"embedding": WIDTH, "loss": loss, "bank_size": 4000, **options})


def make_case(seed=0, size=(4, 12, 12), reliable=(True, False, True, True)):
    """Labelled voxels of the student and of the peer, unlabelled features, all with gradients; some labels unknown."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, CLASSES, size, generator=draw)
    maps = [torch.randn(size[0], WIDTH, *size[1:], generator=draw).requires_grad_() for _ in range(3)]
    logits = 4 * torch.randn(size[0], CLASSES, *size[1:], generator=draw)
    logits = (logits + 5 * F.one_hot(labels.clamp(min=0), CLASSES).movedim(-1, 1)).requires_grad_()
    student = Voxels(maps[0], torch.zeros(size[0], CLASSES, *size[1:]), labels)
    return student, maps[1], Seen(logits, maps[2], torch.tensor(reliable))


def rows(features, keep):
    return {tuple(row) for row in features.detach().movedim(1, -1)[keep].tolist()}


def in_bank(propagation, c):
    return {tuple(row) for row in propagation.bank.get(c).tolist()}


class Record(nn.Module):
    """In the place of L_cl."""

    min_bank = 1

    def forward(self, anchors, vectors):
        self.anchors, self.vectors = anchors, vectors
        return vectors.sum() * 0, {}


# --- the bank ---


@pytest.mark.parametrize("confidence", [0.9, 0.0])
def test_the_bank_holds_what_the_peer_is_right_and_sure_of_where_it_is_reliable(confidence, monkeypatch):
    monkeypatch.setattr(module, "VOXELS", 10**6)
    propagation = make(confidence=confidence)
    propagation.projection = nn.Identity()
    student, unlabelled, peer = make_case()
    propagation(student, unlabelled, peer, 0)
    chances = peer.logits.softmax(1)
    for c in range(CLASSES):
        keep = (student.labels == c) & (chances.argmax(1) == c) & (chances[:, c] >= confidence)
        keep[1] = False
        assert in_bank(propagation, c) == rows(peer.features, keep)
        left_out = (student.labels == c) & ~keep
        assert 20 < keep.sum() and 20 < left_out.sum()


def test_no_reliable_image_and_nothing_learnt_yet_leave_the_bank_empty():
    propagation = make()
    student, unlabelled, peer = make_case(reliable=(False,) * 4)
    loss, prototype, log = propagation(student, unlabelled, peer, 0)
    peer = Seen(torch.zeros_like(peer.logits), peer.features, torch.ones(4, dtype=torch.bool))
    propagation(student, unlabelled, peer, 1)
    assert propagation.bank.filled.sum() == 0 and loss == 0 and prototype > 0 and log["bank"] == 0
    (loss + prototype).backward()
    assert (unlabelled.grad == 0).all()


def test_so_many_of_each_class_and_the_share_filled(monkeypatch):
    monkeypatch.setattr(module, "VOXELS", 7)
    propagation = make(bank_size=20)
    for number, filled in ((0, 7), (1, 14), (2, 20)):
        log = propagation(*make_case(number), number)[2]
        assert propagation.bank.filled.tolist() == [filled] * CLASSES
        assert log["bank"].item() == log["bank_least"].item() == pytest.approx(filled / 20)
    student, unlabelled, peer = make_case(3)
    student.labels[student.labels == 1] = 0
    log = (propagation := make(bank_size=20))(student, unlabelled, peer, 0)[2]
    assert log["bank_least"] == 0 and log["bank"].item() == pytest.approx(propagation.bank.filled.sum() / CLASSES / 20)


def test_the_bank_keeps_vectors_of_length_1_and_takes_nothing_in_eval():
    propagation = make()
    propagation.eval()
    propagation(*make_case(), 0)
    assert propagation.bank.filled.sum() == 0
    propagation.train()
    propagation(*make_case(), 0)
    assert propagation.bank.filled.min() > 20 and not propagation.bank.features.requires_grad
    torch.testing.assert_close(propagation.bank.get(1).norm(dim=1), torch.ones(int(propagation.bank.filled[1])))


# --- what is contrasted ---


def test_anchors_of_each_class_and_unlabelled_vectors(monkeypatch):
    monkeypatch.setattr(module, "ANCHORS", 6)
    monkeypatch.setattr(module, "VECTORS", 50)
    propagation = make(loss=Record())
    propagation.projection = nn.Identity()
    student, unlabelled, peer = make_case()
    propagation(student, unlabelled, peer, 0)
    assert [len(a) for a in propagation.loss.anchors] == [6] * CLASSES
    for c, anchors in enumerate(propagation.loss.anchors):
        assert {tuple(a) for a in anchors.tolist()} <= in_bank(propagation, c)
    vectors = {tuple(row) for row in propagation.loss.vectors.tolist()}
    everywhere = torch.ones(student.labels.shape, dtype=torch.bool)
    assert len(propagation.loss.vectors) == 50 and vectors <= rows(unlabelled, everywhere)
    images = [len(vectors & rows(unlabelled[i : i + 1], everywhere[:1])) for i in range(4)]
    assert min(images) > 3
    monkeypatch.setattr(module, "VECTORS", 10**6)
    make(loss=propagation.loss)(student, unlabelled, peer, 0)
    assert len(propagation.loss.vectors) == 4 * 12 * 12  # no more than there are


@pytest.mark.parametrize("vectors", [20, 10**6])
def test_unlabelled_vectors_of_chosen_voxels(vectors, monkeypatch):
    monkeypatch.setattr(module, "VECTORS", vectors)
    propagation = make()
    propagation.projection, propagation.loss = nn.Identity(), Record()
    student, unlabelled, peer = make_case()
    where = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    propagation(student, unlabelled, peer, 0, where)
    found = {tuple(row) for row in propagation.loss.vectors.tolist()}
    assert found <= rows(unlabelled, where) and len(propagation.loss.vectors) == min(vectors, int(where.sum()))


def test_voxels_alike_have_vectors_alike():
    """Peer's, student's and unlabelled rows share batch norm's statistics, whatever the mix of classes in each."""
    propagation, row = make(), torch.randn(1, WIDTH)
    parts = [torch.cat([row, torch.randn(count, WIDTH) + count]) for count in (3, 5, 9)]
    taught, own, found = (part[0] for part in propagation._project(*parts))
    torch.testing.assert_close(own, found)
    torch.testing.assert_close(own, taught)


# --- whom they train ---


def test_the_contrast_reaches_the_students_unlabelled_features_alone():
    propagation = make()
    student, unlabelled, peer = make_case()
    loss, _, _ = propagation(student, unlabelled, peer, 0)
    loss.backward()
    assert loss > 0 and unlabelled.grad.abs().sum() > 0
    assert student.features.grad is None and peer.features.grad is None and peer.logits.grad is None
    touched = (unlabelled.grad != 0).any(1).sum()
    assert 0 < touched <= 1024
    parameters = dict(propagation.named_parameters())
    assert parameters["projection.first.weight"].grad.abs().sum() > 0
    assert parameters["prototypes.prototypes"].grad is None


def test_the_prototypes_reach_the_projection_and_neither_network():
    """Not even through the statistics of batch norm, which unlabelled rows are part of."""
    propagation = make()
    student, unlabelled, peer = make_case()
    _, prototype, _ = propagation(student, unlabelled, peer, 0)
    prototype.backward()
    assert all(t.grad is None for t in (student.features, unlabelled, peer.features, peer.logits))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in propagation.parameters() if p.ndim > 1)


def test_prototypes_make_one_space_of_two():
    """Peer and student hold the same classes in other axes; before, the cosine of their vectors says nothing."""
    torch.manual_seed(0)
    propagation = make(embedding=16, loss=Record())
    turns = [torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] for _ in range(2)]
    labels = torch.randint(0, CLASSES, (2, 8, 8))

    def maps():
        rows = 4 * torch.eye(CLASSES, WIDTH)[labels]
        return [(rows @ turn + 0.3 * torch.randn(2, 8, 8, WIDTH)).movedim(-1, 1) for turn in turns]

    @torch.no_grad()
    def apart():
        """The mean cosine within a class less that between classes."""
        rows = [m.movedim(1, -1).flatten(0, -2) for m in maps()]
        vectors = propagation.projection(torch.cat(rows)).chunk(2)
        same = labels.flatten()[:, None] == labels.flatten()
        cosines = vectors[0] @ vectors[1].T
        return (cosines[same].mean() - cosines[~same].mean()).item()

    before = apart()
    optimizer = torch.optim.Adam(propagation.parameters(), 0.01)
    for number in range(60):
        own, taught = maps()
        peer = Seen(9 * F.one_hot(labels, CLASSES).movedim(-1, 1).float(), taught, torch.ones(2, dtype=torch.bool))
        optimizer.zero_grad()
        propagation(Voxels(own, own, labels), own, peer, number)[1].backward()
        optimizer.step()
    assert abs(before) < 0.2 and apart() > 0.6, (before, apart())


# --- random numbers and precision ---


def test_draws_follow_seed_and_step_and_leave_other_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(module, "VOXELS", 5)  # fewer than there are, so that they are drawn
    before = torch.get_rng_state()
    propagation = make(seed=3)
    propagation(*make_case(), 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = make(seed=3)
    again(*make_case(), 4)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), propagation.state_dict().values()))  # noqa: B905
    for seed, number in ((3, 5), (2, 4)):
        other = make(seed=seed)
        other.load_state_dict(make(seed=3).state_dict())  # the same weights
        other(*make_case(), number)
        assert not torch.equal(other.bank.features, propagation.bank.features)
    assert not torch.equal(make(seed=1).projection.first.weight, make(seed=2).projection.first.weight)


def test_float32_under_autocast():
    student, unlabelled, peer = make_case()
    expected = make()(student, unlabelled, peer, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = make()(student, unlabelled, peer, 0)
        halves = make()(
            Voxels(student.features.bfloat16(), student.logits, student.labels), unlabelled.bfloat16(),
            Seen(peer.logits.bfloat16(), peer.features.bfloat16(), peer.reliable), 0,
        )  # fmt: skip
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert halves[0].dtype == halves[1].dtype == torch.float32 and halves[1].item() == pytest.approx(
        expected[1].item(), rel=0.05
    )


def test_what_is_logged():
    loss, prototype, log = make()(*make_case(), 0)
    assert set(log) == {"propagation", "prototype", "bank", "bank_least", "positives", "own_negatives"}
    assert log["propagation"] is loss and log["prototype"] is prototype
    assert all(value.ndim == 0 and value.isfinite() for value in log.values())


@pytest.mark.parametrize(("bank_size", "min_bank"), [(63, 64), (200, 129)])
def test_a_bank_that_the_loss_would_never_use_is_refused(bank_size, min_bank):
    make(bank_size=64, loss=LabelPropagationLoss())
    make(bank_size=128, loss=LabelPropagationLoss(min_bank=128))
    text = f"at most bank_size {bank_size} and the 128 vectors drawn of a class, .* got {min_bank}"
    with pytest.raises(ValueError, match=text):
        make(bank_size=bank_size, loss=LabelPropagationLoss(min_bank=min_bank))
