import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from common.engine import StopOnNan, load_checkpoint, refuse_bad_weights


def run_with(output, batch):
    engine = Engine(lambda engine, batch: output)
    StopOnNan().attach(engine)
    engine.run([batch])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", [dict, list, float, "many"])
def test_stops_whatever_the_form_of_the_output(bad, form):
    outputs = {
        dict: {"loss": torch.tensor(bad, requires_grad=True)},
        list: [{"loss": torch.tensor(1.0)}, {"loss": torch.tensor(bad, dtype=torch.bfloat16)}],
        float: bad,
        "many": {"loss": torch.tensor([0.0, bad])},
    }
    with pytest.raises(FloatingPointError, match="epoch 1, iteration 1, cases: a, b"):
        run_with(outputs[form], {"case": ["a", "b"]})


def test_cases_of_nested_streams_and_of_a_decollated_batch():
    with pytest.raises(FloatingPointError, match="cases: a, b, c"):
        run_with({"loss": float("nan")}, {"labelled": {"case": ["a"]}, "unlabelled": {"case": ["b", "c"]}})
    with pytest.raises(FloatingPointError, match="cases: a, b"):
        run_with({"loss": float("nan")}, [{"case": "a"}, {"case": "b"}])
    with pytest.raises(FloatingPointError, match="cases: a, b, c, d"):
        run_with({"loss": float("nan")}, {"case": ["a", "b"], "unlabeled_case": ["c", "d"]})


def test_without_case_names_the_files():
    image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": ["x/a.nii.gz", "x/b.nii.gz"]})
    with pytest.raises(FloatingPointError, match="cases: x/a.nii.gz, x/b.nii.gz"):
        run_with({"loss": float("nan")}, {"image": image})
    with pytest.raises(FloatingPointError, match="not named"):
        run_with({"loss": float("nan")}, torch.zeros(1))


def test_a_finite_loss_passes_and_no_loss_is_an_error():
    run_with({"loss": torch.tensor(1e30)}, {"case": ["a"]})
    with pytest.raises(KeyError, match="loss"):
        run_with({"pred": torch.zeros(1)}, {"case": ["a"]})


def test_the_last_good_checkpoint_stays(build, tmp_path):
    run = build(tmp_path, extra=[StopOnNan()])
    run.data.poisoned = {(3, 5): float("inf")}
    with pytest.raises(FloatingPointError, match=r"epoch 3, iteration (9|10|11|12), cases: .*case_5"):
        run.trainer.run()
    saved = load_checkpoint(run.checkpoint)
    assert saved["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in saved["objects"]["network"].values())


def test_weights():
    module = torch.nn.Linear(2, 2)
    refuse_bad_weights(module, "net")
    module.bias.data[1] = float("inf")
    with pytest.raises(FloatingPointError, match="1 parameters of net .*first: bias"):
        refuse_bad_weights(module, "net")
