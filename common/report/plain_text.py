"""Names from data as what they are, text: in pictures and in lines."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

from matplotlib import rc_context

_TURNS = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}  # the direction of all that follows
_UNPRINTABLE = {"Cc", "Cs"}  # control characters, and halves of a character


def one_line(name: str) -> str:
    """Spaces for line breaks and tabs; U+FFFD for what cannot be printed or would turn the rest of the line around."""
    return "".join(
        " " if letter.isspace() else "\ufffd" if letter in _TURNS or category(letter) in _UNPRINTABLE else letter
        for letter in name
    )


def in_picture(name: str, longest: int = 80) -> str:
    """One line, cut where it would not fit: after so many letters."""
    line = one_line(name)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


@contextmanager
def plain_text() -> Iterator[None]:
    """Pictures drawn here take no text for a formula, and letters that the font lacks become boxes silently."""
    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield
