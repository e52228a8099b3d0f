import csv
import itertools
import json
import math

import pytest

from tools import bundles as folders
from tools.compare import command as module
from tools.compare.command import compare
from tools.compare.runs import do_run
from tools.compare.workers import execute


@pytest.fixture
def command(bundles, data, tmp_path, monkeypatch, screen):
    """The command on the toy bundle; ``here`` runs it without processes."""
    monkeypatch.setattr(folders, "BUNDLES", bundles)

    def call(here=True, **options):
        one_by_one = lambda runs, processes: ((run, do_run(run)) for run in runs)  # noqa: E731
        monkeypatch.setattr(module, "execute", one_by_one if here else execute)
        with screen.direct():
            compare("toy_bundle", str(data), **{"output": str(tmp_path / "out")} | options)

    return call


def calls(out):
    """How often each run was started."""
    found = sorted((out / "runs").glob("*/*/calls"))
    return {str(file.parent.relative_to(out / "runs")): len(file.read_text().splitlines()) for file in found}


def test_tables_of_a_grid(command, tmp_path, screen):
    command(group="pair")
    out = screen.readouterr().out
    lines = out.splitlines()
    # liver of fold 0 and 1: 25 + 25 + 6.25 and 3.125 less, so 54.7 of seed 0 and 12.5 more of seed 1
    assert lines[2].split("|")[1:-1] == [" ours       ", " 60.9 ± 8.8 ", " 54.7 ± 8.8 ", " 57.8 ± 8.8 "]
    assert lines[3].split("|")[1:-1] == [" theirs     ", " 35.9 ± 8.8 ", " 29.7 ± 8.8 ", " 32.8 ± 8.8 "]
    assert lines[4].split("|")[1:-1] == [" copy       ", " 12.5       ", " 12.5       ", " 12.5       "]
    assert "| theirs     | +25.0      | +25.0 to +25.0 | 0.500 | 2 |" in lines
    assert "| ours    | 30.5 ± 4.4 | 27.3 ± 4.4 | 28.9 ± 4.4 |" in lines
    assert "16 runs: seed 0, 1; fold 0, 1; novel_labels [1], [2]" in lines and "Not complete" not in out
    assert (tmp_path / "out" / "table.md").read_text().splitlines()[:5] == lines[:5]
    assert (tmp_path / "out" / "table.png").stat().st_size > 1000
    with open(tmp_path / "out" / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 and list(rows[0])[:5] == ["variant", "seed", "fold", "novel_labels", "case"]
    places = {(row["variant"], row["seed"], row["fold"], row["novel_labels"]) for row in rows}
    assert places == set(itertools.product(("ours", "theirs"), "01", "01", "12"))
    assert {line["dice"] for line in rows if line["protocol"] == "parts3"} >= {"0.5625", "0.25", "0.65625"}


def test_the_footer_lists_the_overrides(command, bundles, screen):
    """Text and short lists too, not lists of transforms."""
    file = bundles / "toy_bundle" / "configs" / "compare.json"
    config = json.loads(file.read_text())
    config["overrides"] |= {"target": "A", "section": [1, 2], "score::note": "plain " * 20}
    file.write_text(json.dumps(config))
    command(variants="theirs", axes={"seeds": 0, "folds": 0, "labels": 1})
    assert "Overrides: max_epochs 3, target A, section [1, 2]. torch" in screen.readouterr().out


def test_what_the_summaries_say_of_the_scores_is_said_once(command, tmp_path, screen):
    options = {"variants": "ours,theirs", "axes": {"seeds": "0,1", "folds": 0, "labels": 1}}
    command(**options)
    for file in (tmp_path / "out" / "runs").glob("*/*/eval/cases.csv"):
        file.with_name("summary.md").write_text("| a table |\n\nScored: `test`. Checkpoint: the last, the student.\n")
    command(**options)
    text = (tmp_path / "out" / "table.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("Scored")] == [
        "Scored: `test`. Checkpoint: the last, the student."]
    for file in (tmp_path / "out" / "runs").glob("*/ours/eval/summary.md"):
        file.write_text("Scored: `test`. Checkpoint: the last, the teacher.\n")
    command(**options)
    text = (tmp_path / "out" / "table.md").read_text()
    assert [line for line in text.splitlines() if "Scored" in line] == [
        "ours: Scored: `test`. Checkpoint: the last, the teacher.",
        "theirs: Scored: `test`. Checkpoint: the last, the student."]


def test_what_every_variant_sets_is_no_override_of_all(command, bundles, screen):
    file = bundles / "toy_bundle" / "configs" / "compare.json"
    config = json.loads(file.read_text())
    config["equal_time"] = {"ours": {"max_epochs": 5}, "theirs": {"max_epochs": 7}}
    config["overrides"] |= {"target": "A"}
    file.write_text(json.dumps(config))
    options = {"group": "equal_time", "axes": {"seeds": 0, "folds": 0, "labels": 1}}
    with pytest.raises(SystemExit, match="^max_epochs: each variant of `equal_time` has its own; change them"):
        command(**options, overrides={"max_epochs": 2})
    command(**options)
    assert "Overrides: target A. torch" in screen.readouterr().out


def test_minutes_are_those_of_runs_that_were_not_interrupted(command, tmp_path, monkeypatch):
    options = {"variants": "ours,theirs", "axes": {"seeds": "0,1", "folds": 0, "labels": 1}}
    runs = tmp_path / "out" / "runs"
    begun = runs / "seed_1_fold_0_novel_labels_1" / "theirs"
    (begun / "models").mkdir(parents=True)
    (begun / "models" / "checkpoint.pt").write_text("half")
    (begun / "seconds").write_text("6000")  # of an earlier result, which somebody has deleted
    ticks = itertools.count(step=90)
    monkeypatch.setattr("tools.compare.runs.monotonic", lambda: next(ticks))
    command(**options)
    found = {str(file.parent.relative_to(runs)): file.read_text() for file in runs.glob("*/*/seconds")}
    assert found == dict.fromkeys(["seed_0_fold_0_novel_labels_1/ours", "seed_0_fold_0_novel_labels_1/theirs",
                                   "seed_1_fold_0_novel_labels_1/ours"], "90\n")  # fmt: skip

    def line():
        command(**options)
        text = (tmp_path / "out" / "table.md").read_text()
        return [line.partition(": ")[2] for line in text.splitlines() if line.startswith("Minutes of a run")]

    (runs / "seed_0_fold_0_novel_labels_1" / "ours" / "seconds").write_text("210")
    assert line() == ["ours 2.5, theirs 1.5 (1 of 2 runs)."]
    (runs / "seed_0_fold_0_novel_labels_1" / "theirs" / "seconds").unlink()
    assert line() == ["ours 2.5, theirs not known."]


def test_a_finished_comparison_runs_nothing_again(command, tmp_path, screen):
    options = {"variants": "ours,theirs", "axes": {"seeds": 0, "folds": (0,), "labels": "1,2"}}
    command(**options)
    first = screen.readouterr().out
    command(**options)
    assert screen.readouterr().out == first
    assert len(calls(tmp_path / "out")) == 4 and set(calls(tmp_path / "out").values()) == {1}
    command(**options | {"axes": {"seeds": "0,1", "folds": 0, "labels": "1,2"}})  # a larger grid keeps what it has
    assert len(calls(tmp_path / "out")) == 8 and set(calls(tmp_path / "out").values()) == {1}


def test_a_failure_is_listed_and_its_grid_point_left_out(command, bundles, tmp_path, screen):
    orders = bundles / "toy_bundle" / "orders.txt"
    orders.write_text("fail theirs 1 0 2")
    with pytest.raises(SystemExit) as caught:
        command(group="pair")
    assert caught.value.code.startswith("1 of 16 runs failed")
    assert "theirs, seed 1, fold 0, novel_labels 2: RuntimeError: loss is nan" in caught.value.code
    log = tmp_path / "out" / "runs" / "seed_1_fold_0_novel_labels_2" / "theirs" / "run.log"
    assert str(log) in caught.value.code and log.is_file()
    out = screen.readouterr().out
    assert "Not complete: 7 of 8 grid points (seed, fold, novel_labels) have all variants" in out
    # spleen without seed 1 of fold 0: 50, 46.9 and 59.4 of ours; seeds' means 48.4 and 59.4
    assert f"52.1 ± {100 * (0.59375 - 0.484375) / math.sqrt(2):.1f}" in out.splitlines()[2]
    orders.unlink()
    command(group="pair")
    assert "Not complete" not in screen.readouterr().out
    assert {name: n for name, n in calls(tmp_path / "out").items() if n > 1} == {
        "seed_1_fold_0_novel_labels_2/theirs": 2}


def test_nothing_complete_gives_no_table(command, bundles, tmp_path, screen):
    (bundles / "toy_bundle" / "orders.txt").write_text("fail theirs 0 0 1")
    with pytest.raises(SystemExit, match="1 of 2 runs failed"):
        command(group="pair", axes={"seeds": 0, "folds": 0, "labels": 1})
    assert "no table: 0 of 1 grid points" in screen.readouterr().out and not (tmp_path / "out" / "table.md").exists()


def test_overlay_file_and_default_folder(command, bundles, screen):
    command(group="pair", output=None, axes={"seeds": 0, "folds": 0})
    assert (bundles / "toy_bundle" / "eval" / "compare" / "three_pair" / "table.md").is_file()
    command(variants=["overlay", "theirs"], output=None, axes={"seeds": 0, "folds": 0})
    assert (bundles / "toy_bundle" / "eval" / "compare" / "three" / "table.md").is_file()
    assert "| overlay    | 81.2  | 75.0   | 78.1 |" in screen.readouterr().out  # a gain of 50 comes from its file


def test_a_key_twice_in_an_overlay_is_refused_before_anything_is_written(command, bundles, tmp_path):
    other = bundles / "toy_bundle" / "configs" / "other.json"
    other.write_text('{"seed": 1, "seed": 2}')
    with pytest.raises(SystemExit, match="other.json: expected each key once in an object, found `seed` twice"):
        command(axes={"seeds": 0, "folds": 0, "labels": 1})
    assert not (tmp_path / "out").exists()


def test_the_last_of_several_overlays_goes_before_the_others(command, bundles, screen):
    configs = bundles / "toy_bundle" / "configs"
    score = json.loads((configs / "other.json").read_text())["score"]
    (configs / "third.json").write_text(json.dumps({"score": score | {"gain": 0.125}, "max_epochs": 9}))
    files = {"one": "other.json", "two": ["third.json", "other.json"], "three": ["other.json", "third.json"]}
    settings = json.loads((configs / "compare.json").read_text())
    settings["variants"] = {name: {"config": config} for name, config in files.items()}
    (configs / "compare.json").write_text(json.dumps(settings))
    command(axes={"seeds": 0, "folds": 0, "labels": 1})
    lines = screen.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["81.2", "81.2", "43.8"]  # gains of 50, 50 and 12.5


def test_changed_overrides_are_refused_before_anything_runs(command, tmp_path):
    command(group="pair", axes={"seeds": 0, "folds": 0})
    with pytest.raises(SystemExit, match="max_epochs was 3, is now 4"):
        command(group="pair", axes={"seeds": "0,1", "folds": 0}, overrides={"max_epochs": 4})
    assert len(calls(tmp_path / "out")) == 4


@pytest.mark.parametrize("options, message", [
    ({"variants": "ours,them"}, "expected some of ours, theirs, overlay, found them"),
    ({"axes": {"seeds": "a"}}, "--seeds: expected numbers such as 0,1,2, found a"),
    ({"overrides": {"sead": 1}}, "found sead"),
    ({"overrides": {"seed": 1}}, "the comparison itself sets seed"),
    ({"group": "fixed"}, "the comparison itself sets fold"),
])  # fmt: skip
def test_wrong_options_are_refused_before_anything_is_written(command, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        command(**options)
    assert not (tmp_path / "out").exists()


def test_bad_data_is_reported_once_and_nothing_runs(command, data, tmp_path):
    for name in ("label_0.nii.gz", "case_2.nii.gz"):
        (data / name).write_bytes(b"damaged")
    with pytest.raises(SystemExit) as caught:
        command()
    assert "label_0.nii.gz" in caught.value.code and "case_2.nii.gz" in caught.value.code
    assert not (tmp_path / "out").exists()


def test_all_folds_that_the_training_makes_are_run(command, bundles, data, tmp_path):
    content = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**content, "folds": []}))
    (bundles / "toy_bundle" / "toy_bundle" / "data.py").write_text("FOLDS = 2")
    command(variants="theirs", axes={"seeds": 0, "labels": 1})
    assert list(calls(tmp_path / "out")) == [f"seed_0_fold_{fold}_novel_labels_1/theirs" for fold in (0, 1)]


