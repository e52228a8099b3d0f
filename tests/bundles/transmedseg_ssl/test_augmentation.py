"""What the two memories hold, which shift and covariance follow from them, and the loss on top, against numpy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.semi_supervised import Step, Voxels
from transmedseg_ssl.augmentation import TransferableAugmentation

CLASSES, WIDTH, TOTAL = 3, 5, 10
DIRECTIONS = ["source_to_target", "teacher_to_student"]


def make_network():
    torch.manual_seed(1)
    network = nn.Sequential()
    network.body, network.classifier = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, CLASSES, 1)
    return network


def make_step(network, seed=0, size=(2, 16, 16), shown=(0, 1, 2)):
    """Student and teacher see other images, features of either correlate; a fifth of the labels is unknown."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.tensor(shown)
    labels, pseudo = (values[torch.randint(len(shown), size, generator=draw)] for _ in range(2))
    labels[torch.rand(size, generator=draw) < 0.2] = -1
    images = torch.randn(2, size[0], 1, *size[1:], generator=draw)
    features = network.body(images[0] + 0.5 * labels[:, None])
    taught = (1.5 * network.body(images[1] - 0.3 * pseudo[:, None]) + 0.2).detach()
    confidence = torch.rand(size, generator=draw)
    return Step(
        torch.zeros(()), Voxels(features, network.classifier(features), labels),
        lambda: Voxels(taught, network.classifier(taught).detach(), pseudo, confidence),
    )  # fmt: skip


def make(**options):
    return TransferableAugmentation(CLASSES, WIDTH, **{"min_count": 1, "voxels_per_class": 10**6, **options})


def rows(voxels, k, keep=None):
    """Features ``(N, A)`` of a class, in numpy."""
    flat = voxels.features.detach().movedim(1, -1).reshape(-1, WIDTH).double().numpy()
    chosen = voxels.labels.flatten() == k
    return flat[(chosen if keep is None else chosen & keep.flatten()).numpy()]


def moments(steps, confidence=0.75):
    """Mean and covariance of each class over steps: of the student, and of the teacher's confident voxels."""
    found = []
    for side in ("labelled", "unlabelled"):
        means, covs = [], []
        for k in range(CLASSES):
            parts = []
            for step in steps:
                voxels = getattr(step, side)
                parts.append(rows(voxels, k, None if side == "labelled" else voxels.confidence >= confidence))
            everything = np.concatenate(parts)
            means.append(everything.mean(0))
            covs.append(np.cov(everything.T, bias=True))
        found.append((np.stack(means), np.stack(covs)))
    return found


def naive(features, labels, classifier, strength, shift, cov, clamp=10.0):
    """Mean of the bound, one voxel after the other in float64."""
    weight, bias = classifier.weight.detach().flatten(1).double().numpy(), classifier.bias.detach().double().numpy()
    losses = []
    flat = features.detach().movedim(1, -1).reshape(-1, WIDTH).double().numpy()
    for f, y in zip(flat, labels.flatten().tolist(), strict=True):
        if y < 0:
            continue
        total = 0.0
        for j in range(CLASSES):
            v = weight[j] - weight[y]
            margin = strength * v @ shift[y] + strength / 2 * v @ cov[y] @ v
            total += math.exp(v @ f + bias[j] - bias[y] + np.clip(margin, -clamp, clamp))
        losses.append(math.log(total))
    return np.mean(losses)


def plain(step, labels=None):
    return F.cross_entropy(step.labelled.logits, step.labelled.labels if labels is None else labels, ignore_index=-1)


# --- memories ---


def test_memories_hold_the_moments_of_all_steps():
    network, tsa = make_network(), make(max_count=None)
    steps = [make_step(network, seed) for seed in range(3)]
    for number, step in enumerate(steps):
        tsa(network, step, number, TOTAL)
    for memory, (mean, cov) in zip((tsa.student, tsa.teacher), moments(steps), strict=True):
        found = memory.pooled()
        np.testing.assert_allclose(found.mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.cov.numpy(), cov, rtol=1e-4, atol=1e-5)
    counts = [sum(len(rows(step.labelled, k)) for step in steps) for k in range(CLASSES)]
    assert tsa.student.pooled().count.tolist() == counts


