"""What the tests of all bundles share: a clean process after each run, and runs in processes of their own."""

import logging
import os
import subprocess
import sys

import pytest
from monai.utils import set_determinism


@pytest.fixture(name="restored")
def _restored():
    """MONAI sets up determinism and logging for the whole process."""
    level, handlers = logging.root.level, list(logging.root.handlers)
    yield
    set_determinism(None)
    logging.root.setLevel(level)
    logging.root.handlers[:] = handlers


def start_bundle(*arguments, cwd, threads=1, **overrides):
    """A bundle run in a process of its own, with nothing set but the number of threads."""
    flags = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", "run", *arguments, *flags],
        cwd=cwd, env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="session", name="start_bundle")
def _start_bundle():
    return start_bundle
