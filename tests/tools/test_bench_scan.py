"""The benchmark of the scan compares equal results and counts memory; it asserts no time."""

import torch

from tools.bench import scan


def test_backends_are_compared_with_the_loop_and_float64(monkeypatch):
    monkeypatch.setattr(scan, "LENGTHS", (40,))
    monkeypatch.setattr(scan, "CHANNELS", 3)
    threads = torch.get_num_threads()
    rows = {row["backend"]: row for row in scan.scan(1)}
    assert set(rows) == {"torch", "native"} and torch.get_num_threads() == threads
    for row in (row for row in rows.values() if "left out" not in row):
        assert row["error of the output"] < 1e-6 and row["largest error of a gradient"] < 5e-6
        # at least the output; with the backward the gradients too
        assert row["extra peak MiB forward"] * 2**20 >= 2 * 3 * 40 * 4
        assert row["extra peak MiB forward + backward"] > row["extra peak MiB forward"]
