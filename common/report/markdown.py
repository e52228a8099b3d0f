"""Tables as Markdown that reads well as plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .plain_text import one_line

# a backslash before each: what makes code, links, emphasis, formulae, HTML, columns; brackets alone, `_` within a word
# and `<` before a space make nothing
_MARKUP = re.compile(
    r"[\\`*|~$&]|\](?=[(\[:])|(?<!\w)_|_(?!\w)|<(?=[\w/!?])|(?<=\w):(?=//)|(?<=\bwww)\.|(?<=\w)@(?=\w)", re.ASCII
)


def plain(name: str) -> str:
    """A name as Markdown shows it: in one line, with a backslash before what would be markup."""
    return _MARKUP.sub(r"\\\g<0>", one_line(name))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts whose columns are as wide as their widest; the first row is its head."""
    rows = [[plain(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
