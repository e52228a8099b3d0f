import math

import pytest
import torch
from ignite.engine import Events
from torch import nn

from common.engine import ObjectiveTrainer, loss_terms
from common.losses import SymmetricKLLoss
from sgcg_dg import objective as module
from sgcg_dg.objective import all_levels

TERMS = {"loss", "seg", "seg_ram", "kd", "rec", "feat"}


# --- segmentation ---


def dice_loss(chances, truths):
    """One ratio over all pairs, squared denominators, smooth 1e-5."""
    overlap = sum(p * s for p, s in zip(chances, truths, strict=True))
    sizes = sum(p * p + s * s for p, s in zip(chances, truths, strict=True))
    return 1 - (2 * overlap + 1e-5) / (sizes + 1e-5)


def test_segmentation_by_hand(region_loss):
    """Probability one half everywhere; cup in a quarter of the pixels, disc in half of them."""
    label = torch.tensor([0, 0, 1, 2]).view(1, 1, 2, 2)
    found = region_loss()(torch.zeros(1, 2, 2, 2), label)
    # 3 of 8 mask pixels: overlap 1.5, squares 8 / 4 + 3
    assert found.item() == pytest.approx(math.log(2) + 1 - 2 * 1.5 / 5, abs=1e-5)


def test_segmentation_same_as_a_naive_loop(region_loss):
    logits, label = 2 * torch.randn(3, 2, 5, 6), torch.randint(0, 3, (3, 1, 5, 6))
    chances, truths = [], []
    for b in range(3):
        for k, ids in enumerate(([2], [1, 2])):
            chances += [1 / (1 + math.exp(-z)) for z in logits[b, k].double().flatten().tolist()]
            truths += [float(y in ids) for y in label[b, 0].flatten().tolist()]
    cross = -sum(math.log(p if s else 1 - p) for p, s in zip(chances, truths, strict=True)) / len(chances)
    assert region_loss()(logits, label).item() == pytest.approx(cross + dice_loss(chances, truths), rel=1e-5)


def test_segmentation_is_finite_at_the_extremes(region_loss):
    """Without a structure, with nothing else, and in bfloat16: computed in float32."""
    loss = region_loss({"disc": [1]})
    for value in (-200.0, 200.0):
        for label in (torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)):
            logits = torch.full((2, 1, 4, 4), value, dtype=torch.bfloat16, requires_grad=True)
            found = loss(logits, label.long())
            found.backward()
            assert found.isfinite() and found.dtype == torch.float32 and logits.grad.isfinite().all()


# --- the sum of the terms ---


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 0.1, 0.3)])
def test_the_loss_is_the_weighted_sum_of_its_terms(make_network, batch, weights, make_objective, region_loss):
    names = ("consistency_weight", "restoration_weight", "contrast_weight")
    network = make_network()
    logits, terms = make_objective(**dict(zip(names, weights, strict=True)))(network, batch, 0)
    assert set(terms) == TERMS and all(value.ndim == 0 and value > 0 for value in terms.values())
    parts = zip(weights, ("kd", "rec", "feat"), strict=True)
    torch.testing.assert_close(
        terms["loss"], terms["seg"] + terms["seg_ram"] + sum(weight * terms[name] for weight, name in parts)
    )
    plain, mixed = network(batch["image"]), network(batch["image_ram"])  # in train mode, as the objective ran it
    torch.testing.assert_close(logits, plain)
    torch.testing.assert_close(terms["seg"], region_loss()(plain, batch["label"]))
    torch.testing.assert_close(terms["seg_ram"], region_loss()(mixed, batch["label"]))
    torch.testing.assert_close(terms["kd"], SymmetricKLLoss()(plain, mixed))
    assert (terms["seg"] - terms["seg_ram"]).abs() > 1e-4


@pytest.mark.parametrize(("part", "term"), [("consistency", "kd"), ("restoration", "rec"), ("contrast", "feat")])
def test_a_part_that_is_null_leaves_its_term_out(make_network, batch, part, term, make_objective):
    network = make_network()
    every, others = make_objective()(network, batch, 0)[1], make_objective(**{part: None})(network, batch, 0)[1]
    assert set(others) == TERMS - {term}
    weight = {"kd": 0.5, "rec": 0.1, "feat": 1.0}[term]
    torch.testing.assert_close(others["loss"], every["loss"] - weight * every[term])


def test_without_a_mixed_view_only_the_images_count(make_network, batch, make_objective):
    batch.pop("image_ram")
    network = make_network()
    _, terms = make_objective()(network, batch, 0)
    assert set(terms) == {"loss", "seg", "feat"}
    _, terms = make_objective(contrast=None)(network, batch, 0)
    assert set(terms) == {"loss", "seg"} and terms["loss"] == terms["seg"]


def test_each_view_has_a_forward_pass_of_its_own(make_network, batch, make_objective):
    """Batch norm sees the originals first, then the mixed views, and counts two batches."""
    network = make_network().train()
    make_objective()(network, batch, 0)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(norm.num_batches_tracked == 2 for norm in norms)
    conv = network.encoder.blocks[0][1]
    with torch.no_grad():
        plain, mixed = (conv(batch[key]).mean((0, 2, 3)) for key in ("image", "image_ram"))
    torch.testing.assert_close(norms[0].running_mean, 0.9 * 0.1 * plain + 0.1 * mixed)