def test_no_label_is_opened_that_the_runs_do_without(command, data, tmp_path):
    (data / "label_2.nii.gz").write_bytes(b"damaged")
    command(overrides={"labelled": 2})
    assert (tmp_path / "out" / "table.md").is_file()


def test_an_unknown_bundle_names_those_there_are(command):
    with pytest.raises(SystemExit, match="expected one of toy_bundle, found toy"):
        compare("toy", "data")


def test_missing_columns_are_named(command, bundles, tmp_path):
    other = {"measure": "iou", "columns": ["view", "structure"]}
    change_tables(bundles, other, {"measure": "dice", "columns": ["structure"]})
    with pytest.raises(SystemExit) as caught:
        command(group="pair", axes={"seeds": 0, "folds": 0})
    first = tmp_path / "out" / "runs" / "seed_0_fold_0_novel_labels_1" / "ours" / "eval" / "cases.csv"
    assert caught.value.code == (f"{first}: expected the columns case, copy_dice, dice, iou, structure, view, "
                                 "found no iou, view; correct compare.json")


def test_other_tables_need_no_run_again(command, bundles, tmp_path, screen):
    command(group="pair", axes={"seeds": 0})
    first = screen.readouterr().out
    change_tables(bundles, {"measure": "asd_px", "columns": ["fold"], "title": "Mean distance"},
                  {"measure": "dice", "columns": ["structure"]}, {"measure": "scatter", "columns": ["domain"]})
    command(group="pair", axes={"seeds": 0})
    second = screen.readouterr().out
    # fold 0 of ours, 10 - 8 dice: liver 5.5 and 7.75, spleen 6 and 8; 0.25 more in fold 1, of ep2 half of it
    assert second.splitlines()[:3] == [
        "| Mean distance (px) | 0    | 1    | mean |",
        "| ------------------ | ---- | ---- | ---- |",
        "| ours               | 6.81 | 7.00 | 6.91 |",
    ]
    # the floor stands in the table of its measure alone, and in that one's tests
    assert "| Dice (%) | liver | spleen | mean |" in second.splitlines() and second.count("| copy ") == 2
    assert "No table of Scatter: no row has a number of it." in second and "No table of" not in first
    assert set(calls(tmp_path / "out").values()) == {1} and len(calls(tmp_path / "out")) == 8


