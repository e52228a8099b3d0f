"""The order in which people count: scan_2 before scan_10."""

from __future__ import annotations

import re


def natural_key(name: str) -> list:
    """Sort key of a case id: numbers in it are compared as numbers."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]
