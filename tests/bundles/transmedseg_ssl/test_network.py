"""The U-Net of slices against MONAI's, and the layer that losses look at."""

import pytest
import torch
from monai.networks.nets import BasicUNet

from common.description import describe, rebuild
from common.networks import forward_with_features
from transmedseg_ssl.network import UNet

FEATURES = (4, 8, 16, 32, 64, 4)


@pytest.mark.parametrize(("norm", "same"), [("batch", "batch"), ("instance", ("instance", {"affine": True}))])
def test_it_is_monais_network_with_a_norm_of_the_name(norm, same):
    torch.manual_seed(0)
    network, other = UNet(2, 2, 3, width=4, norm=norm), BasicUNet(2, 2, 3, FEATURES, norm=same)
    other.load_state_dict(network.state_dict())
    image = torch.randn(2, 2, 48, 32)
    torch.testing.assert_close(network(image), other(image), rtol=1e-4, atol=1e-5)


def test_the_classifier_is_linear_on_as_many_features_as_the_width():
    network = UNet(2, 1, 3, width=5)
    logits, features = forward_with_features(network, torch.randn(1, 1, 32, 32))
    assert features.shape == (1, 5, 32, 32) and torch.equal(network.classifier(features), logits)


def test_it_can_be_built_from_its_description():
    network = rebuild(describe(UNet(3, 2, 4, width=2, norm="batch", dropout=0.3))).eval()
    assert network(torch.randn(1, 2, 16, 16, 16)).shape == (1, 4, 16, 16, 16)
    assert describe(network) == {"class": "transmedseg_ssl.network.UNet", "spatial_dims": 3, "in_channels": 2,
                                 "out_channels": 4, "width": 2, "norm": "batch", "dropout": 0.3}  # fmt: skip


def test_unknown_options_are_refused():
    for options in ({"norm": "group"}, {"spatial_dims": 1}):
        with pytest.raises(ValueError, match="spatial_dims must be 2 or 3 and norm one of"):
            UNet(**options)
