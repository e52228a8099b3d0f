"""The folder a run writes into, tried out before the run and not after its first epoch."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from common.data.paths import as_path


def check_output_dir(path: str | Path) -> Path:
    """Make the folder if it is missing and write a small file in it, which is removed again.

    Returns:
        the folder's absolute path.

    Raises:
        ValueError: see :func:`.as_path`; there is a ``#`` in the path, which MONAI's configs hand on as ``::``.
        OSError: the path is a file, lies below one, or nothing can be written there.
    """
    folder = as_path(path, "the folder to write into").absolute()
    if "::" in str(path):  # other parts of the run would take the path with `::`
        raise ValueError(f"{folder}: expected a folder to write into without # or ::, which configs read as one; "
                         "choose another folder.")  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, prefix=f".{os.getpid()}-", suffix=".part") as probe:
            probe.write(b"probe")
            probe.flush()
    except OSError as error:
        is_file = isinstance(error, (FileExistsError, NotADirectoryError))
        found = "a file there or on the way to it" if is_file else error.strerror or str(error)
        raise OSError(f"{folder}: expected a folder to write into, found {found}; choose another folder, or make "
                      "this one writable") from None  # whose text says less, and would be shown as the root cause
    return folder
