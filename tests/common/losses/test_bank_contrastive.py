import io
import math

import numpy as np
import pytest
import torch

from common.losses import bank_contrastive
from common.losses.bank_contrastive import BankContrastiveLoss, ClassMemoryBank

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def make_bank(*classes, dtype=torch.float64):
    """A bank of the given features, one ``(M, A)`` array for each class; ``[]`` is an empty class."""
    arrays = [torch.as_tensor(features, dtype=dtype) for features in classes]
    width = next(features.shape[1] for features in arrays if len(features))
    bank = ClassMemoryBank(len(arrays), width, max(map(len, arrays))).to(dtype)
    for c, features in enumerate(arrays):
        bank.push(features.reshape(-1, width), torch.full((len(features),), c))
    return bank


@pytest.fixture
def case():
    """Features ``(9, 4)``, labels of four classes (class 3 has an empty bank) and ignored ones, and a bank."""
    draw = np.random.default_rng(0)
    features = torch.as_tensor(draw.standard_normal((9, 4)))
    labels = torch.tensor([0, 2, -1, 1, 0, 3, 0, -7, 2])
    return features, labels, make_bank(*(draw.standard_normal((size, 4)) for size in (5, 3, 6)), [])


def naive(features, labels, bank, temperature):
    """The docstring's formula, one pixel and one positive at a time."""
    remembered = [bank.get(c).double().numpy() for c in range(bank.num_classes)]
    values = []
    for q, y in zip(features.double().numpy(), labels.tolist(), strict=True):
        if y < 0 or not len(remembered[y]):
            continue
        negative = 0.0
        for c, others in enumerate(remembered):
            if c != y and len(others):
                negative += sum(math.exp(q @ n / temperature) for n in others) / len(others)
        values.append(0.0)
        for k in remembered[y]:
            own = math.exp(q @ k / temperature)
            values[-1] -= math.log(own / (own + negative)) / len(remembered[y])
    return sum(values) / len(values)


def each(loss, features, labels, bank):
    """The loss of every pixel by itself."""
    return torch.stack([loss(features[i : i + 1], labels[i : i + 1], bank) for i in range(len(labels))])


def test_value_worked_by_hand():
    bank = make_bank([[1.0, 0], [0, 1]], [[-1.0, 0]], [[0.0, 0], [0, 3], [0, -5]], dtype=torch.float32)
    query = torch.tensor([[0.5, 0.0]])
    # at tau 0.5 the positives have e^1 and e^0; class 1 has e^-1, class 2 the mean of three e^0
    negative = math.exp(-1) + 1
    expected = (math.log(1 + negative / math.e) + math.log(1 + negative)) / 2
    assert BankContrastiveLoss(0.5)(query, torch.tensor([0]), bank).item() == pytest.approx(expected, rel=1e-6)


def test_same_as_the_naive_loop(case):
    value = BankContrastiveLoss(0.3)(*case)
    assert value.item() == pytest.approx(naive(*case, 0.3), rel=1e-10)
    in_float32 = BankContrastiveLoss(0.3)(case[0].float(), case[1], case[2].float())
    torch.testing.assert_close(in_float32, value.float(), rtol=1e-5, atol=1e-6)


def test_gradient(case):
    features, labels, bank = case
    loss = BankContrastiveLoss(0.3)
    assert torch.autograd.gradcheck(lambda q: loss(q, labels, bank), features.requires_grad_())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1e4])
def test_finite_at_the_extremes(dtype, temperature):
    """Similarities of +-1e5 and more over a tiny temperature; features that are zero; exponents that all vanish."""
    axes = torch.eye(2, dtype=dtype)
    queries = torch.cat([300 * axes, -300 * axes, 0 * axes]).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    for bank in (make_bank(300 * axes[:1], 300 * axes[1:]), make_bank(-300 * axes[:1], 0 * axes)):
        value = BankContrastiveLoss(temperature)(queries, labels, bank.to(dtype))
        (gradient,) = torch.autograd.grad(value, queries)
        assert torch.isfinite(value) and value >= 0
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        # 300 / 1e-3, the slope itself, is beyond float16
        assert torch.isfinite(gradient).all() or (dtype == torch.float16 and temperature == 1e-3)
        assert gradient.dtype == dtype
    worst = BankContrastiveLoss(1e-3)(300 * axes[:1], labels[:1], make_bank(-300 * axes[:1], 300 * axes[:1]).to(dtype))
    assert worst.item() == pytest.approx(2 * 300 * 300 / 1e-3, rel=1e-2)  # 300 is not a bfloat16


