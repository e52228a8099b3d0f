"""Statistics gathered by two processes against one process and numpy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.losses.class_statistics import ClassStatistics

ROOT = Path(__file__).resolve().parents[3]
CLASSES, WIDTH = 3, 4
NAMES = ("count", "mean", "cov")

WORKER = """
import sys
import torch
import torch.distributed as dist
from common.losses.class_statistics import ClassStatistics

folder, rank = sys.argv[1], int(sys.argv[2])
plan = torch.load(f"{folder}/plan.pt", weights_only=True)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
result = {}
for name, case in plan.items():
    stats = ClassStatistics(3, 4, groups=2, **case["options"]).to(case["dtype"])
    for step in case["steps"]:
        for batch in step[rank]:
            stats.update(*batch)
        own = stats.pooled()
        for _ in range(case["syncs"]):
            stats.sync()
    result[name] = {
        "state": stats.state_dict(), "scatter": stats.between_group_scatter(),
        "own": vars(own), "pooled": vars(stats.pooled()),
    }
torch.save(result, f"{folder}/result{rank}.pt")
dist.destroy_process_group()
"""


def batch(count, seed):
    """Features, labels with some ignored, and groups."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, CLASSES, (count,), generator=draw)
    features = torch.randn(count, WIDTH, generator=draw, dtype=torch.float64) * (labels[:, None] + 2) + seed % 5
    return features, labels, torch.randint(0, 2, (count,), generator=draw)


def joined(batches):
    return [torch.cat(column) for column in zip(*batches, strict=True)]


# pixels of rank 0 and of rank 1 in each step: unequal shares, a rank without any, a step without any
STEPS = [
    [[batch(n, 10 * step + rank)] for rank, n in enumerate(sizes)]
    for step, sizes in enumerate([(30, 50), (1, 70), (0, 40), (60, 0), (0, 0), (20, 25)])
]
CASES = {
    "plain": {}, "twice": {"syncs": 2}, "never": {"syncs": 0}, "float32": {"dtype": torch.float32},
    "diag": {"options": {"cov": "diag"}}, "capped": {"options": {"max_count": 5}},
    "capped twice": {"options": {"max_count": 5}, "syncs": 2},
    "views": {"steps": [[2 * rank for rank in step] for step in STEPS]},  # two updates before a sync
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two processes found in each case."""
    folder = tmp_path_factory.mktemp("ranks")
    usual = {"options": {}, "dtype": torch.float64, "steps": STEPS, "syncs": 1}
    torch.save({name: {**usual, **case} for name, case in CASES.items()}, folder / "plan.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name need not resolve
    processes = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(rank)], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    try:
        for process in processes:
            output = process.communicate(timeout=300)[0]
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(2)]


def assert_same_as_numpy(found, features, labels, tolerance=1e-10):
    for c in range(CLASSES):
        rows = features[labels == c].numpy()
        assert found["count"][c].item() == len(rows)
        np.testing.assert_allclose(found["mean"][c], rows.mean(0), atol=tolerance)
        cov = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(found["cov"][c], cov if found["cov"].ndim == 3 else np.diag(cov), atol=tolerance)


@pytest.mark.parametrize("name", [name for name in CASES if name != "never"])
def test_both_ranks_agree_bit_by_bit(ranks, name):
    first, second = (rank[name]["state"] for rank in ranks)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert first["count"].any() and not first["new_count"].any()


@pytest.mark.parametrize("name", ["plain", "twice", "diag", "float32", "views"])
def test_two_processes_equal_one(ranks, name):
    """Every pixel counts once, also when the statistics are synchronised again with nothing new."""
    features, labels, group = joined([b for step in CASES[name].get("steps", STEPS) for rank in step for b in rank])
    assert_same_as_numpy(ranks[1][name]["pooled"], features, labels, 1e-5 if name == "float32" else 1e-10)
    one = ClassStatistics(CLASSES, WIDTH, CASES[name].get("options", {}).get("cov", "full"), groups=2).double()
    one.update(features, labels, group)
    tolerance = 1e-5 if name == "float32" else 1e-10
    for key in NAMES:
        close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
        torch.testing.assert_close(ranks[0][name]["state"][key], getattr(one, key), **close)
    assert ranks[0][name]["scatter"].item() == pytest.approx(one.between_group_scatter().item(), rel=1e-4)


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_knows_its_own_pixels_before_the_sync(ranks, rank):
    features, labels, _ = joined([b for step in STEPS for b in step[rank]])
    assert_same_as_numpy(ranks[rank]["never"]["pooled"], features, labels)
    known = [b for step in STEPS[:-1] for other in step for b in other] + STEPS[-1][rank]
    features, labels, _ = joined(known)
    assert_same_as_numpy(ranks[rank]["plain"]["own"], features, labels)


def test_the_cap_holds_for_all_ranks_together(ranks):
    """As in one process that sees the pixels of both ranks at once."""
    one = ClassStatistics(CLASSES, WIDTH, max_count=5, groups=2).double()
    for step in STEPS:
        one.update(*joined([b for rank in step for b in rank]))
    for key in NAMES:
        torch.testing.assert_close(ranks[0]["capped"]["state"][key], getattr(one, key), rtol=1e-10, atol=1e-10)
        assert torch.equal(ranks[0]["capped twice"]["state"][key], ranks[0]["capped"]["state"][key])
    assert ranks[0]["capped"]["pooled"]["count"].sum() < ranks[0]["plain"]["pooled"]["count"].sum()
