import pytest
import torch
from ignite.engine import Events

from common.engine import BestModelSaver, load_checkpoint, read_model
from common.networks import VNet

NAN = float("nan")


def weights_by_epoch(run):
    seen = {}

    @run.trainer.on(Events.EPOCH_COMPLETED)
    def _(engine):
        seen[engine.state.epoch] = {key: value.clone() for key, value in run.network.state_dict().items()}

    return seen


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.6}, 2),
        ({1: 0.5, 2: 0.5, 3: 0.5}, 1),  # no improvement: the earlier one stays
        ({1: NAN, 2: 0.1, 3: 0.05}, 2),  # a NaN first would block all that follow
        ({1: 0.2, 2: NAN, 3: 0.3}, 3),
        ({1: NAN, 2: NAN, 3: NAN}, 3),  # no metric at all: the last weights
    ],
)
def test_the_flat_weights_of_the_best_epoch(build, tmp_path, metric, best):
    run = build(tmp_path, max_epochs=3, metric=metric)
    seen = weights_by_epoch(run)
    run.trainer.run()
    saved = load_checkpoint(run.model)
    assert list(saved) == list(run.network.state_dict())
    torch.testing.assert_close(saved, dict(seen[best]), rtol=0, atol=0)
    assert not torch.equal(seen[1]["0.weight"], seen[2]["0.weight"])
    validated = any(value == value for value in metric.values())
    assert read_model(run.model)["selection"] == ("validation" if validated else "last")


@pytest.mark.parametrize("options", [{"metric": {}}, {"interval": 9}])
def test_without_any_validation_the_last_weights(build, tmp_path, options, caplog):
    run = build(tmp_path, max_epochs=2, **options)
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(run.model), dict(run.network.state_dict()), rtol=0, atol=0)
    assert "no validation metric" in caplog.text and read_model(run.model)["selection"] == "last"


def test_without_an_evaluator_the_last_weights(build, model, tmp_path):
    run = build(tmp_path, max_epochs=1)
    BestModelSaver(tmp_path / "last.pt", run.network, model).attach(run.trainer)
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(tmp_path / "last.pt"), dict(run.network.state_dict()), rtol=0, atol=0)


def test_a_new_run_replaces_the_model_of_an_older_one(build, tmp_path):
    build(tmp_path, max_epochs=1, metric={1: 0.99}).trainer.run()
    before = (tmp_path / "model.pt").read_bytes()
    run = build(tmp_path, max_epochs=2, metric={1: 0.1, 2: 0.2})
    run.trainer.run()
    assert run.model.read_bytes() != before


def test_lower_is_better_when_the_evaluator_says_so(build, tmp_path):
    run = build(tmp_path, max_epochs=3, metric={1: 0.5, 2: 0.1, 3: 0.3})
    run.evaluator.metric_cmp_fn = lambda now, best: now < best
    seen = weights_by_epoch(run)
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(run.model), dict(seen[2]), rtol=0, atol=0)


def test_a_worse_second_validation_of_the_same_epoch_is_not_saved(build, tmp_path):
    metric = {1: 0.5}
    run = build(tmp_path, max_epochs=1, metric=metric)
    run.trainer.run()
    before = run.model.read_bytes()
    run.network[0].weight.data.zero_()
    metric[1] = 0.4
    run.evaluator.run(1)
    assert run.model.read_bytes() == before
    metric[1] = 0.6
    run.evaluator.run(1)
    assert run.model.read_bytes() != before


def test_without_validation_the_model_of_an_older_run_is_replaced_too(build, tmp_path):
    build(tmp_path, max_epochs=1).trainer.run()
    run = build(tmp_path, max_epochs=2, metric={})
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(run.model), dict(run.network.state_dict()), rtol=0, atol=0)


def test_a_resumed_run_whose_best_model_is_gone_leaves_a_model(build, tmp_path, caplog):
    build(tmp_path, max_epochs=2).trainer.run()
    (tmp_path / "model.pt").unlink()
    run = build(tmp_path, max_epochs=3, resume=True)
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(run.model), dict(run.network.state_dict()), rtol=0, atol=0)
    assert "no best model at" in caplog.text


