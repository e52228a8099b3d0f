"""A file of JSON that a person or another tool has written: every object with each key once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from common.data.errors import DataError

TEXT = r'"(?:[^"\\]|\\.)*"'
TOKEN = re.compile(rf"(?P<key>{TEXT})(?=\s*:)|{TEXT}|(?P<bracket>[{{}}])|(?P<end_of_line>\n)")
SHOWN = 60  # letters of a line in an error


def read_json(file: Path) -> Any:
    """What a file of JSON holds.

    Raises:
        DataError: no file that can be opened, no UTF-8, no JSON, or a key twice in one object, of which a reader of
            JSON takes the last without a word.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: expected text in UTF-8, found other bytes ({error.reason} at byte {error.start}); "
                        "save it as UTF-8") from error  # fmt: skip
    except OSError as error:
        raise DataError(f"{file}: expected a file that can be read, found {error.strerror}; correct that") from error
    if not text.strip():
        raise DataError(f"{file}: expected JSON, found an empty file; see the form in the README")
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = (text.splitlines() or [""])[min(error.lineno, len(text.splitlines())) - 1].strip()[:SHOWN]
        raise DataError(f"{file}: expected JSON, found an error: {error}: {line!r}; correct that line (JSON has no "
                        "comments, and no comma before a closing bracket)") from error  # fmt: skip
    except (ValueError, RecursionError) as error:
        found = "too many brackets in each other" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{file}: expected JSON, found {found}; correct it") from error
    if problems := repeated_keys(text):
        raise DataError.of(problems, str(file))
    return content


def repeated_keys(text: str) -> list[str]:
    """One line for each key that stands twice in one object of a valid JSON text, with both places."""
    problems: list[str] = []
    objects: list[dict[str, int]] = []
    line = 1
    for token in TOKEN.finditer(text):
        line += token["end_of_line"] is not None
        if token["bracket"] == "{":
            objects.append({})
        elif token["bracket"] == "}":
            objects.pop()
        elif token["key"]:
            key, seen = json.loads(token["key"]), objects[-1]
            if key in seen:
                problems.append(f"`{key}`: expected once in an object, found in line {seen[key]} and again in line "
                                f"{line}; remove one")  # fmt: skip
            seen.setdefault(key, line)
    return problems


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no number of JSON")
