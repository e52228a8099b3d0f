"""The weights of a model file into a network: what arrives, what is refused, and what is said."""

import logging

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from torch import nn

from common.data import Preprocessing
from common.engine import WeightsLoader, load_model, save_atomic, write_model_record
from common.engine.readable_errors import _report
from common.networks import VNet


def network(**options):
    return VNet(**{"spatial_dims": 2, "out_channels": 2, "width": 2} | options)


def section(network, **options):
    return {"network": network, "preprocessing": Preprocessing(), "labels": {1: "wall"}} | options


@pytest.fixture
def saved(tmp_path):
    """A model and its file."""
    net = network()
    save_atomic(net.state_dict(), tmp_path / "model.pt")
    write_model_record(tmp_path / "model.pt", section(net), "last")
    return net, tmp_path / "model.pt"


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_the_weights_arrive(saved, wrap):
    loaded, handled = network(), network()
    record = load_model(wrap(loaded), saved[1], section(loaded))
    assert record["labels"] == {1: "wall"} and record["selection"] == "last"
    engine = Engine(lambda engine, batch: None)
    WeightsLoader(wrap(handled), saved[1], section(handled)).attach(engine)
    assert not torch.equal(handled.classifier.weight, loaded.classifier.weight)
    engine.run([0])
    for net in (loaded, handled):
        torch.testing.assert_close(net.state_dict(), saved[0].state_dict(), rtol=0, atol=0)


def test_what_a_run_uses_otherwise_is_one_line_of_the_log(saved, caplog):
    caplog.set_level(logging.INFO, logger="common.engine.weights")
    load_model(network(), saved[1], section(network()))
    assert [record.levelname for record in caplog.records] == ["INFO"] and str(saved[1]) in caplog.text
    caplog.clear()
    load_model(network(dropout=0.5), saved[1], section(network(dropout=0.5), labels={1: "cavity"}, patch_size=[8]))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert caplog.records[1].message == (
        f"not as in {saved[1].with_suffix('.json')}: network.dropout 0.5 (there 0.0); "
        'labels.1 "cavity" (there "wall"); patch_size [8] (there null)')


@pytest.mark.parametrize(("options", "changed"), [
    ({"width": 4}, r"network.width 4 \(there 2\)"),
    ({"out_channels": 3, "norm": "instance"},
     r'network.out_channels 3 \(there 2\); network.norm "instance" \(there "batch"'),
])  # fmt: skip
def test_the_setting_that_makes_another_network_is_named(saved, options, changed):
    net = network(**options)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    text = rf"model.pt: expected the weights of the configured VNet, found .*; this run differs from .*json: {changed}"
    with pytest.raises(ValueError, match=text) as error:
        load_model(net, saved[1], section(net))
    assert str(error.value).endswith("Leave out the overrides of the network, or copy model.pt and model.json of one "
                                     "training.")  # fmt: skip
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


FULL = {"epoch": 3, "objects": {"network": {}}}  # the full state of a run


@pytest.mark.parametrize(("content", "count", "first"), [
    (lambda state: state | {"classifier.weight": torch.zeros(3, 2, 1, 1)}, 1, "classifier.weight"),
    (lambda state: state | {"head.bias": torch.zeros(2)}, 1, "head.bias"),
    (lambda state: {key: value for key, value in state.items() if key != "classifier.bias"}, 1, "classifier.bias"),
    (lambda state: FULL, len(network().state_dict()) + 2, "downs.1.0.weight"),
    (lambda state: [1.0], len(network().state_dict()), "downs.1.0.weight"),
])  # fmt: skip
def test_weights_of_another_model_are_refused(saved, content, count, first):
    net, file = saved
    save_atomic(content(dict(net.state_dict())), file)
    with pytest.raises(ValueError) as error:
        load_model(network(), file, section(net))
    wrong = f"({count} tensors are missing, unknown or of another shape, such as {first})"
    cause = f"{file.with_suffix('.json')} is of another model"
    assert f"found those of another network {wrong}; {cause}. Leave out the overrides" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["classifier.bias", "downs.1.0.weight"])
def test_weights_that_are_not_finite_are_refused(saved, key, value):
    """Their logits are NaN, whose largest is the first: a map of nothing but background."""
    net, file = saved
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state[key].view(-1)[-1] = value
    save_atomic(state, file)
    fresh = network()
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_model(fresh, file, section(net))
    assert str(error.value) == (
        f"{file}: expected finite weights, found NaN or Inf in 1 of {len(state)} tensors, such as {key}; use the model "
        "of another training, or train again with a lower learning_rate.")
    torch.testing.assert_close(fresh.state_dict(), before, rtol=0, atol=0)


def test_no_model_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.pt: expected a trained model, found no such file; train first"):
        load_model(network(), tmp_path / "model.pt", section(network()))


def test_the_record_without_its_weights(saved):
    saved[1].unlink()
    with pytest.raises(FileNotFoundError, match="model.pt: no such checkpoint. Expected a file written by an earlier"):
        load_model(network(), saved[1], section(network()))


@pytest.mark.parametrize("content", [b"garbage" * 50, b"", b"\x80\x02cos\nsystem\n(S'true'\ntR.", "code", "half"])
def test_damaged_weights_are_refused_in_our_words_alone(saved, content, capsys):
    """torch's own text advises to load again with ``weights_only=False``, which runs what is in the file."""
    net, file = saved
    if content == "code":
        torch.save({"run": print}, file)
    else:
        file.write_bytes(file.read_bytes()[:5000] if content == "half" else content)
    with pytest.raises(ValueError) as error:
        load_model(net, file, section(net))
    _report(type(error.value), error.value, error.value.__traceback__)
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert last.startswith(f"ValueError: {file} ({file.stat().st_size} bytes): not a readable checkpoint")
    assert last.endswith("Copy it again, pass another, or delete it.")
    assert "weights_only=False" not in shown and "set to `False`" not in shown and "trust" not in shown


def test_logits_that_are_not_finite_end_an_inference_before_a_map_is_written(saved):
    class Overflow(nn.Module):
        def forward(self, image):
            return image * float("inf")

    written = []
    image = MetaTensor(torch.ones(1, 1, 4, 4), meta={"filename_or_obj": ["scan_7.nii.gz"]})
    evaluator = SupervisedEvaluator(
        torch.device("cpu"), [{"image": image}], Overflow(), inferer=SimpleInferer(), decollate=False,
        postprocessing=written.append,
        val_handlers=[WeightsLoader(network(), saved[1], section(network()))],
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="scan_7.nii.gz: expected finite logits .* Switch amp off"):
        evaluator.run()
    assert not written
