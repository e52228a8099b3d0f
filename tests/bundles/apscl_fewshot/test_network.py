import pytest
import torch

from apscl_fewshot.decoders import ADNetDecoder, ALPNetDecoder, PANetDecoder
from apscl_fewshot.encoder import ResNetEncoder
from apscl_fewshot.position import body_frame


def episodes(batch=2, shots=1, size=(32, 32)):
    """Supports, masks and queries of ``batch`` episodes."""
    masks = torch.zeros(batch, shots, 1, *size)
    masks[..., size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 2] = 1
    return torch.randn(batch, shots, 1, *size), masks, torch.randn(batch, 1, *size)


@pytest.mark.parametrize("size", [(256, 256), (96, 80), (75, 100)])
def test_shapes(make_network, size):
    network = make_network(position=True)
    network.encoder = ResNetEncoder("resnet18", in_channels=1, feat_dim=8, width=8, norm="group")
    logits, features, (mean, logvar) = network(*episodes(2, 3, size))
    assert logits.shape == (2, 2, *size) and mean.shape == logvar.shape == (8, 4)
    assert features.shape == (8, 8, -(-size[0] // 8), -(-size[1] // 8))


def test_training_draws_the_latent_and_evaluation_takes_its_mean(make_network):
    network, episode = make_network(position=False).train(), episodes()
    assert (network(*episode)[0] - network(*episode)[0]).abs().max() > 1e-3
    network.eval()
    logits, features, latents = network(*episode)
    torch.testing.assert_close(network(*episode)[0], logits, rtol=0, atol=0)
    images = torch.cat([episode[0].flatten(0, 1), episode[2]])
    raw = network.encoder(images)
    mean, logvar = network.prior.prior(raw)
    torch.testing.assert_close(features, network.prior.enhancement(raw, mean))
    torch.testing.assert_close(latents, (mean, logvar))


def test_the_draw_has_the_priors_spread(make_network):
    """Log-variances of 0 and of -30, which is bounded to -10: sigma 1 and 0.0067."""
    network, episode, spread = make_network(position=False), episodes(), []
    last = network.prior.prior.layers[-1]
    for logvar in (0.0, -30.0):
        with torch.no_grad():
            last.weight[4:], last.bias[4:] = 0, logvar
        mean = network.eval()(*episode)[1]
        spread.append((torch.stack([network.train()(*episode)[1] for _ in range(50)]) - mean).std())
    assert 60 < spread[0] / spread[1] < 300


def test_without_a_prior_there_is_no_latent(make_network):
    logits, features, latents = make_network(prior=False)(*episodes())
    assert latents is None and logits.shape == (2, 2, 32, 32) and features.shape == (4, 8, 8, 8)


@pytest.mark.parametrize("shots", [1, 3])
def test_a_batch_is_its_episodes_one_by_one(make_network, shots):
    network = make_network().eval()
    support, masks, query = episodes(3, shots)
    masks[1] = masks[1].flip(-1)
    logits, features, _ = network(support, masks, query)
    for i in range(3):
        one, own, _ = network(support[i : i + 1], masks[i : i + 1], query[i : i + 1])
        torch.testing.assert_close(logits[i : i + 1], one, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(features[i * shots : (i + 1) * shots], own[:shots])
        torch.testing.assert_close(features[3 * shots + i], own[shots])  # queries come after all supports


@pytest.mark.parametrize("decoder", [None, PANetDecoder(), ALPNetDecoder(), ADNetDecoder()])
def test_embed_condition_decode_is_forward(make_network, decoder):
    network, (support, masks, query) = make_network(decoder=decoder).eval(), episodes(1, 2)
    features, frames = network.embed(support[0])
    torch.testing.assert_close(frames, body_frame(support[0]))
    code = network.condition(features, frames, masks[0])
    decoded = network.decode(*network.embed(query), code, [32, 32])
    torch.testing.assert_close(decoded, network(support, masks, query)[0], rtol=1e-5, atol=1e-5)


def test_the_query_is_segmented_by_its_support_and_not_by_the_others(make_network):
    network, (support, masks, query) = make_network().eval(), episodes(2)
    logits = network(support, masks, query)[0]
    support[1], masks[1] = torch.randn(1, 1, 32, 32), masks[1].flip(-2)
    again = network(support, masks, query)[0]
    torch.testing.assert_close(again[0], logits[0], rtol=1e-5, atol=1e-5)
    assert (again[1] - logits[1]).abs().max() > 0.1


def test_an_organ_of_another_grey_value_is_found(make_network, make_scan):
    """The whole forward pass, untrained: prototypes of the support's organ light up the query's."""
    network, scans = make_network(prior=False, position=False).eval(), [make_scan(case) for case in ("a", "b")]
    masks = [(scan["label"][4:5] == 3).float()[:, None] for scan in scans]
    logits = network(scans[0]["image"][None, 4:5], masks[0][None], scans[1]["image"][4:5])[0]
    size = masks[1].shape[2:]
    odds = torch.nn.functional.interpolate(logits[:, 1:] - logits[:, :1], size=size, mode="bilinear")[0, 0]
    inside = masks[1][0, 0].bool()
    assert odds[inside].mean() > odds[~inside].mean() + 1


def test_only_what_is_deployed_is_in_the_state_dict(make_network):
    keys = set(make_network().state_dict())
    assert {key.split(".")[0] for key in keys} == {"encoder", "decoder", "prior"}
    assert not any(word in key for key in keys for word in ("posterior", "label", "similarity", "bank", "blur"))
