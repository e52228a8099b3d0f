"""What a run reports: scores of each case, their table, and pictures."""

from .case_evaluator import CaseEvaluator
from .cases import case_rows, column_unit, format_table, score_structure, summarise
from .cases_csv import read_cases_csv, write_cases_csv
from .evaluator import Pictures, ReportEvaluator
from .overlay import save_overlay
from .overlay_handler import OverlayHandler

__all__ = [
    "CaseEvaluator",
    "OverlayHandler",
    "Pictures",
    "ReportEvaluator",
    "case_rows",
    "column_unit",
    "format_table",
    "read_cases_csv",
    "save_overlay",
    "score_structure",
    "summarise",
    "write_cases_csv",
]
