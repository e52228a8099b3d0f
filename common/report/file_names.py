"""File names made of what data are called."""

from __future__ import annotations

import hashlib
import re
from unicodedata import normalize

LONGEST = 200  # bytes; file systems take 255, and what the name is of stands before it, its kind behind
# names that Windows keeps for devices, whatever follows behind a dot
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\.|$)", re.IGNORECASE)


def file_name(*names: str) -> str:
    """The names of cases and structures in one, without what a path would read or a file system refuse.

    Letters and digits of any language, ``.``, ``+``, ``-`` and ``_`` stay, other runs of characters become ``_``. Where
    more than spaces went or the name is long, a hash of the whole keeps different names different. Those that differ
    by spaces or by capitals alone, :class:`FileNames` tells apart.
    """
    whole = "_".join(names)
    plain = normalize("NFC", whole)
    kept = re.sub(r"[^\w.+-]+", "_", plain).strip(".")
    if _DEVICES.match(kept):
        kept = f"_{kept}"
    if kept == plain.replace(" ", "_") and 0 < len(kept.encode()) <= LONGEST:
        return kept
    return f"{kept.encode()[:LONGEST].decode(errors='ignore')}_{_hash(names)}"


class FileNames:
    """The file names of one folder: each name has one of its own, on file systems that know no capitals too."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[str, ...]] = {}

    def __call__(self, *names: str) -> str:
        """As :func:`file_name`, with a hash behind it where it is that of another name already."""
        made = file_name(*names)
        if self._taken.setdefault(made.casefold(), names) == names:
            return made
        return f"{made}_{_hash(names)}"


def _hash(names: tuple[str, ...]) -> str:
    # a name may hold half a character, which UTF-8 has not
    return hashlib.sha256("\0".join(names).encode(errors="surrogatepass")).hexdigest()[:8]
