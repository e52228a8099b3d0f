import numpy as np
import pytest
import torch

from common.losses.class_statistics import ClassStatistics, GaussianStats

CLASSES, WIDTH = 3, 4


def pixels(count, seed, dtype=torch.float64):
    """Features whose classes differ in mean and correlation, and labels with some ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, CLASSES, (count,), generator=generator)
    mixing = torch.randn(CLASSES, WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)
    return (torch.einsum("na,nab->nb", noise, mixing[labels]) + 2 * labels[:, None]).to(dtype), labels


def statistics(cov="full", dtype=torch.float64, **options):
    return ClassStatistics(CLASSES, WIDTH, cov, **options).to(dtype)


def assert_same_as_numpy(stats, features, labels, tolerance=1e-10):
    """Against numpy on all features at once."""
    for c in range(CLASSES):
        rows = features[labels == c].double().numpy()
        assert stats.count[c].item() == len(rows)
        np.testing.assert_allclose(stats.mean[c], rows.mean(0), atol=tolerance)
        if stats.cov is not None:
            expected = np.cov(rows.T, bias=True)
            expected = expected if stats.cov.ndim == 3 else np.diag(expected)
            np.testing.assert_allclose(stats.cov[c], expected, atol=tolerance)


def state(stats):
    return {name: value.clone() for name, value in stats.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_worked_by_hand():
    """Class 0: points 1 and 3, then 8; class 1: nothing but the ignored pixel beside it."""
    stats = ClassStatistics(2, 1)
    stats.update(torch.tensor([[1.0], [3.0], [50.0]]), torch.tensor([0, 0, -1]))
    stats.update(torch.tensor([[8.0]]), torch.tensor([0]))
    found = stats.pooled()
    assert found.count.tolist() == [3, 0] and found.valid.tolist() == [True, False]
    assert found.mean[0].item() == 4 and found.cov[0].item() == pytest.approx((9 + 1 + 16) / 3)
    assert not found.mean[1].any() and not found.cov[1].any()


@pytest.mark.parametrize("cov", ["full", "diag", "none"])
@pytest.mark.parametrize("seed", range(4))
def test_any_partition_in_any_order_same_as_numpy(cov, seed):
    draw = np.random.default_rng(seed)
    features, labels = pixels(400, seed)
    order = torch.from_numpy(draw.permutation(400))
    cuts = sorted({0, 400, *draw.integers(0, 400, size=13).tolist()})
    stats = statistics(cov)
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        stats.update(features[order[start:stop]], labels[order[start:stop]])
    assert_same_as_numpy(stats.pooled(), features, labels)
    assert stats.mean.dtype == torch.float64 and (stats.cov is None) == (cov == "none")


def test_classes_that_come_one_after_the_other():
    features, labels = pixels(300, 0)
    stats = statistics()
    for c in (2, -1, 0, 1):
        stats.update(features[labels == c], labels[labels == c])
    stats.update(features[:0], labels[:0])
    assert_same_as_numpy(stats.pooled(), features, labels)


def test_float32_close_to_numpy_far_from_the_origin():
    features, labels = pixels(4000, 0, torch.float32)
    stats = statistics(dtype=torch.float32)
    for part, part_labels in zip((features + 100).split(97), labels.split(97), strict=True):
        stats.update(part, part_labels)
    found = stats.pooled()
    assert found.mean.dtype == found.cov.dtype == torch.float32
    assert_same_as_numpy(found, features + 100, labels, tolerance=1e-3)
    np.testing.assert_allclose(found.mean, [(features + 100)[labels == c].double().mean(0) for c in range(CLASSES)],
                               rtol=3e-7)


@pytest.mark.parametrize("as_numbers", [True, False])
def test_groups_are_kept_apart_and_pooled_exactly(as_numbers):
    features, labels = pixels(500, 0)
    group = torch.arange(500) % 7 % 3  # unequal shares
    stats = statistics(groups=3)
    for part in torch.arange(500).split(120):
        if as_numbers:
            stats.update(features[part], labels[part], group[part])
        else:
            for g in range(3):
                own = part[group[part] == g]
                stats.update(features[own], labels[own], g)
    assert_same_as_numpy(stats.pooled(), features, labels)
    for g in range(3):
        own = GaussianStats(stats.mean[g], stats.cov[g], stats.count[g], stats.count[g] > 0)
        assert_same_as_numpy(own, features[group == g], labels[group == g])


def test_counter_beyond_float32():
    """Where float32 counts in steps of 2048; and after moving the module through half precision."""
    stats = ClassStatistics(1, 1, "diag")
    stats.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    stats.count.fill_(2.2e10)
    for _ in range(300):
        stats.update(torch.ones(1, 1), torch.tensor([0]))
    assert stats.pooled().count.item() == 22_000_000_300
    for change in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float):
        change(stats)
        assert stats.count.item() == 22_000_000_300 and stats.count.dtype == torch.float64
        assert stats.mean.dtype == torch.float32 and stats.cov.item() == pytest.approx(1)
    assert stats.double().mean.dtype == torch.float64
    assert torch.nn.Sequential(stats).half()[0].count.dtype == torch.float64


def test_cap_keeps_the_mean_following():
    """With at most 4 old pixels, 4 new ones always weigh one half."""
    capped, free = ClassStatistics(1, 1, "diag", max_count=4), ClassStatistics(1, 1, "diag")
    expected = 0.0
    for step in range(10):
        for stats in (capped, free):
            stats.update(torch.full((4, 1), float(step)), torch.zeros(4).long())
        expected = step if step == 0 else (expected + step) / 2
    assert capped.pooled().mean.item() == pytest.approx(expected) and expected > 8
    assert capped.pooled().count.item() == 8
    assert free.pooled().mean.item() == pytest.approx(4.5) and free.pooled().count.item() == 40
    # one batch of 4 around 8, capped at 4, and 4 pixels of value 0: the moments of both sets of 4
    capped = ClassStatistics(1, 1, "diag", max_count=4)
    first = torch.tensor([7.0, 9, 7, 9, 7, 9])
    capped.update(first[:, None], torch.zeros(6).long())
    capped.update(torch.zeros(4, 1), torch.zeros(4).long())
    both = np.array([7.0, 9, 7, 9, 0, 0, 0, 0])
    assert capped.pooled().mean.item() == pytest.approx(both.mean())
    assert capped.pooled().cov.item() == pytest.approx(both.var())
    capped.update(torch.ones(3, 1), torch.full((3,), -1))  # nothing to add: nothing to forget
    assert capped.pooled().count.item() == 8


def test_valid_from_min_count():
    features = torch.randn(7, WIDTH)
    stats = statistics(min_count=3)
    stats.update(features, torch.tensor([0, 0, 0, 1, 1, -1, -5]))
    assert stats.pooled().valid.tolist() == [True, False, False]
    stats.update(features[:1], torch.tensor([1]))
    assert stats.pooled().valid.tolist() == [True, True, False]


def test_nothing_in_eval_mode():
    stats = statistics()
    stats.update(*pixels(50, 0))
    before = state(stats)
    stats.eval()
    stats.update(*pixels(50, 1))
    assert_equal_states(state(stats), before)
    stats.train().update(*pixels(50, 1))
    assert not torch.equal(stats.count, before["count"])


def test_float32_under_autocast_and_from_half_precision():
    features, labels = pixels(200, 0, torch.float32)
    plain, cast, half = (ClassStatistics(CLASSES, WIDTH) for _ in range(3))
    plain.update(features, labels)
    with torch.autocast("cpu", torch.bfloat16):
        cast.update(features, labels)
    assert_equal_states(state(cast), state(plain))
    half.update(features.half(), labels)
    assert_same_as_numpy(half.pooled(), features.half(), labels, tolerance=1e-4)


class Tagged(torch.Tensor):
    """Hands its type on to all that is made of it, as MONAI's MetaTensor does."""