def test_float32_under_autocast(case):
    features, labels, bank = case[0].float().requires_grad_(), case[1], case[2].float()
    with torch.autocast("cpu", torch.bfloat16):
        value = BankContrastiveLoss(0.1)(features, labels, bank)
        (gradient,) = torch.autograd.grad(value, features)
    expected = BankContrastiveLoss(0.1)(features, labels, bank)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, features)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [[], [-1, -1], [2, 2], [0, 0], [0, -1, 2]])
def test_nothing_to_count_gives_zero_with_zero_gradient(labels):
    """No pixel, none with a label, none whose class is known; no other class to contrast with; a mix of these."""
    bank = make_bank([[1.0, 2.0]], [], [])
    features = torch.randn(len(labels), 2, dtype=torch.float64, requires_grad=True)
    value = BankContrastiveLoss()(features, torch.tensor(labels, dtype=torch.int64), bank)
    value.backward()
    assert value == 0 and value.shape == () and (features.grad == 0).all() and features.grad.shape == features.shape


def test_bad_input_is_refused(case):
    features, labels, bank = case
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        BankContrastiveLoss(temperature=0)
    with pytest.raises(ValueError, match="must be positive, got 3, 0, 5"):
        ClassMemoryBank(3, 0, 5)
    for call in (bank.push, lambda *pixels: BankContrastiveLoss()(*pixels, bank)):
        for pixels in ((features[:, :3], labels), (features, labels[1:]), (features, labels[:, None])):
            with pytest.raises(ValueError, match=r"expected features \(N, 4\) and labels \(N,\), got \(9, "):
                call(*pixels)
        with pytest.raises(ValueError, match="labels must be whole numbers, got torch.float32"):
            call(features, labels.float())
        with pytest.raises(ValueError, match="labels must be below 4 .*got 4"):
            call(features, labels + 1)
    for c in (-1, 4):
        with pytest.raises(ValueError, match=f"class must be from 0 to 3, got {c}"):
            bank.get(c)


