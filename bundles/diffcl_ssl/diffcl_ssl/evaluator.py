"""How a network is scored: whole cases on their own grid, as label maps."""

from common.report import CaseEvaluator

__all__ = ["CaseEvaluator"]
