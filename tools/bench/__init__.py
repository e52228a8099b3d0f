"""``python -m tools bench NAME``: speed as ratios against a rival in the same run, with the error beside it."""

from .command import bench

__all__ = ["bench"]
