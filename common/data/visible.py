"""The files of a folder that a person sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """What lies in a folder under names of a pattern (``**/*`` for all below it), sorted.

    Passed over, with all below them: names that begin with a dot (``._scan.nii.gz`` of archives and Macs) and
    ``__MACOSX`` of their archives.
    """
    return sorted(path for path in folder.glob(pattern) if not _hidden(path.relative_to(folder).parts))


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)
