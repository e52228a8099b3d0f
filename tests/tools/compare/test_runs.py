import json
import os

import pytest

from tools.compare.plan import make_runs
from tools.compare.runs import claim_folders, do_run, effective_config


@pytest.fixture
def run_of(bundles, tmp_path):
    """A run with some overrides."""

    def make(**overrides):
        point = {"seed": [1], "fold": [0], "novel_labels": [[1]]}
        configs = bundles / "toy_bundle" / "configs"
        return make_runs(configs, {"ours": {}}, point, {"dataset_dir": "d", **overrides}, tmp_path / "out")[0]

    return make


def test_effective_config_is_the_merged_one(run_of, bundles):
    config = effective_config(run_of(**{"score::gain": 0.5, "score::note": None, "section::depth": (1, 2)}))
    train = json.loads((bundles / "toy_bundle" / "configs" / "train.json").read_text())
    assert config == train | {"dataset_dir": "d", "seed": 1, "novel_labels": [1], "section": {"depth": [1, 2]},
                              "score": {"_target_": "toy_bundle.Score", "gain": 0.5, "note": None}}


def test_unknown_overrides_are_refused_at_any_depth(run_of):
    effective_config(run_of(**{"score::new_argument": 1}))  # the component's own business
    with pytest.raises(SystemExit) as caught:
        effective_config(run_of(**{"max_epoch": 1, "section::dept": 2, "sektion::depth": 3, "section::depth": 4}))
    assert caught.value.code.endswith("found max_epoch, section::dept, sektion::depth")


def test_results_of_another_configuration_are_refused(run_of):
    claim_folders([run_of(max_epochs=3)])
    run = run_of(max_epochs=4)
    claim_folders([run])  # nothing was made yet: nothing can mix
    assert json.loads((run.folder / "run.json").read_text())["max_epochs"] == 4
    run.cases.parent.mkdir()
    run.cases.touch()
    claim_folders([run])
    with pytest.raises(SystemExit) as caught:
        claim_folders([run_of(max_epochs=5, **{"score::gain": 1.0})])
    assert "--output, or delete these folders" in caught.value.code
    assert f"{run.folder}: max_epochs was 4, is now 5; score::gain was 0.0, is now 1.0" in caught.value.code
    assert json.loads((run.folder / "run.json").read_text())["max_epochs"] == 4


def test_a_checkpoint_of_another_configuration_is_refused(run_of):
    claim_folders([run_of(max_epochs=3)])
    checkpoint(run_of(), "x")
    with pytest.raises(SystemExit, match="max_epochs was 3, is now 1"):
        claim_folders([run_of()])


def checkpoint(run, text):
    run.checkpoint.parent.mkdir(parents=True)
    run.checkpoint.write_text(text)


@pytest.fixture
def done(screen):
    """Run it as a worker does."""

    def call(run):
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "run.json").write_text(json.dumps(effective_config(run)))
        with screen.direct():
            return do_run(run)

    return call


def test_a_run_leaves_its_result_and_its_output_in_its_folder(run_of, done, screen):
    run = run_of(**{"score::gain": 0.5, "score::note": None})
    assert done(run) is None
    assert "case_0,s,parts3,liver,0.9375,0.125" in run.cases.read_text()
    assert "scored with 0.5 None resume False" in (run.folder / "run.log").read_text()
    os.write(1, b"back")
    assert screen.readouterr().out == "back"


def test_the_configuration_is_the_one_claimed(run_of, bundles):
    run = run_of()
    claim_folders([run])
    file = bundles / "toy_bundle" / "configs" / "train.json"
    file.write_text(file.read_text().replace('"gain": 0.0', '"gain": 9.0'))
    assert do_run(run) is None and ",0.4375," in run.cases.read_text()


def test_a_failed_run_returns_the_cause_and_logs_the_traceback(run_of, done, bundles, screen):
    (bundles / "toy_bundle" / "orders.txt").write_text("fail ours 1 0 1")
    run = run_of()
    assert done(run) == "RuntimeError: loss is nan"
    assert "Traceback" in (run.folder / "run.log").read_text() and not run.cases.exists()
    assert screen.readouterr().err == ""


def test_a_run_that_writes_no_result_has_failed(run_of, done):
    assert "did not write it" in done(run_of(run=[]))


@pytest.mark.parametrize("content, resumed", [("fine", [True]), ("damaged", [True, False])])
def test_an_unfinished_run_is_resumed_or_started_again(run_of, done, content, resumed):
    run = run_of()
    checkpoint(run, content)
    assert done(run) is None and run.cases.exists()
    log = (run.folder / "run.log").read_text()
    assert [line.endswith("True") for line in log.splitlines() if line.startswith("scored")] == resumed
    assert not run.checkpoint.exists()


def test_an_error_that_is_not_the_checkpoints_leaves_it(run_of, done):
    run = run_of()
    checkpoint(run, "no data")
    assert done(run) == "ValueError: the data is gone"
    assert run.checkpoint.read_text() == "no data"
