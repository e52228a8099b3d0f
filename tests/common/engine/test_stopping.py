"""A signal's end, in a process of its own."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from common.engine.stopping import on_stop, stop_readably

def a_worker_died(*_):
    raise RuntimeError("DataLoader worker is killed by signal: Terminated.")  # as torch does

signal.signal(signal.SIGCHLD, a_worker_died)
stop_readably()
on_stop(lambda: "Go on.")
try:
    os.kill(os.getpid(), int(sys.argv[1]))
finally:
    os.kill(os.getpid(), signal.SIGCHLD)  # the whole job was told to end, its workers too
    for _ in range(1000):
        pass
"""


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="no such signal here")
@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_workers_that_end_with_the_run_are_no_error(number, code, name):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(int(number))], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, f"\nStopped by {name}. Go on.\n")


FAILS_AFTERWARDS = """
import os, signal, sys
from common.engine import readable_errors, stopping

class Loader:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)  # Python swallows an exit here

sys.excepthook = readable_errors._report
stopping.stop_readably()
loader = Loader()
del loader
raise RuntimeError("of a loader that was deleted half")
"""


def test_what_fails_after_a_swallowed_exit_is_no_error_of_the_run():
    done = subprocess.run([sys.executable, "-c", FAILS_AFTERWARDS], capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("Stopped by SIGTERM.")
    assert "RuntimeError" not in done.stderr
