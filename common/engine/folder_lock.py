"""One run at a time in a folder: a lock of the operating system, which ends with the process and leaves no file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

try:
    import fcntl
except ImportError:  # Windows: runs are not kept apart there
    fcntl = None

logger = logging.getLogger(__name__)


class FolderLock:
    """Holds a folder for as long as this object lives, at most as long as the process.

    The lock is ``flock`` on the folder itself: a killed run leaves nothing behind, and no file appears beside the
    results; processes that the run forks do not hold it. A second lock of the same process takes the place of the
    first, whose run is over. Where the file system knows no such locks, runs are not kept apart, the log says so and
    ``locked`` is False.

    Raises:
        OSError: another living process holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if (before := _HELD.get(str(self.folder))) is not None:
            before.release()
        self.locked = True
        self._handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._handle)
            self.release()
            raise OSError(
                f"{folder}: expected a folder that no other run writes into, found one in use by {holder}. Wait until "
                "that has ended, or give this run folders of its own (--ckpt_dir, --output_dir)."
            ) from None
        except OSError as error:
            self.locked = False
            logger.warning("%s: cannot be locked (%s); do not start a second run in it.", folder, error.strerror)
        _HELD[str(self.folder)] = self

    def release(self) -> None:
        """Let other runs have the folder."""
        if self._handle is not None:
            with suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.release()


_HELD: WeakValueDictionary[str, FolderLock] = WeakValueDictionary()


def _release_all() -> None:
    """In a forked process: the workers of a killed run, which live on for seconds, must not keep its folders."""
    for lock in list(_HELD.values()):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


def lock_folders(folders: Iterable[Path]) -> list[FolderLock]:
    """Locks of all folders, each once; of several processes of one run the first one's alone.

    Raises:
        OSError: see :class:`FolderLock`.
    """
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        return []
    return [FolderLock(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]


def _holder(handle: int) -> str:
    """The process behind a lock, as far as Linux tells."""
    with suppress(OSError, ValueError):
        inode = f":{os.fstat(handle).st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and any(field.endswith(inode) for field in fields):
                return f"process {int(fields[4])}"
    return "another process"
