"""``python -m tools compare BUNDLE --dataset_dir DIR``: a method and its rivals under one protocol."""

from .command import compare

__all__ = ["compare"]
