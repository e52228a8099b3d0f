"""The benchmark of the scan compares equal results and counts memory; it asserts no time."""

import json

import pytest
import torch

from tools.bench import bench, scan


def test_backends_are_compared_with_the_loop_and_float64(monkeypatch):
    monkeypatch.setattr(scan, "LENGTHS", (40,))
    monkeypatch.setattr(scan, "CHANNELS", 3)
    monkeypatch.setattr(scan, "_copy_rate", lambda device, repeats: 1.0)
    rows = {(row["device"], row["backend"]): row for row in scan.scan(1)}
    names = {"cpu": {"torch", "native"}, "cuda": {"torch", "triton", "mamba_ssm"}}
    there = [device for device in names if device == "cpu" or torch.cuda.is_available()]
    assert rows.keys() == {(device, name) for device in there for name in names[device]}
    assert all("left out" not in rows[device, "torch"] for device in there)
    for row in (row for row in rows.values() if "left out" not in row):
        # at a byte a second: signals u, delta and B, C, then A, D and the bias; the output is a signal
        signal, given = 2 * 3 * 40, 2 * 2 * 3 * 40 + 2 * 2 * 16 * 40 + 3 * 16 + 3 + 3
        assert row["forward s"] * row["floor over it"] == pytest.approx(4 * (given + signal))
        assert row["forward + backward s"] * row["floor over that"] == pytest.approx(4 * (3 * given + 2 * signal))
        assert row["error of the output"] < 1e-6 and row["largest error of a gradient"] < 5e-6
        # at least the output; with the backward the gradients too
        assert row["extra peak MiB forward"] * 2**20 >= 2 * 3 * 40 * 4
        assert row["extra peak MiB forward + backward"] > row["extra peak MiB forward"]


def test_a_copy_reads_and_writes(monkeypatch):
    monkeypatch.setattr(scan, "COPIED", 1 << 10)
    monkeypatch.setattr(scan, "_seconds", lambda run, device: run() is None or 0.5)
    assert scan._copy_rate("cpu", 1) == 2 * 4 * scan.COPIED / 0.5


def test_one_thread_and_the_file_says_so(monkeypatch, tmp_path):
    """Whatever the process has, and it has as many afterwards."""
    seen, threads = [], torch.get_num_threads()
    monkeypatch.setattr(scan, "scan", lambda repeats: seen.append(torch.get_num_threads()) or [])
    torch.set_num_threads(2)
    try:
        bench("scan", output=str(tmp_path / "figures.json"))
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert json.loads((tmp_path / "figures.json").read_text())["metadata"]["threads"] == 1
