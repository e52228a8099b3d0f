"""Synthetic hearts in the look of short-axis cine MRI: three structures, and atria as bright that are none of them."""

from .anatomy import STRUCTURES, Subject
from .phantom import STACK, VOLUME, Acquisition, draw_scan
from .sample import SPLITS, TRAITS, draw_cases, draw_subjects, write_hearts

__all__ = [
    "SPLITS",
    "STACK",
    "STRUCTURES",
    "TRAITS",
    "VOLUME",
    "Acquisition",
    "Subject",
    "draw_cases",
    "draw_scan",
    "draw_subjects",
    "write_hearts",
]
