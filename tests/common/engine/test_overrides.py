import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, run

from common.engine.overrides import refuse_unknown_keys

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIG = {
    "bundle_root": "here",
    "max_epochs": 2,
    "device": "cpu",
    "train": {
        "dataset": {"_target_": "builtins.dict", "data": [1]},
        "handlers": [{"_target_": "builtins.dict"}],
        "trainer": {"_target_": "builtins.dict", "max_epochs": "@max_epochs"},
        "lists": [{"a": 1}],
    },
    "validate": {"dataset": {"_target_": "builtins.dict", "data": [2]}},
    "layer": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    "trainer": {
        "_target_": "common.engine.ObjectiveTrainer",
        "_disabled_": True,
        "amp_kwargs": {},
        "network": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    },
    "run": [{"_target_": "common.engine.start", "folders": []}, "$@train::trainer"],
}


@pytest.fixture
def config(tmp_path):
    def write(name="train.json", content=CONFIG):
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    return write


def refused(error):
    """The text of our error below MONAI's."""
    return str(error.value.__cause__)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("max_epoch", "unknown override --max_epoch: did you mean --max_epochs?"),
        ("train::trainr", "unknown override --train::trainr: did you mean --train::trainer?"),
        ("train#trainr", "unknown override --train::trainr: did you mean --train::trainer?"),
        ("zzz", "unknown override --zzz: expected one of _meta_, bundle_root, device, layer, max_epochs, run, train"),
        ("run_name", "unknown override --run_name"),  # known to MONAI's tracking only
        ("layer::in_feature", "unknown override --layer::in_feature: did you mean --layer::in_features?"),
        ("layer::bais", "unknown override --layer::bais: did you mean --layer::bias?"),
        ("layer::self", "unknown override --layer::self: "),
        ("trainer::max_epoch", "did you mean --trainer::max_epochs?"),  # which the class it builds on takes
        ("trainer::grad_clp", "did you mean --trainer::grad_clip?"),
        ("trainer::network::bais", "did you mean --trainer::network::bias?"),
        ("train::lists::0::b", "unknown override --train::lists::0::b: expected one of a"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_one(config, key, text):
    with pytest.raises(RuntimeError) as error:
        run(config_file=config(), **{key: 1})
    assert text in refused(error) and "train.json; nothing was run" in refused(error)


def test_all_unknown_keys_are_named_at_once(config):
    with pytest.raises(RuntimeError) as error:
        run(config_file=config(), epocs=1, devise="cpu")
    assert "--epocs" in refused(error) and "did you mean --device?" in refused(error)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"max_epochs": 1, "device": "cuda", "workflow_type": "train", "init_id": "initialize"},
        {"train#trainer#max_epochs": 3, "train#dataset#data": [], "validate#dataset#data": [], "train#handlers": []},
        {"train::trainer::amp": True, "train::lists::0::a": 2, "train::lists::0": {"b": 3}},
        {"_meta_::version": "9", "+train::handlers": [{"_target_": "builtins.dict"}]},
        {"train": {"new": {}, "trainer": {"_target_": "builtins.dict"}}, "train::new": 1},
        {"layer::bias": False, "layer::_desc_": "a text", "trainer::amp": True, "trainer::network::bias": False},
        {"trainer::amp_kwargs::dtype": 1},
        {"layer": {"_target_": "builtins.dict"}, "layer::other": 1},
        {"layer::_target_": "builtins.dict", "layer::another": 1},
    ],
)
def test_known_keys_and_new_arguments_pass(config, overrides):
    run(config_file=config(), **overrides)


def test_an_overlay_of_the_user_may_add_keys(config):
    files = [config(), config("own.json", {"warmup": 3, "train::trainer::warmup": "@warmup"})]
    run(config_file=files, warmup=4)
    with pytest.raises(RuntimeError) as error:
        run(config_file=files, warmap=4)
    assert "did you mean --warmup?" in refused(error)


def test_a_key_twice_in_a_file_is_refused_with_all_others(config, tmp_path):
    """MONAI warns, and takes the last."""
    overlay, yaml = tmp_path / "mine.json", tmp_path / "mine.yaml"
    overlay.write_text('{"max_epochs": 3, "train::lists": [{"a": 1, "a": 2}], "max_epochs": 4}')
    yaml.write_text("device: cpu\ndevice: cuda\n")
    files = [config(), str(overlay), str(yaml)]
    with pytest.raises(RuntimeError) as error:
        run(config_file=files, max_epoch=1)
    assert refused(error).splitlines() == [
        f"{overlay}: expected each key once in an object, found `a` twice; remove one",
        f"{overlay}: expected each key once in an object, found `max_epochs` twice; remove one",
        f"{yaml}: expected each key once in an object, found `device` twice; remove one",
        "unknown override --max_epoch: did you mean --max_epochs?",
        f"Known are the keys of {files}; nothing was run."]
    with pytest.raises(RuntimeError) as error:
        run(config_file=[config(), str(yaml)])
    assert refused(error).endswith("Nothing was run.")
    with pytest.warns(UserWarning, match="Duplicate key"):
        ConfigWorkflow([config(), str(yaml)])  # where MONAI's run is not used


def test_arguments_file(config):
    run(args_file=config("args.json", {"config_file": config(), "max_epochs": 5}))
    with pytest.raises(RuntimeError) as error:
        run(args_file=config("args.json", {"config_file": config(), "max_epoch": 5}))
    assert "did you mean --max_epochs?" in refused(error)


def test_keys_of_tracking_settings_pass(config):
    settings = {"handlers_id": {}, "configs": {"experiment_name": "e", "save_execute_config": False}}
    run(config_file=config(), tracking=settings, experiment_name="mine", save_execute_config=False)
    with pytest.raises(RuntimeError) as error:
        run(config_file=config(), tracking=settings, experiment_nam="mine", save_execute_config=False)
    assert "did you mean --experiment_name?" in refused(error)


def test_does_nothing_outside_of_run(config):
    refuse_unknown_keys()
    workflow = ConfigWorkflow(config(), unknown=1)
    workflow.run()
    parser = ConfigParser(ConfigParser.load_config_file(config()))
    parser["unknown"] = 1
    parser.get_parsed_content("run")


def test_on_the_command_line_the_text_is_the_last_thing_shown(config):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config(), "--max_epocs", "1"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-2] == "unknown override --max_epocs: did you mean --max_epochs?"
