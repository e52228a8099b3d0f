import multiprocessing
import os
import signal
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.engine import load_checkpoint, save_atomic
from common.engine.checkpoint import write_atomic


def test_what_is_saved_is_read_back(tmp_path):
    state = OrderedDict(a=torch.arange(3), b=[1, 2.5, "x", None, True], c=(Counter([3, 3]), {1: torch.float32}))
    save_atomic(state, tmp_path / "new" / "state.pt")
    back = load_checkpoint(tmp_path / "new" / "state.pt")
    assert torch.equal(back.pop("a"), state.pop("a")) and back == state
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["state.pt"]


def test_an_error_in_mid_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_atomic({"epoch": 1}, path)

    def half(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_atomic({"epoch": 2}, path)
    assert load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def killed_while_saving(path):
    def save(state, file, save=torch.save):
        save(state, file)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    # small: a forked child of a process with OpenMP threads hangs in the first operation that would use them
    save_atomic({"epoch": 2, "weights": torch.zeros(10)}, path)


@pytest.mark.skipif(os.name != "posix", reason="needs fork and SIGKILL")
def test_a_kill_in_mid_write_leaves_the_old_file_and_the_next_write_works(tmp_path):
    path = tmp_path / "state.pt"
    save_atomic({"epoch": 1}, path)
    process = multiprocessing.get_context("fork").Process(target=killed_while_saving, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the unfinished one is there, under another name
    assert load_checkpoint(path) == {"epoch": 1}
    save_atomic({"epoch": 3}, path)
    assert load_checkpoint(path) == {"epoch": 3}


def test_two_runs_that_write_one_file_at_a_time_leave_a_whole_one(tmp_path):
    path = tmp_path / "state.pt"

    def slowly(file):
        file.write(b"first, ")
        write_atomic(path, lambda other: other.write(b"second"))
        assert path.read_bytes() == b"second"
        file.write(b"whole")

    write_atomic(path, slowly)
    assert path.read_bytes() == b"first, whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [np.float64(0.5), MetaTensor(torch.zeros(1)), np.zeros(2), object()])
def test_refuses_to_write_what_could_not_be_read(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['best'\]\[1\]: "):
        save_atomic({"best": [1, value]}, tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pt: no such checkpoint.*ckpt_dir"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("keep", [0, 10, 700])
def test_cut_off_file_is_named_with_its_size(tmp_path, keep):
    path = tmp_path / "state.pt"
    save_atomic({"weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"state.pt \({keep} bytes\): not a readable checkpoint.*delete it"):
        load_checkpoint(path)


def test_garbage_and_code_are_refused(tmp_path):
    path = tmp_path / "state.pt"
    path.write_bytes(b"garbage" * 50)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"run": print}, path)
    with pytest.raises(ValueError, match="more than tensors"):
        load_checkpoint(path)
