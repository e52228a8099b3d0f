"""Paths as the user wrote them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import DataError


def as_path(value: Any, option: str) -> Path:
    """The path that an option names.

    MONAI's configs hand on a ``#`` as ``::``; a file or folder of the name with ``#`` is found all the same.

    Raises:
        DataError: the command line has made a number of it, or something else that is no text; or it has backslashes,
            which are letters of a name where this runs.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise DataError(
            f"{option}: expected a path, found {value!r}, which the command line has read as {type(value).__name__}; "
            f"write it with a folder in front, such as ./2024_03_01."
        )
    if os.sep == "/" and "\\" in str(value) and not Path(value).exists():
        raise DataError(f"{option}: expected a path with /, found {value}; backslashes are letters of a name here.")
    as_written = Path(str(value).replace("::", "#"))
    return as_written if as_written.exists() and not Path(value).exists() else Path(value)