@pytest.mark.parametrize("confidence", [0.0, 0.75, 1.1])
def test_only_confident_pseudo_labels_count(confidence):
    network = make_network()
    tsa, step = make(confidence=confidence), make_step(network)
    loss, _ = tsa(network, step, 5, TOTAL)
    sure = step.unlabelled.confidence >= confidence
    counts = [int(((step.unlabelled.labels == k) & sure).sum()) for k in range(CLASSES)]
    assert tsa.teacher.pooled().count.tolist() == counts and (sum(counts) > 0) == (confidence < 1)
    if confidence > 1:  # no target, no augmentation
        assert loss.item() == pytest.approx(plain(step).item(), rel=1e-6)


def test_the_same_confidence_of_the_student():
    network = make_network()
    step, matched = make_step(network), make(match_confidence=True, confidence=0.5)
    sure = step.labelled.logits.softmax(1).amax(1) >= 0.5
    loss, _ = matched(network, step, 5, TOTAL)
    expected = [len(rows(step.labelled, k, sure)) for k in range(CLASSES)]
    assert matched.student.pooled().count.tolist() == expected and 0 < sure.float().mean() < 1
    for k in range(CLASSES):
        found = matched.student.pooled().mean[k].numpy()
        np.testing.assert_allclose(found, rows(step.labelled, k, sure).mean(0), rtol=1e-4, atol=1e-5)
    shift, cov = (value.double().numpy() for value in matched.differences())  # all labelled voxels are in the loss
    expected = naive(step.labelled.features, step.labelled.labels, network.classifier, 0.125, shift, cov)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_at_most_so_many_voxels_of_a_class():
    network, tsa = make_network(), make(voxels_per_class=7)
    step = make_step(network)
    step.labelled.labels[step.labelled.labels == 2] = -1
    step.labelled.labels[0, 0, :4] = 2
    tsa(network, step, 0, TOTAL)
    assert tsa.student.pooled().count.tolist() == [7, 7, 4]
    assert tsa.teacher.pooled().count.tolist() == [7, 7, 7]


def test_drawing_leaves_all_other_random_numbers_alone():
    network = make_network()
    step = make_step(network)

    def remembered(number, seed=0):
        tsa = make(voxels_per_class=7, seed=seed)
        before = torch.get_rng_state()
        tsa(network, step, number, TOTAL)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([tsa.student.mean, tsa.teacher.mean])

    first = remembered(3)
    torch.manual_seed(99)
    assert torch.equal(remembered(3), first)  # of the step's number alone
    assert not torch.equal(remembered(4), first) and not torch.equal(remembered(3, seed=1), first)


def test_nothing_is_remembered_in_eval_mode():
    network, tsa = make_network(), make().eval()
    step = make_step(network)
    loss, _ = tsa(network, step, 5, TOTAL)
    assert tsa.student.count.sum() == tsa.teacher.count.sum() == 0 and loss.item() == pytest.approx(plain(step).item())


# --- the loss ---


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mean_shift", [True, False])
@pytest.mark.parametrize("covariance", ["full", "diag", "none"])
def test_the_bound_voxel_by_voxel(direction, mean_shift, covariance):
    network = make_network()
    tsa = make(direction=direction, mean_shift=mean_shift, covariance=covariance, strength=0.8)
    step = make_step(network)
    loss, _ = tsa(network, step, 5, TOTAL)
    (student, student_cov), (teacher, teacher_cov) = moments([step])
    if direction == "source_to_target":
        features, labels, shift, cov = step.labelled.features, step.labelled.labels, teacher - student, teacher_cov
    else:
        sure = step.unlabelled.confidence >= 0.75
        labels = torch.where(sure, step.unlabelled.labels, -1)
        features, shift, cov = step.unlabelled.features, student - teacher, student_cov
    cov = {"full": cov, "diag": cov * np.eye(WIDTH), "none": 0 * cov}[covariance]
    expected = naive(features, labels, network.classifier, 0.4, shift * mean_shift, cov)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    bare = naive(features, labels, network.classifier, 0.0, shift, cov)
    assert (abs(bare - expected) > 1e-3) == (mean_shift or covariance != "none")


