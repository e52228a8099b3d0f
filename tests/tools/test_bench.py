"""The benchmark runs, counts encoder passes, and compares equal results; it asserts no time."""

import json

import pytest

from tools.bench import bench


def test_volume_counts_passes_and_compares_equal_results(tmp_path, capsys):
    bench(repeats=1, output=str(tmp_path / "figures.json"))
    (row,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    slices, supports = row["slices"], 3  # the four organs of the support lie in the same three slices
    assert row["encoder passes"] == f"{slices + supports} against {4 * slices * 2}"
    assert row["largest difference"] < 1e-3
    assert f"| ratio              | {row['ratio']:.3g}" in capsys.readouterr().out


def test_unknown_name_lists_the_known():
    with pytest.raises(SystemExit, match="volume"):
        bench("nothing")


def test_contrast_compares_equal_gradients_and_counts_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.bench.contrast.PIXELS", 512)
    bench("contrast", repeats=1, output=str(tmp_path / "figures.json"))
    loss, step = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert loss["largest difference of the gradient"] < 1e-4
    # the gradient is held, N x A floats, and no N x C x A x A array ever is
    assert 512 * 32 * 4 <= loss["extra peak MiB"] * 2**20 < 512 * 3 * 32 * 32 * 4
    assert step.keys() >= {"part", "CPU s with", "CPU s without", "share of the term"}


def test_augmentation_compares_equal_gradients(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.bench.augmentation.VOXELS", 512)
    monkeypatch.setattr("tools.bench.augmentation.STEPS", ((2, (32, 32), 2), (3, (16, 16, 16), 2)))
    bench("augmentation", repeats=1, output=str(tmp_path / "figures.json"))
    loss, flat, solid = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert loss["largest difference of the gradient"] < 1e-5
    assert flat["part"].endswith("32 x 32") and solid["part"].endswith("16 x 16 x 16")
