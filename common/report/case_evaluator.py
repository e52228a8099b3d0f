"""Scores of whole cases, segmented into label maps on their own grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.utils.enums import CommonKeys as Keys

from common.data.cleanup import describe_cleanup, make_cleanup
from common.data.draws import plain
from common.data.shrink import enlarge, largest_class
from common.data.whole_cases import CaseDataset
from common.engine import ModelRecord, describe_selection, refuse_bad_logits

from .cases import case_rows
from .evaluator import Pictures, ReportEvaluator, Row
from .overlay import save_case_overlay


class CaseEvaluator(ReportEvaluator):
    """Segments whole cases and scores them on the grid of their labels, whatever size the network sees.

    Logits are enlarged linearly; the class of a voxel is that of the highest one, and its channel is the label id. The
    validation metric is computed of label maps ``(1, *native)``.

    Args:
        labels: label id to name.
        test: cases of the report; without any, the report is on the validation.
        cleanup: see :func:`common.data.make_cleanup`.
        kwargs: as :class:`.ReportEvaluator`; ``inferer`` takes ``(1, C, *size)``.
    """

    def __init__(
        self, labels: Mapping[int, str], test: CaseDataset | None, cleanup: Sequence[str], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.labels, self.test = dict(labels), test
        self.cleanup_steps, self.clean = cleanup, make_cleanup(cleanup)

    def validate(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{Keys.PRED: self.segment(case)[None], Keys.LABEL: case["label"][None]}]

    def segment(self, case: Mapping[str, Any]) -> torch.Tensor:
        """The label map ``(*native)`` of a case, uint8."""
        with self.mode(self.network), self.autocast():
            logits = self.inferer(case["image"][None].to(self.state.device), self.network)[0]
        refuse_bad_logits(logits, case["case"])
        enlarged = (enlarge(own[None].float(), case["label"].shape) for own in logits)
        return plain(self.clean(largest_class(enlarged).cpu()))[0]

    def units(self, record: ModelRecord) -> Iterable[Mapping[str, Any]]:
        """Raises ValueError: the model was trained on other labels."""
        if record["labels"] != self.labels:
            raise ValueError(f"labels: the model was trained on {record['labels']}, the data set has {self.labels}; "
                             "number and name them alike in dataset.json, or train again.")  # fmt: skip
        self.split, data = ("test", self.test) if self.test else ("validation", self.data_loader.dataset)
        return _Items(data)

    def score(self, case: Mapping[str, Any], pictures: Pictures) -> list[Row]:
        label_map = self.segment(case).numpy()
        rows = case_rows(
            case["case"], label_map, case["label"].numpy(), self.labels, case["spacing"], case["unit"],
            self.distances, self.distance_unit, scan=case["scan"],
        )  # fmt: skip
        if pictures.wanted():
            dice = {row["structure"]: row["dice"] for row in rows}
            file = pictures.file(case["scan"])
            save_case_overlay(file, case, label_map, self.labels, dice)
            pictures.add(file)
        return rows

    def statements(self, rows: Sequence[Row], record: ModelRecord) -> list[str]:
        if not rows:
            return ["Neither `test` nor `validation` holds a labelled case."]
        cases, scans = (len({tuple(row[key] for key in keys) for row in rows}) for keys in (["case"], ["case", "scan"]))
        images = "" if scans == cases else f" ({scans} images)"
        kept = f", {text}" if (text := describe_cleanup(self.cleanup_steps)) else ""
        checkpoint, *doubt = describe_selection(record, self.split)
        return [f"Scored: `{self.split}`, {cases} case{'s' * (cases > 1)}{images}{kept}. {checkpoint}", *doubt]


class _Items:
    """A map-style data set to iterate over, one item in memory at a time."""

    def __init__(self, data: CaseDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterable[Mapping[str, Any]]:
        return (self.data[i] for i in range(len(self.data)))
