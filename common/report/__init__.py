"""What a run reports: scores of each case, their table, and pictures."""

from .cases import case_rows, check_distances, distance_unit, format_table, score_structure, summarise, write_cases_csv
from .overlay import save_overlay
from .overlay_handler import OverlayHandler

__all__ = [
    "OverlayHandler",
    "case_rows",
    "check_distances",
    "distance_unit",
    "format_table",
    "save_overlay",
    "score_structure",
    "summarise",
    "write_cases_csv",
]