def test_a_resumed_run_that_validates_at_last_does_not_keep_what_no_validation_chose(build, model, tmp_path, caplog):
    first = build(tmp_path, max_epochs=2)
    first.trainer.run()
    last = BestModelSaver(first.model, first.network, model, first.evaluator, selection="last")
    last.attach(first.trainer)
    first.trainer.fire_event(Events.COMPLETED)
    assert read_model(first.model)["selection"] == "last"
    run = build(tmp_path, max_epochs=3, resume=True, metric={3: 0.0})  # below the best of before
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(run.model), dict(run.network.state_dict()), rtol=0, atol=0)
    assert read_model(run.model)["selection"] == "last" and "no best model at" in caplog.text


# --- selection: last ---


@pytest.fixture
def keep_last(model):
    """A saver in the place of the run's own."""

    def keep(run, folder):
        saver = BestModelSaver(folder / "last.pt", run.network, model, run.evaluator, selection="last")
        saver.attach(run.trainer)
        return saver.path

    return keep


@pytest.mark.parametrize("metric", [{1: 0.9, 2: 0.5, 3: 0.1}, {1: NAN, 2: 0.5, 3: NAN}, {}])
def test_last_weights_whatever_validation_says(build, keep_last, tmp_path, metric, caplog):
    run = build(tmp_path, max_epochs=3, metric=metric)
    path, seen = keep_last(run, tmp_path), weights_by_epoch(run)
    caplog.clear()
    there = []
    run.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: there.append(path.exists()))
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(path), dict(seen[3]), rtol=0, atol=0)
    assert there == [False, False, False]  # nothing that validation may have chosen
    assert read_model(path)["selection"] == "last"
    assert str(path) not in caplog.text  # as asked for: nothing to warn of


def test_last_replaces_the_model_of_an_older_run(build, keep_last, tmp_path):
    run = build(tmp_path, max_epochs=1, metric={1: 0.1})
    (tmp_path / "last.pt").write_bytes(b"another run")
    run.evaluator.state.best_metric_epoch = 1
    path = keep_last(run, tmp_path)
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(path), dict(run.network.state_dict()), rtol=0, atol=0)


def test_a_resumed_run_with_nothing_left_leaves_the_last_weights(build, keep_last, tmp_path):
    first = build(tmp_path, max_epochs=2)
    first.trainer.run()
    run = build(tmp_path, max_epochs=2, resume=True)
    path = keep_last(run, tmp_path)
    run.trainer.run()
    torch.testing.assert_close(load_checkpoint(path), dict(first.network.state_dict()), rtol=0, atol=0)


def test_another_selection_is_refused(tmp_path):
    with pytest.raises(ValueError, match="selection must be one of last, validation, got 'test'"):
        BestModelSaver(tmp_path / "model.pt", torch.nn.Linear(1, 1), {}, selection="test")


# --- the record beside the model ---


def test_what_the_model_is_lies_beside_it(build, model, tmp_path):
    run = build(tmp_path, max_epochs=1)
    network = VNet(2, width=2)
    model |= {"network": network, "patch_size": (8, 8), "cleanup": []}
    BestModelSaver(tmp_path / "other.pt", run.network, model).attach(run.trainer)
    network.train()
    run.trainer.run()
    record = read_model(tmp_path / "other.pt")
    assert (record["labels"], record["patch_size"], record["cleanup"]) == ({1: "wall"}, [8, 8], [])
    assert record["network"]["class"] == "common.networks.vnet.VNet" and record["network"]["width"] == 2
    assert read_model(run.model)["network"] == "two layers" and read_model(run.model)["selection"] == "validation"


def test_a_network_that_no_file_can_describe_is_refused_before_the_training(model, tmp_path):
    network = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="found torch.nn.modules.linear.Linear, which a model file cannot hold"):
        BestModelSaver(tmp_path / "model.pt", network, model | {"network": network})