def test_features_and_labels_with_meta_data():
    features, labels = pixels(60, 0, torch.float32)
    plain, meta = ClassStatistics(CLASSES, WIDTH), ClassStatistics(CLASSES, WIDTH)
    plain.update(features, labels)
    meta.update(*(t.as_subclass(Tagged) for t in (features, labels, torch.zeros(60).long())))
    assert_equal_states(state(meta), state(plain))
    assert all(type(t) is torch.Tensor for t in (*meta.buffers(), meta.pooled().cov))


def test_no_gradient_runs_through():
    features, labels = pixels(50, 0)
    stats = statistics()
    stats.update(features.requires_grad_(), labels)
    found = stats.pooled()
    assert not any(t.requires_grad for t in (found.mean, found.cov, found.count, *stats.buffers()))


@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_pooled_stays_as_it_was(groups):
    stats = statistics(groups=groups)
    stats.update(*pixels(50, 0), 0)
    found = stats.pooled()
    before = [t.clone() for t in (found.mean, found.cov, found.count)]
    stats.update(*pixels(50, 1), groups - 1)
    assert all(torch.equal(old, now) for old, now in zip(before, (found.mean, found.cov, found.count), strict=True))


@pytest.mark.parametrize("cov", ["full", "diag", "none"])
def test_resume_is_exact(cov, tmp_path):
    options = {"groups": 2, "max_count": 60, "dtype": torch.float32}
    whole, first, second = (statistics(cov, **options) for _ in range(3))
    batches = [(*pixels(40, seed, torch.float32), seed % 2) for seed in range(6)]
    for batch in batches:
        whole.update(*batch)
    for batch in batches[:3]:
        first.update(*batch)
    torch.save(first.state_dict(), tmp_path / "statistics.pt")
    second.load_state_dict(torch.load(tmp_path / "statistics.pt", weights_only=True))
    for batch in batches[3:]:
        second.update(*batch)
    assert_equal_states(state(second), state(whole))
    assert {"mean", "count"} <= state(whole).keys() and ("cov" in state(whole)) == (cov != "none")


