"""Names of files that are still being written, and the removal of those that a killed run has left."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from uuid import uuid4

_NAME = re.compile(r"\.(\d+)-\w+\.part(\..+)?")


def temporary_path(target: Path) -> Path:
    """A hidden name of its own in the folder of ``target``, which carries this process and the kind of file."""
    suffix = ".nii.gz" if target.name.lower().endswith(".nii.gz") else target.suffix
    return target.with_name(f".{os.getpid()}-{uuid4().hex}.part{suffix}")


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that are no longer alive have left of :func:`temporary_path` in a folder."""
    for path in folder.glob(".*.part*"):
        match = _NAME.fullmatch(path.name)
        if match is None or _alive(int(match[1])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # of another user, or no such number
        return True
    return True