def change_tables(bundles, *tables):
    file = bundles / "toy_bundle" / "configs" / "compare.json"
    floor = {"name": "copy", "measures": {"dice": "copy_dice"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tables": tables, "floor": floor}))


def test_several_measures_over_domains(command, bundles, tmp_path, screen):
    command(config=str(bundles / "toy_bundle" / "configs" / "domains.json"))
    blocks = screen.readouterr().out.split("\n\n")
    # domain A of ours: 25 + 25 + 6.25 of seed 0, and 12.5 more of seed 1; means of parts3 and ep2: 0.75 of it
    assert blocks[0] == """\
| parts3: Dice (%) | A          | B          | mean       |
| ---------------- | ---------- | ---------- | ---------- |
| ours             | 62.5 ± 8.8 | 50.0 ± 8.8 | 56.2 ± 8.8 |
| theirs           | 37.5 ± 8.8 | 25.0 ± 8.8 | 31.2 ± 8.8 |"""
    assert blocks[2].startswith("| ep2: Dice (%) ")
    assert blocks[4:8] == ["""\
| ASD (px), less is better | A           | B           | mean        |
| ------------------------ | ----------- | ----------- | ----------- |
| ours                     | 6.25 ± 0.53 | 7.00 ± 0.53 | 6.62 ± 0.53 |
| theirs                   | 7.75 ± 0.53 | 8.50 ± 0.53 | 8.12 ± 0.53 |""", """\
| ours minus | difference | 95 % interval  | p     | n |
| ---------- | ---------- | -------------- | ----- | - |
| theirs     | -1.50      | -1.50 to -1.50 | 0.500 | 2 |""", """\
| Scatter | A                 | B                 | mean              |
| ------- | ----------------- | ----------------- | ----------------- |
| ours    | 0.00977 ± 0.00138 | 0.00781 ± 0.00138 | 0.00879 ± 0.00138 |
| theirs  | 0.00586 ± 0.00138 | 0.00391 ± 0.00138 | 0.00488 ± 0.00138 |""", """\
| ours minus | difference | 95 % interval | p | n |
| ---------- | ---------- | ------------- | - | - |
| theirs     | +0.00391   | -             | - | 1 |"""]
    assert (tmp_path / "out" / "table.png").stat().st_size > 1000


def test_domains_asked_for(command, bundles, tmp_path):
    options = {"config": str(bundles / "toy_bundle" / "configs" / "domains.json"), "variants": "theirs"}
    with pytest.raises(SystemExit, match="--domains: expected some of A, B, found C"):
        command(axes={"domains": "A,C"}, **options)
    assert not (tmp_path / "out").exists()
    command(axes={"domains": ("B",), "seeds": 1}, **options)
    assert set(calls(tmp_path / "out")) == {"seed_1_target_B/theirs"}


def test_no_number_gives_no_table(command, bundles, tmp_path, screen):
    change_tables(bundles, {"measure": "scatter", "columns": ["structure"]})
    file = bundles / "toy_bundle" / "configs" / "compare.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"floor": {}}))
    command(group="pair", axes={"seeds": 0, "folds": 0, "labels": 1})
    assert "no table: 1 of 1 grid points" in screen.readouterr().out and not (tmp_path / "out" / "table.md").exists()


def test_processes_survive_a_failed_and_a_killed_run(command, bundles, tmp_path, screen):
    orders = bundles / "toy_bundle" / "orders.txt"
    orders.write_text("kill ours 0 0 1\nfail theirs 0 0 1")
    options = {"group": "pair", "axes": {"seeds": "0,1", "folds": 0, "labels": 1}, "processes": 2}
    with pytest.raises(SystemExit) as caught:
        command(here=False, **options)
    assert caught.value.code.startswith("2 of 4 runs failed")
    assert "ours, seed 0, fold 0, novel_labels 1: its process was killed (exit code -9)" in caught.value.code
    assert "theirs, seed 0, fold 0, novel_labels 1: RuntimeError: loss is nan" in caught.value.code
    out, err = screen.readouterr()
    assert "scored with" not in out + err and "4/4" in err
    assert "| ours       | 68.8  | 68.8 |" in out.splitlines()
    orders.unlink()
    command(**options)
    assert calls(tmp_path / "out") == {"seed_0_fold_0_novel_labels_1/ours": 2, "seed_0_fold_0_novel_labels_1/theirs": 2,
                                       "seed_1_fold_0_novel_labels_1/ours": 1, "seed_1_fold_0_novel_labels_1/theirs": 1}
    assert "| ours       | 62.5 ± 8.8 | 62.5 ± 8.8 |" in screen.readouterr().out.splitlines()
