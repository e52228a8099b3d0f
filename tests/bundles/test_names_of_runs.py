"""What data are called, and the folders that they lie in: whole runs of all bundles with names that look like more."""

import json
import os
import shutil

import pytest

from common.report.cases_csv import read_cases_csv

# case: file; the case of an inference is its file's name
CASES = {"..": "..a1", "b" * 300: "b" * 200, '=HYPERLINK("http://x","y")': "=1+1", "$x$": "$x$", "|a|b|": "|a|b|",
         "a/b": "#c @d", "<b>é</b>\n": "e\u0301"}  # fmt: skip
LABELS = {1: '=HYPERLINK("http://x","y")', 2: "|a|b|$x$/.."}
# data set, model, output
FOLDERS = {("$x", "@x", "2024_03_01"): "relative", ("#x", "%x", "a b"): "relative",
           ("2024_03_01", "$x", "@x"): "absolute"}  # fmt: skip


@pytest.fixture
def hostile(six_scans, tmp_path):
    """The six scans, under other names."""
    folder = tmp_path / "$set @x"
    shutil.copytree(six_scans, folder)
    content = json.loads((folder / "dataset.json").read_text())
    content |= {"name": "$x$", "labels": {"0": "background"} | {str(label): name for label, name in LABELS.items()}}
    for item, (case, name) in zip(content["training"] + content["unlabeled"], CASES.items(), strict=True):
        item["case"] = case
        if item.get("domain") == "a":
            item["domain"] = "$x|=1+1"
        for key in ("image", "label"):
            if key in item:
                file = folder / item[key]
                item[key] = str(file.rename(file.with_name(f"{name}.nii.gz")).relative_to(folder))
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_names_in_a_training_with_its_report_and_an_inference(doors, hostile, tmp_path, restored):
    out, regions = tmp_path / "out", {name: [label] for label, name in LABELS.items()}
    own = {"sgcg_dg": {"regions": regions, "allow_missing": True, "target_domain": "$'$x|=1+1'"}}.get(doors.name, {})
    if doors.name in ("transmedseg_ssl", "diffcl_ssl"):
        content = json.loads((hostile / "dataset.json").read_text())
        content |= {"training": content["training"][:4], "validation": content["training"][4:]}
        (hostile / "dataset.json").write_text(json.dumps(content))
    options = doors.TINY | doors.SIZES[doors.name] | {"pictures": 9, "ckpt_dir": str(tmp_path / "models")}
    doors.run("train", hostile, out, **options | own)
    _, rows = read_cases_csv(out / "cases.csv")
    found = {row["case"] for row in rows}
    assert found and found <= {*CASES, "features"}, found
    structures = {row["structure"] for row in rows} - {""}
    assert structures and structures <= set(LABELS.values())
    table = [line for line in (out / "summary.md").read_text().splitlines() if line.startswith("|")]
    assert table and len({line.count("|") - line.count("\\|") for line in table[:3]}) == 1
    assert {file.name for file in tmp_path.iterdir()} == {"$set @x", "out", "models"}
    images = sorted((hostile / "images").iterdir())
    maps = doors.infer(str(hostile / "images"), tmp_path / "maps", tmp_path / "models", overlay=True)
    assert len(maps) == len([image for image in images if not image.name.startswith(".")]), maps
    assert len(list((tmp_path / "maps").glob("found_*.png"))) == len(maps)


@pytest.mark.parametrize(("names", "form"), FOLDERS.items(), ids=[" ".join(names) for names in FOLDERS])
def test_folders(doors, six_scans, tmp_path, monkeypatch, restored, names, form):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(six_scans, tmp_path / names[0])
    data, models, out = (os.path.join("." if form == "relative" else str(tmp_path), name) for name in names)
    doors.check(data)
    own = {"sgcg_dg": {"regions": {"wall": [1], "cavity": [2]}, "allow_missing": True}}.get(doors.name, {})
    doors.run("train", data, out, **doors.TINY | doors.SIZES[doors.name] | own | {"ckpt_dir": models})
    assert (tmp_path / names[1] / "model.pt").is_file() and (tmp_path / names[2] / "cases.csv").is_file()
    support = {"support_dir": data} if doors.name == "apscl_fewshot" else {}
    doors.run("inference", data, out, ckpt_dir=models, images=os.path.join(data, "images"), **support)
    assert len(list((tmp_path / names[2]).glob("*_seg.nii.gz"))) == 7
    assert {file.name for file in tmp_path.iterdir()} == {*names}
