"""The bundles of the collection, for the tools that take the name of one."""

from __future__ import annotations

import sys
from pathlib import Path

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"


def home_of(bundle: str) -> Path:
    """The folder of a bundle.

    Raises:
        SystemExit: there is none of that name; says which there are.
    """
    names = sorted(file.parents[1].name for file in BUNDLES.glob("*/configs/train.json"))
    if bundle not in names:
        raise SystemExit(f"bundle: expected one of {', '.join(names)}, found {bundle}")
    return BUNDLES / bundle


def put_on_path(home: Path) -> None:
    """Import the package of this bundle, and not an installed one."""
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))
