import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread
from torch import nn

from sgcg_dg.features import between_domain_scatter, pixel_features, save_tsne
from sgcg_dg.objective import all_levels


class Mirror(nn.Module):
    """A network whose penultimate map is its image."""

    def __init__(self):
        super().__init__()
        self.decoder, self.classifier = nn.Module(), nn.Identity()
        self.decoder.forward = lambda maps: maps[-1]

    def forward(self, image):
        return self.classifier(self.decoder([image]))


def test_pixels_keep_their_labels_and_have_unit_length():
    """The angle of a feature tells its label and its pixel."""
    labels = torch.randint(0, 3, (2, 1, 6, 7), dtype=torch.uint8)
    angle = labels[:, 0] + torch.arange(84).view(2, 6, 7) / 100
    images = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    network = Mirror().train()
    features, found = pixel_features(network, images, labels, 10, np.random.default_rng(0))
    assert features.shape == (30, 2) and found.bincount().tolist() == [10, 10, 10] and not network.training
    torch.testing.assert_close(features.norm(dim=1), torch.ones(30))
    angles = torch.atan2(features[:, 1], features[:, 0]) % (2 * np.pi)
    places = 100 * (angles - found)
    assert (places.round() - places).abs().max() < 0.01 and places.min() > -0.5 and places.max() < 83.5
    assert len(set(places.round().tolist())) == 30  # no pixel twice
    every, labels_of_every = pixel_features(network, images, labels, 1000, np.random.default_rng(0))
    assert every.shape == (84, 2) and torch.equal(labels_of_every.bincount(), labels.flatten().bincount())


def test_features_of_a_network_are_taken_in_eval_mode(make_network):
    network, images = make_network().train(), torch.rand(3, 3, 16, 16)
    before = network.encoder.blocks[0][2].running_mean.clone()
    features, labels = pixel_features(network, images, torch.zeros(3, 1, 16, 16), 10**6, np.random.default_rng(0))
    penultimate = all_levels(network.eval(), images)["penultimate"]
    expected = nn.functional.normalize(penultimate, dim=1).movedim(1, -1).reshape(-1, 8)
    order = features.sum(1).argsort(), expected.sum(1).argsort()
    torch.testing.assert_close(features[order[0]].sum(1), expected[order[1]].sum(1))
    assert not features.requires_grad and torch.equal(network.encoder.blocks[0][2].running_mean, before)
    assert not labels.any()


def test_scatter_between_domains_by_hand():
    """Class 1: means -1 and 1 along one axis, variance 1/4 within on either axis. Class 0: the same everywhere."""
    square = torch.tensor([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]])
    domains = []
    for shift in (-1.0, 1.0):
        points = torch.cat([square + torch.tensor([shift, 0.0]), square])
        domains.append((points, torch.tensor([1] * 4 + [0] * 4)))
    # between: mean of |mu_g - mu|^2 = 1; trace of the pooled covariance: 1/4 + 1/4 + 1
    assert between_domain_scatter(domains, 2) == pytest.approx((1 / 1.5 + 0) / 2)
    # a class that one domain alone shows does not count
    domains[0] = (domains[0][0][:4], domains[0][1][:4])
    assert between_domain_scatter(domains, 2) == pytest.approx(1 / 1.5)


def test_a_picture_by_class_and_by_domain(tmp_path, monkeypatch):
    """At most so many points of each class and domain, the same for the same seed; a legend for all of them."""
    counts, draw = {}, Axes.scatter

    def scatter(self, x, y, **options):
        counts[options["label"]] = len(x)
        return draw(self, x, y, **options)

    monkeypatch.setattr(Axes, "scatter", scatter)
    features = {}
    for name, shift in (("one", 0.0), ("two", 3.0), ("three (target)", 6.0)):
        labels = torch.arange(2).repeat_interleave(10 if name == "two" else 30)
        features[name] = (torch.randn(len(labels), 4) + shift + 8 * labels[:, None], labels)
    for run in ("first", "second"):
        save_tsne(tmp_path / "new" / f"{run}.png", features, {1: "disc"}, per_class=12)
    one, two = (imread(tmp_path / "new" / f"{run}.png") for run in ("first", "second"))
    assert np.array_equal(one, two) and one.shape[1] > 2 * one.shape[0]
    assert counts == {"background": 34, "disc": 34, "one": 24, "two": 20, "three (target)": 24}
