"""The benchmark of the scan compares equal results and counts memory; it asserts no time."""

import torch

from tools.bench import scan


def test_backends_are_compared_with_the_loop_and_float64(monkeypatch):
    monkeypatch.setattr(scan, "LENGTHS", (40,))
    monkeypatch.setattr(scan, "CHANNELS", 3)
    monkeypatch.setattr(scan, "COPIED", 1 << 20)
    threads = torch.get_num_threads()
    rows = {(row["device"], row["backend"]): row for row in scan.scan(1)}
    devices = {"cpu": ["torch", "native"], "cuda": ["torch", "triton", "mamba_ssm"]}
    there = [device for device in devices if device == "cpu" or torch.cuda.is_available()]
    assert list(rows) == [(device, name) for device in there for name in sorted(devices[device], key=lambda name: (
        "left out" in rows[device, name], devices[device].index(name)))]  # fmt: skip
    assert torch.get_num_threads() == threads
    for row in (row for row in rows.values() if "left out" not in row):
        assert row["forward s"] > 0 and row["floor over it"] > 0 and row["floor over that"] > 0
        assert row["error of the output"] < 1e-6 and row["largest error of a gradient"] < 5e-6
        # at least the output; with the backward the gradients too
        assert row["extra peak MiB forward"] * 2**20 >= 2 * 3 * 40 * 4
        assert row["extra peak MiB forward + backward"] > row["extra peak MiB forward"]