@pytest.mark.parametrize("cov", ["full", "diag"])
def test_scatter_worked_by_hand(cov):
    """Class 0: two groups at (-1, 0) and (1, 0), each with variance 1 along the second axis: 1 of the trace 2.

    Class 1: groups of 1 and 3 pixels at 0 and 4 along the first axis: means 2 from their middle, pooled variance 3.
    Class 2: in one group alone. Class 3: constant.
    """
    stats = ClassStatistics(4, 2, cov, groups=3)
    left, right = torch.tensor([[-1.0, 1], [-1, -1]]), torch.tensor([[1.0, 1], [1, -1]])
    stats.update(left, torch.zeros(2).long(), 0)
    stats.update(right, torch.zeros(2).long(), 2)
    assert stats.between_group_scatter().item() == pytest.approx(0.5)
    stats.update(torch.tensor([[0.0, 7]]), torch.tensor([1]), 1)
    stats.update(torch.tensor([[4.0, 7]]).expand(3, 2), torch.ones(3).long(), 0)
    stats.update(left, torch.full((2,), 2), 1)
    assert stats.between_group_scatter().item() == pytest.approx((1 / 2 + 4 / 3) / 2)
    for g in range(2):
        stats.update(torch.ones(2, 2), torch.full((2,), 3), g)
    assert stats.between_group_scatter().item() == pytest.approx((1 / 2 + 4 / 3 + 0) / 3)


def test_scatter_follows_the_distance_of_the_groups():
    features, labels = pixels(600, 0)
    group = torch.arange(600) % 3
    values = []
    for shift in (0.0, 1.0, 3.0):
        stats = statistics(groups=3)
        stats.update(features + shift * group[:, None], labels, group)
        values.append(stats.between_group_scatter().item())
    assert 0 <= values[0] < 0.05 < values[1] < values[2] < 1
    assert torch.isnan(statistics(groups=3).between_group_scatter())
    with pytest.raises(ValueError, match="cov='none'"):
        statistics("none", groups=3).between_group_scatter()


def test_bad_input_is_refused():
    stats, features, labels = ClassStatistics(3, 4, groups=2), torch.zeros(5, 4), torch.zeros(5).long()
    for bad in (features[:, :3], features[:4], features[None]):
        with pytest.raises(ValueError, match=r"expected features \(N, 4\) and labels \(N,\), got"):
            stats.update(bad, labels, 0)
    with pytest.raises(ValueError, match=r"got \(5, 4\) and \(5, 1\)"):
        stats.update(features, labels[:, None], 0)
    with pytest.raises(ValueError, match="labels must be below 3, found 3"):
        stats.update(features, labels + 3, 0)
    with pytest.raises(ValueError, match="labels must be whole numbers, got torch.float32"):
        stats.update(features, labels.float(), 0)
    with pytest.raises(ValueError, match="2 groups: say which one"):
        stats.update(features, labels)
    with pytest.raises(ValueError, match="groups must be below 2, found 2"):
        stats.update(features, labels, 2)
    with pytest.raises(ValueError, match="groups must not be negative, found -1"):
        stats.update(features, labels, labels - 1)
    with pytest.raises(ValueError, match=r"one group or \(5,\) of them, got \(4,\)"):
        stats.update(features, labels, labels[:4])
    assert_equal_states(state(stats), state(ClassStatistics(3, 4, groups=2)))
    with pytest.raises(ValueError, match="cov must be one of .*'lowrank'"):
        ClassStatistics(3, 4, "lowrank")
    with pytest.raises(ValueError, match="at least 1, got min_count=0, groups=0, max_count=0"):
        ClassStatistics(3, 4, max_count=0, min_count=0, groups=0)
    with pytest.raises(ValueError, match="max_count=4 would keep classes below min_count=5"):
        ClassStatistics(3, 4, max_count=4, min_count=5)


def test_stats_of_bad_shape_are_refused():
    mean, count = torch.zeros(3, 4), torch.zeros(3)
    GaussianStats(mean, None, count, count > 0)
    for bad in (
        (mean, torch.zeros(3, 4, 3), count, count > 0), (mean, mean[:2], count, count > 0),
        (mean[0], None, count, count > 0), (mean, None, count[:2], count > 0), (mean, None, count, count[:2] > 0),
        (mean, None, count, count),
    ):
        with pytest.raises(ValueError, match=r"expected mean \(C, A\), cov .*, got mean"):
            GaussianStats(*bad)


def test_symmetric_covariance():
    cov = torch.tensor([[[1.0, 2.0], [4.0, 5.0]]])
    stats = GaussianStats(torch.zeros(1, 2), cov, torch.ones(1), torch.ones(1) > 0)
    assert stats.symmetric_cov().tolist() == [[[1, 3], [3, 5]]]
    diagonal = GaussianStats(torch.zeros(2, 2), torch.eye(2), torch.ones(2), torch.ones(2) > 0)
    assert torch.equal(diagonal.symmetric_cov(), torch.eye(2))


def test_sync_without_a_process_group_does_nothing():
    stats = statistics()
    stats.update(*pixels(50, 0))
    before = state(stats)
    stats.sync()
    assert_equal_states(state(stats), before)
