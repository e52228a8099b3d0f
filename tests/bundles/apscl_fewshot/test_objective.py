import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from apscl_fewshot.decoders import ADNetDecoder, PANetDecoder
from apscl_fewshot.encoder import LightEncoder
from apscl_fewshot.latent import LatentBlock
from apscl_fewshot.objective import LabelBranch, Objective, SpatialSimilarity
from common.losses import GaussianKLLoss, SimilarityContrastiveLoss


@pytest.fixture
def batch():
    """Two episodes of three supports and a query, masks of different sizes."""
    masks = torch.zeros(2, 4, 1, 32, 32)
    for i in range(2):
        for j in range(4):
            masks[i, j, 0, 4 + i : 16 + 2 * j, 8 : 20 + j] = 1
    images = torch.randn(2, 4, 1, 32, 32) + 2 * masks
    return {"support": images[:, :3], "support_mask": masks[:, :3], "query": images[:, 3], "query_mask": masks[:, 3]}


def label_branch():
    return LabelBranch(LightEncoder(8, (8, 8)), LatentBlock(8, 4, (8, 8), pool=2))


def whole(**options):
    parts = {"label_branch": label_branch(), "kl": GaussianKLLoss(), "similarity": SpatialSimilarity(8, 8),
             "contrast": SimilarityContrastiveLoss()}  # fmt: skip
    return Objective(**{**parts, **options})


class Given(torch.nn.Module):
    """A network that returns given logits, features and latents."""

    def __init__(self, logits, features, latents=None, decoder=None) -> None:
        super().__init__()
        self.answer, self.decoder = (logits, features, latents), decoder

    def forward(self, support, support_mask, query):
        return self.answer


def cross_entropy(logits, masks, background=1.0):
    """Weighted mean over pixels, from probabilities in float64."""
    chance = logits.double().softmax(1).gather(1, masks.long())[:, 0]
    weight = torch.where(masks[:, 0] > 0, 1.0, background).double()
    return -(weight * chance.log()).sum() / weight.sum()


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.1, 0.07, 0.3)])
def test_the_loss_is_the_weighted_sum_of_its_terms(make_network, batch, weights):
    names = ("kl_weight", "scl_weight", "align_weight")
    _, terms = whole(**dict(zip(names, weights, strict=True)))(make_network().train(), batch, 0)
    assert set(terms) == {"loss", "ce", "kl", "scl", "align", "sigma", "active_latents"}
    parts = zip(weights, ("kl", "scl", "align"), strict=True)
    expected = terms["ce"] + sum(weight * terms[name] for weight, name in parts)
    torch.testing.assert_close(terms["loss"], expected)
    assert all(terms[name] > 0 for name in ("ce", "kl", "scl", "align"))
    assert all(value.ndim == 0 for value in terms.values())


def test_parts_that_are_null_leave_their_terms_out(make_network, batch):
    logits, terms = Objective()(make_network(prior=False).train(), batch, 0)
    assert set(terms) == {"loss", "ce"} and terms["loss"] == terms["ce"] and logits.shape == (2, 2, 32, 32)


def test_adnets_threshold_term_is_part_of_the_loss(make_network, batch):
    decoder = ADNetDecoder(threshold=-8.0)
    _, terms = Objective(ce_bg_weight=0.1)(make_network(decoder=decoder, prior=False).train(), batch, 0)
    torch.testing.assert_close(terms["loss"], terms["ce"] - 8 / 20)


