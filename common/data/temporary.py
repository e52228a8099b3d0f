"""Files that are still being written: their names, their end, and the removal of those that a killed run has left."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# what a disk says that takes no more; the operating system's own text names no file when it says so of a write
_REFUSALS = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "ESTALE")
             if hasattr(errno, name)}  # fmt: skip
_NAME = re.compile(r"\.(\d+)-\w+\.part(\..+)?")


def temporary_path(target: Path) -> Path:
    """A hidden name of its own in the folder of ``target``, which carries this process and the kind of file."""
    suffix = ".nii.gz" if target.name.lower().endswith(".nii.gz") else target.suffix
    return target.with_name(f".{os.getpid()}-{uuid4().hex}.part{suffix}")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """See to it that a disk that is full, or takes no more for another reason, is told of with the file and the remedy.

    Raises:
        OSError: with that text.
    """
    try:
        yield
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        raise OSError(
            f"{target}: expected to write it, found: {refusal.strerror}. What was there before is whole. Make room "
            "there or choose another folder, and start again; a training goes on with `--resume True`."
        ) from None


def _refusal(error: BaseException | None) -> OSError | None:
    """What the disk said; torch and MONAI hide it behind an error of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Give a path to write a file at, which takes the place of ``target`` in one step when the block ends well.

    Raises:
        OSError: see :func:`writing`.
    """
    part = temporary_path(target)
    try:
        with writing(target):
            yield part
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


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
    except (OSError, OverflowError):  # of another user, or no number of a process: not ours to judge
        pass
    return True
