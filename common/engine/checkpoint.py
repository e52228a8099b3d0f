"""Writing and reading one checkpoint file: it is either the old one or the new one, never a part."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from common.data.temporary import replaced

# What `torch.load(weights_only=True)` reads back without asking; compared by exact type, subclasses are refused there.
_PLAIN = (torch.Tensor, nn.Parameter, str, bytes, int, float, bool, type(None), torch.Size, torch.dtype, torch.device)
_CONTAINERS = (dict, OrderedDict, Counter, list, tuple, set)


def save_atomic(state: Any, path: str | Path) -> None:
    """Write ``state`` to ``path`` so that a crash at any moment leaves the previous file, whole.

    ``torch.save`` goes to a temporary file in the same folder, which is forced to the disk and then takes the final
    name. What a run leaves that is killed while it writes, the next one in that folder removes.

    Raises:
        TypeError: ``state`` holds something that ``load_checkpoint`` could not read back.
    """
    path = Path(path)
    foreign = [f"{where}: {kind}" for where, kind in _foreign(state, "state")]
    if foreign:
        raise TypeError(
            f"{path}: cannot be read back with weights_only=True because of {'; '.join(foreign)}. Expected plain "
            "tensors, numbers, texts, lists and dicts: convert with .item(), torch.as_tensor() or .as_tensor()."
        )
    write_atomic(path, lambda file: torch.save(state, file))


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, which then takes the final name.

    Raises:
        OSError: see :func:`.writing`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part, open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def load_checkpoint(path: str | Path) -> Any:
    """Read what ``save_atomic`` wrote, onto the CPU and without running code from the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint. Expected a file written by an earlier run; pass the folder of that run "
            "(ckpt_dir), or train first (without resume)."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as IndexError, EOFError, UnpicklingError, RuntimeError, ...
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes): not a readable checkpoint ({type(error).__name__}). It is damaged "
            "or cut off, or holds more than tensors and plain types. Copy it again, pass another, or delete it."
        ) from None  # torch's text advises to run what is in the file


def _foreign(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if type(value) in _CONTAINERS:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _foreign(item, f"{where}[{key!r}]")
    elif type(value) not in _PLAIN:
        yield where, f"{type(value).__module__}.{type(value).__qualname__}"


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # a folder cannot be opened elsewhere
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
