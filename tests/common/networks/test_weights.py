import pytest
import torch
from ignite.engine import Engine
from torch import nn

from common.engine import save_atomic
from common.networks.weights import WeightsLoader, load_weights


def network(width=3, *more):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), *more)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_the_weights_arrive(tmp_path, wrap):
    saved, loaded, handled = network(), network(), network()
    save_atomic(saved.state_dict(), tmp_path / "model.pt")
    load_weights(wrap(loaded), tmp_path / "model.pt")
    engine = Engine(lambda engine, batch: None)
    WeightsLoader(wrap(handled), tmp_path / "model.pt").attach(engine)
    engine.run([0])
    for net in (loaded, handled):
        torch.testing.assert_close(net.state_dict(), saved.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(("content", "count", "first"), [
    (network(4).state_dict(), 2, "0.weight"),  # of another shape
    (network(3, nn.Linear(3, 1)).state_dict(), 2, "2.weight"),  # unknown
    ({"0.weight": torch.zeros(3, 2)}, 1, "0.bias"),  # missing
    ({"epoch": 3, "objects": {"network": network().state_dict()}}, 4, "0.weight"),  # the full state of a run
    ([1.0], 2, "0.weight"),
])  # fmt: skip
def test_weights_of_another_network_are_refused(tmp_path, content, count, first):
    save_atomic(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="volume_inference.json over inference.json") as error:
        load_weights(network(), tmp_path / "model.pt")
    found = "expected the weights of the configured Sequential, found those of another network"
    assert f"{found} ({count} tensors are missing, unknown or of another shape, such as {first})" in str(error.value)


def test_no_model_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.pt: no such checkpoint. Expected a file written by an earlier"):
        load_weights(network(), tmp_path / "model.pt")
