"""Validation and report of whole cases on their own grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.transforms import Compose, KeepLargestConnectedComponent
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from common.data.draws import plain
from common.data.shrink import enlarge
from common.data.whole_cases import CaseDataset
from common.engine import describe_selection, read_record, use_bfloat16
from common.networks.weights import load_weights
from common.report import case_rows, check_distances, format_table, summarise, write_cases_csv
from common.report.overlay import save_case_overlay

logger = logging.getLogger(__name__)

# of a largest_component: what the summary says, and whether each of its filters takes the structures one by one
FILTERS = {
    True: (", of each structure its largest component", [True]),
    "together": (", of all structures together and then of each the largest component", [False, True]),
    False: ("", []),
}


def component_filter(largest_component: bool | str = True) -> Compose:
    """The filter that a label map ``(1, *spatial)`` passes at the end, the same for scores and for inference.

    Args:
        largest_component: True keeps the largest connected component of each structure; ``together`` first that of all
            structures as one, for those that touch: a stray that is larger than its structure goes then; False keeps
            all.

    Raises:
        ValueError: another ``largest_component``.
    """
    if largest_component not in FILTERS:
        raise ValueError(f"largest_component must be true, false or 'together', got {largest_component!r}.")
    _, independents = FILTERS[largest_component]
    return Compose([KeepLargestConnectedComponent(is_onehot=False, independent=each) for each in independents])


class CaseEvaluator(SupervisedEvaluator):
    """Segments whole cases and scores them on the grid of their labels, whatever size the network sees.

    Logits are enlarged linearly; the class of a voxel is that of the highest one, and its channel is the label id.
    ``engine.state.output`` has one entry: ``pred`` and ``label``, one-hot without background ``(K - 1, *native)``.

    Args:
        labels: label id to name.
        test: cases of the report; without any, the report is on the validation.
        largest_component: see :func:`component_filter`.
        amp: bfloat16 autocast; see :func:`common.engine.use_bfloat16`.
        distances: HD95 and ASD in mm (photographs: pixels); "voxels" gives them in voxels, False leaves them out, which
            saves most of the time of a report.
        kwargs: as :class:`monai.engines.SupervisedEvaluator`; ``val_data_loader`` gives one case of a
            :class:`common.data.whole_cases.CaseDataset` at a time, ``inferer`` takes ``(1, C, *size)``.

    Raises:
        ValueError: an unknown ``largest_component``, or ``distances``.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        test: CaseDataset | None,
        largest_component: bool | str = True,
        amp: bool = False,
        distances: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(decollate=False, **kwargs)
        self.distances = check_distances(distances)
        self.labels, self.test, self.bfloat16 = dict(labels), test, use_bfloat16(amp, self.state.device)
        self.keep = component_filter(largest_component)
        self.kept, _ = FILTERS[largest_component]

    def _iteration(self, engine: CaseEvaluator, batchdata: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
        maps = {Keys.PRED: engine.segment(batchdata), Keys.LABEL: batchdata["label"]}
        engine.state.output = [{key: torch.stack([label_map == label for label in engine.labels]).float()
                                for key, label_map in maps.items()}]  # fmt: skip
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def segment(self, case: Mapping[str, Any]) -> torch.Tensor:
        """The label map ``(*native)`` of a case, uint8."""
        device = self.state.device
        with self.mode(self.network), torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.inferer(case["image"][None].to(device), self.network)[0]
        label_map = enlarge(logits.float(), case["label"].shape).max(0, keepdim=True).indices.to("cpu", torch.uint8)
        return plain(self.keep(label_map))[0]

    def report(self, model_file: str, output_dir: str, pictures: int = 4) -> list[dict[str, Any]]:
        """Score the saved model; writes ``cases.csv``, ``summary.md`` and overlay pictures of the first cases.

        Args:
            pictures: how many cases are drawn.

        Returns:
            a row for each structure of each image.

        Raises:
            FileNotFoundError: there is no model.
            ValueError: it is damaged, of another network, or was trained on other labels.
        """
        record = read_record(model_file)
        labels = {int(label): name for label, name in record["settings"].get("labels", self.labels).items()}
        if labels != self.labels:
            raise ValueError(f"labels: the model was trained on {labels}, the data set has {self.labels}; number and "
                             "name them alike in dataset.json, or train again.")  # fmt: skip
        load_weights(self.network, model_file)
        folder = Path(output_dir)
        for old in folder.glob("overlay_*.png"):
            old.unlink()
        split, data = ("test", self.test) if self.test else ("validation", self.data_loader.dataset)
        rows: list[dict[str, Any]] = []
        for number in tqdm(range(len(data)), desc="scoring", unit="image", disable=None):
            case = data[number]
            rows += self._score(case, folder if number < pictures else None)
        write_cases_csv(rows, folder / "cases.csv")
        text = "\n\n".join([format_table(summarise(rows)), *self._statements(rows, split, record)])
        (folder / "summary.md").write_text(f"{text}\n")
        logger.info("\n%s\n\ncases: %s\npictures: %s", text, folder / "cases.csv", folder / "overlay_*.png")
        return rows

    def _score(self, case: Mapping[str, Any], folder: Path | None) -> list[dict[str, Any]]:
        """The rows of a case; its picture goes into the folder, if any."""
        label_map = self.segment(case).numpy()
        rows = case_rows(case["case"], label_map, case["label"].numpy(), self.labels, case["spacing"], case["unit"],
                         distances=self.distances, scan=case["scan"])  # fmt: skip
        if folder is not None:
            dice = {row["structure"]: row["dice"] for row in rows}
            save_case_overlay(folder, case, label_map, self.labels, dice)
        return rows

    def _statements(self, rows: Sequence[Mapping[str, Any]], split: str, record: Mapping[str, Any]) -> list[str]:
        """What was scored, and how that came about."""
        if not rows:
            return ["Nothing was scored: neither `test` nor `validation` holds a labelled case."]
        cases, scans = (len({tuple(row[key] for key in keys) for row in rows}) for keys in (["case"], ["case", "scan"]))
        images = "" if scans == cases else f" ({scans} images)"
        checkpoint, *doubt = describe_selection(record, split)
        return [f"Scored: `{split}`, {cases} case{'s' * (cases > 1)}{images}{self.kept}. {checkpoint}", *doubt]
