"""Validation during a training, and the report on a saved model: the frame that the bundles' evaluators fill."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from tqdm import tqdm

from common.data.temporary import replaced
from common.engine import ModelRecord, describe_selection, load_model, use_bfloat16
from common.engine.report_owner import claim_report, refuse_another_report

from .cases import check_distance_unit, format_table, summarise
from .cases_csv import write_cases_csv
from .file_names import FileNames

logger = logging.getLogger(__name__)
Row = dict[str, Any]


PICTURES = ".pictures.json"  # in the folder of a report: the names of those it drew


class Pictures:
    """Where the pictures of a report go, and how many more are wanted; those of the report before are deleted."""

    def __init__(self, folder: Path, wanted: int) -> None:
        self.folder, self.left = folder, wanted
        self.drawn: list[str] = []
        self.names = FileNames()
        listed = folder / PICTURES
        for name in json.loads(listed.read_text()) if listed.is_file() else []:
            (folder / Path(name).name).unlink(missing_ok=True)
        listed.unlink(missing_ok=True)

    def file(self, *names: str) -> Path:
        """Where the picture of what is called so goes, a file of its own."""
        return self.folder / f"overlay_{self.names(*names)}.png"

    def add(self, file: Path) -> None:
        """A picture that was drawn."""
        self.drawn.append(file.name)
        with replaced(self.folder / PICTURES) as part:
            part.write_text(json.dumps(self.drawn))

    def wanted(self) -> bool:
        """Whether to draw one more; it is counted."""
        self.left -= 1
        return self.left >= 0


class ReportEvaluator(SupervisedEvaluator):
    """MONAI's evaluator for the validation, and :meth:`report`.

    A subclass says what is scored together (:meth:`units`), how (:meth:`score`), what the validation metric is of
    (:meth:`validate`), and what stands below the table (:meth:`statements`).

    Args:
        model: what is used, the section ``model`` of train.json; a saved model that differs is told of in one line.
        amp: bfloat16 autocast; see :func:`common.engine.use_bfloat16`.
        distances: False leaves HD95 and ASD out, which saves most of the time of a report.
        distance_unit: ``mm`` (photographs: pixels) or ``voxels``.
        kwargs: as :class:`monai.engines.SupervisedEvaluator`; ``val_data_loader`` gives one case at a time.

    Raises:
        ValueError: unknown ``distance_unit``.
    """

    by: Sequence[str] = ("structure",)  # columns that make a line of the table

    def __init__(
        self, model: Mapping[str, Any], amp: bool = False, distances: bool = True, distance_unit: str = "mm",
        **kwargs: Any,
    ) -> None:
        super().__init__(decollate=False, **kwargs)
        self.model = model
        self.distances, self.distance_unit = distances, check_distance_unit(distance_unit)
        self.bfloat16 = use_bfloat16(amp, self.state.device)

    def _iteration(self, engine: ReportEvaluator, batchdata: Mapping[str, Any]) -> list[dict[str, Any]]:
        engine.state.output = engine.validate(batchdata)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def autocast(self) -> torch.autocast:
        """bfloat16 where it is asked for and pays."""
        return torch.autocast(self.state.device.type, torch.bfloat16, enabled=self.bfloat16)

    def report(self, model_file: str, output_dir: str, pictures: int = 4) -> list[Row]:
        """Score the saved model; writes ``cases.csv``, ``summary.md`` and pictures ``overlay_*.png``.

        Args:
            pictures: how many are drawn.

        Returns:
            the rows of ``cases.csv``.

        Raises:
            FileNotFoundError: there is no model, or no ``model.json`` beside it.
            ValueError: either is damaged, or of another network or other labels; or the folder holds the report of
                another model.
        """
        folder = Path(output_dir)
        refuse_another_report(folder, model_file)
        record = load_model(self.network, model_file, self.model)
        units, shown = self.units(record), Pictures(folder, pictures)
        rows = [row for unit in tqdm(units, desc="scoring", disable=None) for row in self.score(unit, shown)]
        folder.mkdir(parents=True, exist_ok=True)
        claim_report(folder, model_file)
        write_cases_csv([*rows, *self.rows_of_the_run(pictures, folder)], folder / "cases.csv")
        cautions = self.cautions(rows, record)
        blocks = [format_table(summarise(rows, by=self.by))] if rows else ["Nothing was scored."]
        text = "\n\n".join([*cautions, *blocks, *self.statements(rows, record)])
        with replaced(folder / "summary.md") as part:
            part.write_text(f"{text}\n", encoding="utf-8")
        logger.info("\n%s\n\ncases: %s\npictures: %s", text, folder / "cases.csv", folder / "*.png")
        for caution in cautions:
            logger.warning("%s", caution)
        return rows

    def validate(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the validation metric is computed of: ``pred`` and ``label``, one entry for each that counts."""
        raise NotImplementedError

    def units(self, record: ModelRecord) -> Iterable[Any]:
        """What is scored, in parts that go through the network together."""
        raise NotImplementedError

    def score(self, unit: Any, pictures: Pictures) -> list[Row]:
        """The rows of a unit; draws what is still wanted."""
        raise NotImplementedError

    def rows_of_the_run(self, pictures: int, folder: Path) -> list[Row]:
        """Rows of no case: what is measured once."""
        return []

    def cautions(self, rows: Sequence[Row], record: ModelRecord) -> list[str]:
        """Why the figures must not be taken for what they seem: above the table, and a warning in the log."""
        return []

    def statements(self, rows: Sequence[Row], record: ModelRecord) -> list[str]:
        """What stands below the table."""
        return describe_selection(record, "validation")