def test_at_strength_zero_plain_cross_entropy():
    network = make_network()
    step = make_step(network)
    for tsa, number in ((make(strength=0.0), 5), (make(), 0)):  # at the first step the ramp is 0
        loss, logged = tsa(network, step, number, TOTAL)
        assert loss.item() == pytest.approx(plain(step).item(), rel=1e-6)
        assert logged["margin_mean"] == logged["margin_cov"] == logged["margin_clamped"] == 0


@pytest.mark.parametrize(("number", "strength"), [(2, 0.05), (10, 0.25), (25, 0.25)])
def test_the_strength_grows_until_the_schedules_end(number, strength):
    network = make_network()
    tsa, step = make(), make_step(network)
    loss, _ = tsa(network, step, number, TOTAL)
    (student, _), (teacher, cov) = moments([step])
    found = step.labelled
    expected = naive(found.features, found.labels, network.classifier, strength, teacher - student, cov)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("scarce", ["labelled", "unlabelled"])
def test_a_class_hardly_seen_has_no_margin(direction, scarce):
    """In either memory; the other classes keep theirs."""
    network = make_network()
    step, tsa = make_step(network), make(direction=direction, min_count=10)
    voxels = getattr(step, scarce)
    voxels.labels[voxels.labels == 1] = -1
    if scarce == "labelled":
        voxels.labels[0, 0, :9] = 1
    else:
        voxels.labels[0, 0, :9], voxels.confidence[0, 0, :9] = 1, 0.9
    tsa(network, step, 5, TOTAL)
    shift, cov = tsa.differences()
    margins = tsa.loss.margins(network.classifier.weight.flatten(1), 1.0, shift, cov)
    assert (margins[1] == 0).all() and (shift[1] == 0).all() and (cov[1] == 0).all()
    assert (margins[0, 1:].abs() > 1e-4).all() and (margins[2, :2].abs() > 1e-4).all()
    voxels.labels[0, 1, 0] = 1  # the tenth; counts go on from step to step
    if scarce == "unlabelled":
        voxels.confidence[0, 1, 0] = 0.9
    tsa(network, step, 6, TOTAL)
    assert (tsa.differences()[0][1] != 0).any()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_classes_and_confidence_that_never_come(direction):
    """A class absent everywhere, then nothing confident at all: finite, and zero where no voxel counts."""
    network = make_network()
    loss, logged = make(direction=direction)(network, make_step(network, shown=(0, 2)), 5, TOTAL)
    assert loss.isfinite() and loss > 0 and all(value.isfinite() for value in logged.values())
    step = make_step(network)
    loss, _ = make(direction=direction, confidence=1.1)(network, step, 5, TOTAL)
    loss.backward()
    assert (loss == 0) == (direction == "teacher_to_student")
    assert network.classifier.weight.grad.isfinite().all() and network.classifier.weight.grad.any() == (loss > 0)


def test_a_memory_too_short_to_count_is_refused():
    with pytest.raises(ValueError, match="max_count=100 would keep classes below min_count=256"):
        make(max_count=100, min_count=256)


# --- gradient ---


def test_source_to_target_trains_the_student_alone():
    network = make_network()
    step = make_step(network)
    step.unlabelled.features.requires_grad_()
    loss, _ = make()(network, step, 5, TOTAL)
    loss.backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    assert step.unlabelled.features.grad is None


def test_source_to_target_sees_the_memories_as_constants():
    """The gradient is that of the loss with shift and covariance written down; the weight's goes through the margin."""
    network = make_network()
    step, tsa = make_step(network), make(strength=2.0)
    loss, _ = tsa(network, step, 5, TOTAL)
    shift, cov = tsa.differences()
    weight = network.classifier.weight.flatten(1)
    apart = weight[None] - weight[:, None]
    margin = (apart * shift[:, None]).sum(-1) + 0.5 * torch.einsum("yja,yab,yjb->yj", apart, cov, apart)
    known = step.labelled.labels >= 0
    logits = step.labelled.logits.movedim(1, -1)[known] + margin[step.labelled.labels[known]]
    expected = F.cross_entropy(logits, step.labelled.labels[known])
    parameters = list(network.parameters())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    pairs = zip(*(torch.autograd.grad(each, parameters, retain_graph=True) for each in (loss, expected)), strict=True)
    for found, slope in pairs:
        torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-6)