def test_first_in_first_out():
    """Against plain lists: pushes of 0 to 9 pixels of three classes, ignored ones among them, into 4 places."""
    draw = np.random.default_rng(0)
    bank, lists = ClassMemoryBank(3, 2, 4), [[], [], []]
    for step in range(40):
        count = int(draw.integers(0, 10))
        features, labels = draw.standard_normal((count, 2)).astype("float32"), draw.integers(-1, 3, count)
        bank.push(torch.as_tensor(features), torch.as_tensor(labels))
        for row, label in zip(features.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                lists[label] = (lists[label] + [row])[-4:]
        assert [bank.get(c).tolist() for c in range(3)] == lists, step
        assert bank.filled.tolist() == [len(rows) for rows in lists]


def test_more_than_fits_keeps_the_last():
    bank = ClassMemoryBank(2, 1, 3)
    rows = torch.arange(8.0)[:, None]
    bank.push(rows, torch.tensor([1, 0, 1, 1, 1, 0, 1, 1]))  # class 1: 0, 2, 3, 4, 6, 7
    assert bank.get(1).flatten().tolist() == [4, 6, 7] and bank.get(0).flatten().tolist() == [1, 5]
    bank.push(rows + 10, torch.ones(8, dtype=torch.int64))
    assert bank.get(1).flatten().tolist() == [15, 16, 17] and bank.filled.tolist() == [2, 3]


def test_draws_are_of_the_class_each_at_most_once():
    """Every feature is drawn in turn, from a class that is full, from one that is not, and from an empty one."""
    bank = make_bank(torch.arange(4.0)[:, None], torch.arange(10.0, 12)[:, None], [])
    bank.push(torch.tensor([[4.0], [5.0]]).double(), torch.tensor([0, 0]))  # the ring of class 0 has turned
    draw = torch.Generator().manual_seed(0)
    for c, members in enumerate(({2, 3, 4, 5}, {10, 11}, set())):
        for count in (0, 1, 2, 3, 9):
            drawn = [tuple(bank.draw(c, count, draw).flatten().tolist()) for _ in range(60)]
            assert {len(rows) for rows in drawn} == {len(set(rows)) for rows in drawn} == {min(count, len(members))}
            assert {value for rows in drawn for value in rows} == (members if count else set())
        assert bank.draw(c, 2, draw).shape == (min(2, len(members)), 1)
    assert len(set(tuple(bank.draw(0, 9, draw).flatten().tolist()) for _ in range(300))) == 24  # in any order


def test_a_draw_is_a_copy_and_follows_its_generator(case):
    bank = case[2]
    drawn = [bank.draw(0, 3, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    before = torch.get_rng_state()
    bank.draw(0, 3, torch.Generator()).zero_()
    assert torch.equal(torch.get_rng_state(), before) and (bank.get(0) != 0).all()
    torch.manual_seed(5)
    assert torch.equal(bank.draw(0, 3), drawn[0]) and not torch.equal(torch.get_rng_state(), before)
    for c in (-1, 4):
        with pytest.raises(ValueError, match=f"class must be from 0 to 3, got {c}"):
            bank.draw(c, 2)
    with pytest.raises(ValueError, match="count must not be negative, got -1"):
        bank.draw(0, -1)


def test_the_bank_keeps_values_not_graphs_and_nothing_in_eval():
    bank, features = ClassMemoryBank(1, 2, 4), torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        bank.push(features.half() * 2, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        features += 5
    assert bank.get(0).tolist() == [[2, 2], [2, 2]] and bank.get(0).dtype == torch.float32
    assert not bank.features.requires_grad and not list(bank.parameters())
    bank.eval()
    bank.push(features, torch.zeros(2, dtype=torch.int64))
    assert bank.get(0).tolist() == [[2, 2], [2, 2]] and bank.filled.tolist() == [2]
    bank.get(0).zero_()
    assert bank.get(0).tolist() == [[2, 2], [2, 2]]


def test_resume_is_exact():
    """Saved in the middle of its ring, the bank goes on as if it had never stopped."""
    draw = torch.Generator().manual_seed(0)
    pushes = [(torch.randn(7, 3, generator=draw), torch.randint(-1, 3, (7,), generator=draw)) for _ in range(6)]
    whole, file = ClassMemoryBank(3, 3, 4), io.BytesIO()
    for push in pushes[:3]:
        whole.push(*push)
    assert whole.pointer.any()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = ClassMemoryBank(3, 3, 4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(whole.get(c), resumed.get(c)) for c in range(3))
    for push in pushes[3:]:
        whole.push(*push)
        resumed.push(*push)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())
    assert all(torch.equal(whole.get(c), resumed.get(c)) for c in range(3))


def test_gradient_is_that_of_the_bank_at_the_call(case):
    """A push between the loss and its backward pass, the usual order of two views, changes nothing."""
    features, labels, bank = case[0].requires_grad_(), case[1], case[2]
    (expected,) = torch.autograd.grad(BankContrastiveLoss()(features, labels, bank), features)
    value = BankContrastiveLoss()(features, labels, bank)
    bank.push(torch.full((9, 4), 100.0), labels)
    assert torch.equal(torch.autograd.grad(value, features)[0], expected)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_leave_the_result_as_it_is(case, chunk, monkeypatch):
    features, labels, bank = case[0].requires_grad_(), case[1], case[2]
    results = [BankContrastiveLoss(0.2)(features, labels, bank)]
    monkeypatch.setattr(bank_contrastive, "CHUNK", chunk)
    results.append(BankContrastiveLoss(0.2)(features, labels, bank))
    gradients = [torch.autograd.grad(value, features)[0] for value in results]
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_order_size_and_further_classes(case):
    """Order in a class, features held twice, names of classes, and the scale of all (squared in tau) are nothing."""
    features, labels, bank = case
    loss, remembered = BankContrastiveLoss(0.4), [bank.get(c) for c in range(3)]
    value = loss(*case)
    renamed = torch.where(labels < 0, labels, 3 - labels)
    torch.testing.assert_close(loss(features, labels, make_bank(*(t.flip(0) for t in remembered), [])), value)
    torch.testing.assert_close(loss(features, labels, make_bank(*(t.repeat(2, 1) for t in remembered), [])), value)
    torch.testing.assert_close(loss(features, renamed, make_bank([], *remembered[::-1])), value)
    scaled = make_bank(*(3 * t for t in remembered), [])
    torch.testing.assert_close(BankContrastiveLoss(0.4 * 9)(3 * features, labels, scaled), value)
    more = each(loss, features, labels, make_bank(*remembered, [[0.1, 0.2, 0.3, 0.4]]))
    assert (more > each(loss, *case))[(labels >= 0) & (labels < 3)].all()  # a further class can only cost


def gaussian_classes(temperature, pixels=48, width=6, classes=3):
    """Means, roots of covariances and unit features; the exact loss of each feature and its Gaussian upper bound.

    q·q+/tau of a Gaussian class is Gaussian too, so that the outer expectation is an integral over one number
    (Gauss-Hermite) and the inner ones are known: E exp(q·n/tau) = exp(q·mu/tau + q'Sigma q / 2 tau²).
    """
    draw = np.random.default_rng(3)
    mean = 0.8 * np.eye(classes, width) + 0.1 * draw.standard_normal((classes, width))
    root = draw.standard_normal((classes, width, width)) * np.linspace(0.02, 0.22, width)  # not isotropic, all differ
    queries = draw.standard_normal((pixels, width))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    labels = np.arange(pixels) % classes
    center = queries @ mean.T / temperature
    spread = np.stack([((queries @ r) ** 2).sum(1) for r in root], 1) / temperature**2
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    exact = []
    for z, s, y in zip(center, spread, labels, strict=True):
        negative = sum(np.exp(z[c] + s[c] / 2) for c in range(classes) if c != y)
        own = z[y] + np.sqrt(s[y]) * nodes
        exact.append((weights * (np.logaddexp(own, np.log(negative)) - own)).sum() / np.sqrt(2 * np.pi))
    bound = np.log(np.exp(center + spread / 2).sum(1)) - center[np.arange(pixels), labels]
    return mean, root, torch.as_tensor(queries), torch.as_tensor(labels), np.array(exact), bound


@pytest.mark.parametrize("temperature", [0.3, 0.5])
def test_tends_to_the_exact_expectation_as_the_bank_grows(temperature):
    """Root mean square error of a pixel's loss falls as 1/sqrt(M), to well within the gap to the upper bound."""
    mean, root, queries, labels, exact, bound = gaussian_classes(temperature)
    sizes, errors = [64, 512, 4096, 32768], []
    for size in sizes:
        draw = np.random.default_rng(size)
        bank = make_bank(*(m + draw.standard_normal((size, len(m))) @ r.T for m, r in zip(mean, root, strict=True)))
        values = each(BankContrastiveLoss(temperature), queries, labels, bank).numpy()
        errors.append(np.sqrt(((values - exact) ** 2).mean()))
    assert all(later < earlier for earlier, later in zip(errors, errors[1:], strict=False)), errors
    scaled = np.array(errors) * np.sqrt(sizes)
    assert scaled.max() < 3 * scaled.min(), scaled
    gap = bound - exact
    assert (gap > 0).all() and errors[-1] < gap.mean() / 5, (errors, gap.mean())
    assert values.mean() < bound.mean() - 0.8 * gap.mean()  # nearer to the expectation than to its bound
