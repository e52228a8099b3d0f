"""What happens before a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.data.output_dir import check_output_dir
from common.data.temporary import remove_leftovers

from .folder_lock import FolderLock, lock_folders
from .overrides import refuse_unknown_keys
from .readable_errors import make_errors_readable, on_command_line
from .report_owner import refuse_another_report
from .stopping import on_stop, stop_readably


def start(folders: Sequence[str], label_maps: bool = False) -> list[FolderLock]:
    """Refuse misspelt overrides, see to it that errors and signals end readably, try and lock the folders.

    A config's first step.

    Args:
        folders: that the run writes into; they are made where they are missing. Of two, the first is that of a model
            to train, the last that of its report.
        label_maps: whether these are what it writes, into the last folder; a signal's line then counts them.

    Returns:
        what keeps other runs out of the folders; MONAI holds it until the last step of ``run`` has ended.

    Raises:
        ValueError: see :func:`.refuse_unknown_keys`, on the command line SystemExit; :func:`.refuse_another_report`.
        OSError: see :func:`.check_output_dir` and :class:`.FolderLock`.
    """
    make_errors_readable()
    if on_command_line():
        stop_readably()
    refuse_unknown_keys()
    checked = [check_output_dir(folder) for folder in folders]
    locks = lock_folders(checked)
    for lock in locks:
        if lock.locked:  # else a living run of another computer may be writing there
            remove_leftovers(lock.folder)
    if len(checked) > 1:
        refuse_another_report(checked[-1], checked[0] / "model.pt")
    if label_maps:
        folder = checked[-1]
        before = _label_maps(folder)
        on_stop(lambda: _what_is_written(len(_label_maps(folder) - before), folder))
    return locks


def _label_maps(folder: Path) -> set[tuple[str, int]]:
    """Those there are, each with its number on the disk: one that is written again has another."""
    return {(file.name, file.stat().st_ino) for file in folder.glob("*_seg.*")}


def _what_is_written(maps: int, folder: Path) -> str:
    written = f"{maps} label map{'s are' if maps != 1 else ' is'} written, whole, in {folder}. " if maps else ""
    return f"{written}Start again with the same command, which does everything anew."
