import gc
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from common.engine import folder_lock
from common.engine.folder_lock import lock_folders

# a process of its own, without the code under test
TRY = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
"""
HOLD = TRY + "time.sleep(600)"
pytestmark = pytest.mark.skipif(folder_lock.fcntl is None, reason="no such locks here")


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_in_use_is_refused_with_its_process_and_what_to_do(holder, tmp_path):
    with pytest.raises(OSError, match="expected a folder that no other run writes into, found one in use by") as error:
        lock_folders([tmp_path])
    assert str(tmp_path) in str(error.value) and "--ckpt_dir, --output_dir" in str(error.value)
    if sys.platform == "linux":
        assert f"process {holder.pid}." in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_behind(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lock_folders([tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_free_when_the_locks_are_gone(tmp_path):
    held = lock_folders([tmp_path, tmp_path / "." / ".." / tmp_path.name])  # one folder by two names
    assert len(held) == 1
    arguments = [sys.executable, "-c", TRY, str(tmp_path)]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 1
    del held
    gc.collect()
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0


def test_a_second_run_of_the_same_process_takes_the_place_of_the_first(tmp_path):
    first = lock_folders([tmp_path])
    second = lock_folders([tmp_path])
    del first
    gc.collect()
    arguments = [sys.executable, "-c", TRY, str(tmp_path)]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 1
    assert second


def test_other_processes_of_one_run_leave_it_to_the_first(holder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert lock_folders([tmp_path]) == []


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    assert lock_folders([tmp_path])
    assert "cannot be locked (Operation not supported); do not start a second run" in caplog.text


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_programs_that_a_run_starts_do_not_keep_the_folder(tmp_path):
    held = lock_folders([tmp_path])
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    del held
    gc.collect()
    assert lock_folders([tmp_path])
    child.communicate(b"\n")
    assert os.path.isdir(tmp_path)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_workers_of_a_run_that_is_over_do_not_keep_the_folder(tmp_path):
    held = lock_folders([tmp_path])
    worker = multiprocessing.get_context("fork").Process(target=signal.pause)
    worker.start()
    try:
        assert worker.is_alive()
        del held
        gc.collect()
        arguments = [sys.executable, "-c", TRY, str(tmp_path)]
        assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    finally:
        worker.kill()
        worker.join()
