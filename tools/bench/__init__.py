"""``python -m tools bench NAME``: speed as ratios against a rival in the same run, the difference of results beside it."""

from .command import bench

__all__ = ["bench"]
