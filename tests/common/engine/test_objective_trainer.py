import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch import nn

from common.engine import ObjectiveTrainer, loss_terms


class Square(nn.Module):
    """Mean squared error, and the mean prediction as a term for the log alone."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def forward(self, network, batch, step):
        self.steps.append(step)
        found = network(batch["image"])
        error = (found.float() - batch["label"]).square().mean()
        return found, {"loss": 2 * error, "error": error, "mean": found.detach().float().mean()}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return {"image": torch.randn(4, 3), "label": torch.randn(4, 1), "case": ["a", "b", "c", "d"]}


def make(batch, lr=0.1, max_epochs=1, **options):
    torch.manual_seed(1)
    network = nn.Linear(3, 1)
    optimizer, batches = torch.optim.SGD(network.parameters(), lr=lr), batch if isinstance(batch, list) else [batch]
    trainer = ObjectiveTrainer(device=torch.device("cpu"), max_epochs=max_epochs, train_data_loader=batches,
                               network=network, optimizer=optimizer, loss_function=Square(), **options)  # fmt: skip
    return trainer, network


def vector(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def test_a_step_follows_the_gradient_of_the_loss(batch):
    trainer, network = make(batch)
    before = vector(network)
    with torch.no_grad():  # by hand: d/dw of 2 mean (xw + b - y)^2
        residual = network(batch["image"]) - batch["label"]
        slope = torch.cat([4 * (residual * batch["image"]).mean(0), 4 * residual.mean(0)])
    trainer.run()
    torch.testing.assert_close(vector(network), before - 0.1 * slope)


def test_the_step_is_the_engines_own(batch):
    """Counted from 0, through the epochs, and from where a resumed run was."""
    trainer, _ = make([batch, batch, batch], max_epochs=2)
    trainer.run()
    assert trainer.loss_function.steps == [0, 1, 2, 3, 4, 5]
    trainer, _ = make([batch, batch, batch], max_epochs=2)
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "epoch", 1))
    trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "iteration", 3))
    trainer.run()
    assert trainer.loss_function.steps == [3, 4, 5]


def test_the_output_has_what_handlers_read(batch):
    trainer, _ = make(batch)
    trainer.run()
    output = trainer.state.output
    assert set(output) == {"image", "label", "pred", "loss", "error", "mean"}
    assert output["image"] is batch["image"] and output["pred"].shape == (4, 1)
    assert loss_terms(output).keys() == {"loss", "error", "mean"}
    assert loss_terms(output)["loss"] == pytest.approx(2 * loss_terms(output)["error"])


def test_other_keys_of_the_batch_may_be_image_and_label(batch):
    batch |= {"query": torch.zeros(1), "query_mask": torch.ones(1)}
    trainer, _ = make(batch, image_key="query", label_key="query_mask")
    trainer.run()
    assert trainer.state.output["image"] is batch["query"] and trainer.state.output["label"] is batch["query_mask"]


@pytest.mark.usefixtures("bfloat16_units")
@pytest.mark.parametrize(("amp", "kind"), [(False, torch.float32), (True, torch.bfloat16)])
def test_autocast_is_on_in_the_forward_pass_alone(batch, amp, kind):
    trainer, network = make(batch, amp=amp)
    trainer.run()
    assert trainer.state.output["pred"].dtype is kind and network.weight.dtype is torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_the_gradient_is_clipped_before_the_step(batch):
    moved = []
    for clip in (None, 0.01):
        trainer, network = make(batch, lr=1.0, grad_clip=clip)
        before = vector(network)
        trainer.run()
        moved.append((vector(network) - before).norm().item())
    assert moved[0] > 0.1 and moved[1] == pytest.approx(0.01, rel=1e-3)


def test_the_network_is_in_training_mode_and_old_gradients_do_not_count(batch):
    trainer, network = make(batch)
    network.eval()
    network.weight.grad = torch.full_like(network.weight, 100.0)
    before, seen = vector(network), []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.network.training))
    trainer.run()
    assert seen == [True] and (vector(network) - before).norm() < 5


def test_handlers_see_monais_events_in_their_order(batch):
    (trainer, _), seen = make(batch), []
    names = ("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED", "MODEL_COMPLETED")
    for name in names:
        trainer.add_event_handler(getattr(IterationEvents, name), lambda engine, name=name: seen.append(name))
    trainer.run()
    assert seen == list(names)


def test_the_gradients_of_each_group_are_clipped_by_themselves(batch):
    trainer, network = make(batch, lr=1.0, grad_clip=0.01)
    trainer.optimizer.param_groups[0]["params"] = [network.weight]
    trainer.optimizer.add_param_group({"params": [network.bias]})
    before = network.weight.detach().clone(), network.bias.detach().clone()
    trainer.run()
    for old, new in zip(before, (network.weight, network.bias), strict=True):
        assert (new - old).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_of_volumes_is_refused_on_a_cpu(batch):
    network = nn.Sequential(nn.Conv3d(1, 1, 1))
    optimizer = torch.optim.SGD(network.parameters())
    options = {"device": torch.device("cpu"), "max_epochs": 1, "train_data_loader": [batch], "network": network,
               "optimizer": optimizer, "loss_function": Square()}  # fmt: skip
    ObjectiveTrainer(**options)
    with pytest.raises(ValueError, match="amp: on a CPU, 3-D .* set it to false"):
        ObjectiveTrainer(amp=True, **options)