class Painter(nn.Module):
    """Restores every image of a domain as one value, and keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, deep, domain, size):
        self.seen.append((domain, deep.detach(), tuple(size)))
        return torch.full((len(deep), 3, *size), (-0.5, 0.25, 0.75)[domain])


def test_restoration_sums_the_mean_errors_of_the_domains(make_network, batch, make_objective):
    """Of the originals, from the deepest map of the mixed views; domains of different sizes weigh the same."""
    network, painter = make_network(), Painter()
    _, terms = make_objective(restoration=painter)(network, batch, 0)
    expected, deep = 0.0, all_levels(network, batch["image_ram"])["deep"]
    for domain, (rows, value) in enumerate(((slice(0, 2), -0.5), (slice(2, 5), 0.25), (slice(5, 7), 0.75))):
        target = 2 * batch["image"][rows].double() - 1
        expected += ((target - value) ** 2).sum() / target.numel()
        index, given, size = painter.seen[domain]
        assert index == domain and size == (32, 48)
        torch.testing.assert_close(given, deep[rows])
    torch.testing.assert_close(terms["rec"].double(), expected, rtol=1e-5, atol=1e-6)


def test_each_domain_is_restored_through_its_own_norms(make_network, batch, make_objective):
    objective = make_objective()
    two = {key: value[:5] for key, value in batch.items()}  # nothing of the third domain
    objective(make_network(), two, 0)
    counts = {name: int(value) for name, value in objective.restoration.named_buffers() if "batches" in name}
    assert counts and all(count == (0 if "norms.2." in name else 1) for name, count in counts.items())


# --- the whole ---


def test_every_part_gets_a_gradient(make_network, batch, make_objective):
    """And the statistics none."""
    objective, network = make_objective(), make_network().train()
    objective(network, batch, 0)[1]["loss"].backward()
    parameters = dict(network.named_parameters()) | dict(objective.named_parameters())
    still = {name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()}
    assert not still and all(p.grad.any() for name, p in parameters.items() if name.endswith("weight"))


def test_mixed_precision_keeps_the_losses_in_float32(make_network, batch, make_objective):
    objective, network = make_objective(), make_network().train()
    with torch.autocast("cpu", torch.bfloat16):
        logits, terms = objective(network, batch, 0)
    assert logits.dtype == torch.bfloat16 and all(value.dtype == torch.float32 for value in terms.values())
    terms["loss"].backward()
    exact = make_objective()(make_network(), batch, 0)[1]
    assert all(abs(terms[name] - exact[name]) < 0.05 * (1 + abs(exact[name])) for name in TERMS)


def test_levels_of_a_wrapped_network(make_network, batch):
    """A distributed wrapper hides the parts; no hook stays behind, not even after an error."""
    network = make_network().eval()
    found = all_levels(nn.DataParallel(network), batch["image"])
    maps = network.encoder(batch["image"])  # of a size that needs no padding
    penultimate = network.decoder(maps)
    expected = {"deep": maps[-1], "penultimate": penultimate, "logits": network.classifier(penultimate)}
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="expected an image"):
        all_levels(network, batch["image"][:, :2])
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_an_unknown_level_is_refused(make_contrast):
    with pytest.raises(ValueError, match=r"level must be one of \('penultimate', 'deep', 'logits'\), got 'input'"):
        make_contrast(level="input")


@pytest.mark.usefixtures("bfloat16_units")
@pytest.mark.parametrize("amp", [False, True])
def test_a_repeated_batch_is_learnt_with_all_terms(make_network, make_objective, amp, monkeypatch):
    """All parts of the objective in the trainer of the config."""
    monkeypatch.setattr(module, "MEASURE_EVERY", 1)
    label = torch.zeros(4, 1, 32, 32, dtype=torch.int64)
    label[:, 0, 6:24, 8:26], label[:, 0, 10:18, 12:20] = 1, 2
    image = (0.2 + 0.3 * label + 0.1 * torch.rand(4, 3, 32, 32)).clamp(0, 1)
    batch = {"image": image, "image_ram": 0.9 * image, "label": label, "domain": torch.tensor([0, 0, 1, 1])}
    network, seen, objective = make_network(), [], make_objective()
    parameters = [*network.parameters(), *objective.parameters()]
    trainer = ObjectiveTrainer(
        device=torch.device("cpu"), max_epochs=12, train_data_loader=[batch], network=network, loss_function=objective,
        optimizer=torch.optim.Adam(parameters, lr=0.02), amp=amp,
    )  # fmt: skip
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(loss_terms(engine.state.output)))
    trainer.run()
    assert all(set(terms) == {"loss", "seg", "seg_ram", "kd", "rec", "feat", "pull", "scatter"} for terms in seen)
    assert all(math.isfinite(value) for terms in seen for value in terms.values())
    assert seen[-1]["loss"] < 0.7 * seen[0]["loss"] and seen[-1]["seg"] < 0.6 * seen[0]["seg"]
    assert seen[-1]["rec"] < 0.8 * seen[0]["rec"]
    assert trainer.state.output["pred"].shape == (4, 2, 32, 32)