@pytest.mark.parametrize("background", [1.0, 0.1])
def test_cross_entropy_of_the_queries(make_network, batch, background):
    logits, terms = Objective(ce_bg_weight=background)(make_network(prior=False).train(), batch, 0)
    expected = cross_entropy(logits.detach(), batch["query_mask"], background)
    torch.testing.assert_close(terms["ce"].double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_of_the_supports_plus_kl_of_the_queries(make_network, batch):
    network, objective = make_network().train(), whole()
    _, terms = objective(network, batch, 0)
    kinds = []
    for images, masks in ((batch["support"].flatten(0, 1), batch["support_mask"].flatten(0, 1)),
                          (batch["query"], batch["query_mask"])):  # fmt: skip
        pair = network.prior.prior(network.encoder(images)), objective.label_branch(masks)
        prior, posterior = (Normal(mean, torch.exp(logvar / 2)) for mean, logvar in pair)
        kinds.append(kl_divergence(prior, posterior).sum(1).mean())
    torch.testing.assert_close(terms["kl"], kinds[0] + kinds[1])


def test_signs_of_life_of_the_latent(batch):
    """Of four dimensions two differ from the posterior by more than 0.01 nats: 0.5, and 0.0288; and one by 0.005."""
    mean, logvar = torch.tensor([[1.0, 0.24, 0.1, 0.0]]).expand(8, 4), torch.zeros(8, 4)
    objective = whole()
    objective.label_branch.forward = lambda masks: (torch.zeros(8, 4), torch.zeros(8, 4))
    network = Given(torch.zeros(2, 2, 32, 32), torch.randn(8, 8, 8, 8), (mean, logvar + 2 * math.log(3)))
    _, terms = objective(network, batch, 0)
    assert terms["active_latents"] == 4 and terms["sigma"].item() == pytest.approx(3)
    network.answer = (*network.answer[:2], (mean, logvar))
    assert objective(network, batch, 0)[1]["active_latents"] == 2


def naive_contrast(objective, regions):
    """Eq. 3-8 over ``(label, positions (M, A))`` sets, one anchor at a time, in float64."""
    weights = [(p.weight.detach().double(), p.bias.detach().double()) for p in objective.similarity.projections]
    sets = [(label, [x.double() @ w.T + b for w, b in weights]) for label, x in regions]

    def towards(one, other):
        aligned = (one[0] @ other[1].T / math.sqrt(one[0].shape[1])).softmax(1) @ other[2]
        return F.cosine_similarity(one[2], aligned).mean().item()

    losses = []
    for i, (label, one) in enumerate(sets):
        share = {j: math.exp((towards(one, other) + towards(other, one)) / 0.1)
                 for j, (_, other) in enumerate(sets) if j != i}  # fmt: skip
        logs = [-math.log(share[j] / sum(share.values())) for j in share if sets[j][0] == label]
        losses += [sum(logs) / len(logs)] if logs else []
    return sum(losses) / len(losses)


def regions_of(features, masks):
    """Foreground and background positions of each image that has any, by the area the mask covers."""
    for image, mask in zip(features, masks, strict=True):
        inside = mask[0].unfold(0, 4, 4).unfold(1, 4, 4).mean((-1, -2)) > 0.5
        yield from ((label, image[:, r].T) for label, r in ((1, inside), (0, ~inside)) if r.any())


@pytest.mark.parametrize("empty", [False, True])
def test_contrast_of_regions_same_as_the_naive_loop(batch, empty):
    """With ``empty`` one support and one query have an organ below half a position: their foregrounds are left out."""
    if empty:
        batch["support_mask"][0, 1], batch["query_mask"][1] = 0, 0
        batch["support_mask"][0, 1, 0, 9, 9] = 1
    features, objective = torch.randn(8, 8, 8, 8), whole(label_branch=None, kl=None)
    _, terms = objective(Given(torch.zeros(2, 2, 32, 32), features), batch, 0)
    expected = []
    for i in range(2):
        own, masks = [*range(3 * i, 3 * i + 3), 6 + i], [*batch["support_mask"][i], batch["query_mask"][i]]
        expected.append(naive_contrast(objective, regions_of(features[own], masks)))
    assert terms["scl"].item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_contrast_falls_when_the_foregrounds_are_made_alike(batch):
    """And rises when a foreground is made like its background."""
    objective = whole(label_branch=None, kl=None)
    inside = F.avg_pool2d(torch.cat([batch["support_mask"].flatten(0, 1), batch["query_mask"]]), 4) > 0.5
    noise, colour = torch.randn(8, 8, 8, 8), torch.randn(2, 8, 1, 1) * 3
    values = []
    for foreground in (noise, colour[0] + 0.2 * noise, colour[1] + 0.2 * noise):
        features = torch.where(inside, foreground, colour[1] + 0.2 * noise)
        values.append(objective(Given(torch.zeros(2, 2, 32, 32), features), batch, 0)[1]["scl"].item())
    alike, background_like = values[1] < values[0] - 0.1, values[2] > values[1] + 0.1
    assert alike and background_like, values


def test_alignment_segments_each_support_from_the_query_as_it_was_predicted(batch):
    features, logits = torch.randn(8, 8, 8, 8), torch.randn(2, 2, 32, 32)
    _, terms = Objective(align_weight=1.0, ce_bg_weight=0.3)(Given(logits, features, decoder=PANetDecoder()), batch, 0)
    losses = []
    for i in range(2):
        predicted = (logits[i, 1] > logits[i, 0]).float()
        weights = F.avg_pool2d(predicted[None, None], 4)[0, 0]
        query = features[6 + i]
        prototypes = [(query * w).sum((1, 2)) / w.sum() for w in (1 - weights, weights)]
        supports = features[3 * i : 3 * i + 3]
        score = torch.stack([20 * F.cosine_similarity(supports, p[None, :, None, None]) for p in prototypes], dim=1)
        score = F.interpolate(score, size=(32, 32), mode="bilinear", align_corners=False)
        losses.append(cross_entropy(score, batch["support_mask"][i], 0.3))
    torch.testing.assert_close(terms["align"].double(), sum(losses) / 2, rtol=1e-4, atol=1e-5)


def test_a_distributed_wrapper_is_looked_through(make_network, batch):
    network = make_network(decoder=ADNetDecoder(), prior=False).train()
    wrapper = SimpleNamespace(module=network)
    wrapped = type("Wrapper", (SimpleNamespace,), {"__call__": lambda self, *args: network(*args)})(**vars(wrapper))
    objective = Objective(align_weight=0.5)
    assert objective(wrapped, batch, 0)[1]["loss"] == objective(network, batch, 0)[1]["loss"]


def test_every_part_gets_a_gradient(make_network, batch):
    objective = whole(similarity=SpatialSimilarity(8, 6), align_weight=0.1)
    network = make_network().train()
    objective(network, batch, 0)[1]["loss"].backward()
    parameters = dict(network.named_parameters()) | dict(objective.named_parameters())
    still = [name for name, p in parameters.items() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not still and all(torch.isfinite(p.grad).all() for p in parameters.values() if p.grad is not None)


def test_bad_options_are_refused():
    for missing in ("similarity", "contrast", "label_branch", "kl"):
        with pytest.raises(ValueError, match="similarity comes with contrast, and label_branch with kl"):
            whole(**{missing: None})