def test_teacher_to_student_reaches_the_classifier_alone():
    network = make_network()
    step = make_step(network)
    step.unlabelled.features.requires_grad_()
    loss, _ = make(direction="teacher_to_student")(network, step, 5, TOTAL)
    loss.backward()
    assert network.classifier.weight.grad.any() and network.classifier.bias.grad.any()
    assert all(parameter.grad is None for parameter in network.body.parameters())
    assert step.unlabelled.features.grad is None


# --- formats, wrappers, the log ---


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_linear_layer_is_a_classifier_too(direction):
    """As wide as the image, where a mix-up of the axes would go unseen."""
    network = make_network()
    step = make_step(network, size=(4, WIDTH, WIDTH))
    expected, _ = make(direction=direction)(network, step, 5, TOTAL)
    linear = nn.Linear(WIDTH, CLASSES)
    linear.load_state_dict({"weight": network.classifier.weight.flatten(1), "bias": network.classifier.bias})
    network.classifier = linear
    loss, _ = make(direction=direction)(network, step, 5, TOTAL)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_wrapped_network_is_the_network(direction):
    network = make_network()
    step = make_step(network)
    losses = [make(direction=direction)(n, step, 5, TOTAL)[0] for n in (network, nn.DataParallel(network))]
    assert torch.equal(*losses)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bfloat16_features(direction):
    network, tsa = make_network(), make(direction=direction)
    with torch.autocast("cpu", torch.bfloat16):
        step = make_step(network)
        assert step.labelled.features.dtype == step.unlabelled.logits.dtype == torch.bfloat16
        step.unlabelled.features = step.unlabelled.features.bfloat16()
        loss, logged = tsa(network, step, 5, TOTAL)
    assert {value.dtype for value in (loss, *logged.values(), tsa.teacher.mean)} == {torch.float32}
    loss.backward()
    assert network.classifier.weight.grad.isfinite().all()
    (_, cov), _ = moments([step])
    np.testing.assert_allclose(tsa.student.pooled().cov.numpy(), cov, rtol=1e-3, atol=1e-4)


def test_volumes():
    network = nn.Sequential()
    network.body, network.classifier = nn.Conv3d(1, WIDTH, 3, padding=1), nn.Conv3d(WIDTH, CLASSES, 1)
    step = make_step(network, size=(2, 4, 5, 6))
    loss, _ = make()(network, step, 5, TOTAL)
    (student, _), (teacher, cov) = moments([step])
    expected = naive(step.labelled.features, step.labelled.labels, network.classifier, 0.125, teacher - student, cov)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_what_is_logged():
    network = make_network()
    tsa, step = make(strength=4.0), make_step(network)
    tsa.loss.max_margin = 0.5
    _, logged = tsa(network, step, 5, TOTAL)
    (student, _), (teacher, cov) = moments([step])
    weight, means, covs, both = network.classifier.weight.detach().flatten(1).double().numpy(), [], [], []
    for y in range(CLASSES):
        for j in range(CLASSES):
            if j != y:
                v = weight[j] - weight[y]
                parts = 2.0 * v @ (teacher - student)[y], 1.0 * v @ cov[y] @ v
                means.append(np.clip(parts[0], -0.5, 0.5))
                covs.append(np.clip(parts[1], -0.5, 0.5))
                both.append(abs(sum(parts)) >= 0.5)
                assert logged[f"margin_mean/{y}_{j}"].item() == pytest.approx(means[-1], rel=1e-4)
                assert logged[f"margin_cov/{y}_{j}"].item() == pytest.approx(covs[-1], rel=1e-4)
    assert logged["margin_mean"].item() == pytest.approx(np.mean(means), rel=1e-4)
    assert logged["margin_cov"].item() == pytest.approx(np.mean(covs), rel=1e-4)
    assert logged["margin_clamped"].item() == pytest.approx(np.mean(both)) and 0 < np.mean(both) < 1
    assert not any(value.requires_grad for value in logged.values())


def test_another_direction_is_refused():
    with pytest.raises(ValueError, match="direction must be one of .*source_to_target.*, got 'both'"):
        make(direction="both")
