"""File names made of what data are called."""

from __future__ import annotations

import hashlib
import re

LONGEST = 120  # file systems take 255 bytes, of which a letter may need four


def file_name(*names: str) -> str:
    """The names of cases and structures in one, without what a path would read or a file system refuse.

    Letters and digits of any language, ``.``, ``+``, ``-`` and ``_`` stay, other runs of characters become ``_``. Where
    more than spaces went or the name is long, a hash of the whole keeps different names different.
    """
    whole = "_".join(names)
    plain = re.sub(r"[^\w.+-]+", "_", whole).lstrip(".")
    if plain == whole.replace(" ", "_") and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST]}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
