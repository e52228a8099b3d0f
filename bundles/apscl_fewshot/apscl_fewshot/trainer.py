"""Evaluation of whole scans under the protocols of the field; training (paper section 4.2) is MONAI's own loop.

A step draws a batch of episodes, and :class:`common.engine.ObjectiveTrainer` follows the gradient of
:class:`~apscl_fewshot.objective.Objective` over them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import ensure_tuple
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from common.engine import describe_selection, read_record, use_bfloat16
from common.networks.weights import load_weights
from common.report import check_distances, format_table, save_overlay, score_structure, summarise, write_cases_csv

from .protocol import PROTOCOLS, SupportBank, copy_mask, embed_slices, predict

logger = logging.getLogger(__name__)


class FewShotEvaluator(SupervisedEvaluator):
    """Segments whole query scans from annotated scans, one support scan at a time, and scores them in 3-D.

    An item is a query scan (see :class:`~apscl_fewshot.data.QueryDataset`). ``engine.state.output`` is a list with one
    entry for every novel label and support scan: binary ``pred`` and ``label`` ``(1, H, W, D)`` and what they are.

    Args:
        protocols: which of ``parts3``, ``ep2``, ``no_oracle`` to score; the first is the key metric's.
        shots: support scans in a bank: 1 takes each in turn and shows the spread, 0 puts all in one bank.
        distances: HD95 and ASD in mm; "voxels" gives them in voxels, False leaves them out, which
            saves most of the time of a report.
        kwargs: as :class:`monai.engines.SupervisedEvaluator`.

    Raises:
        ValueError: unknown ``distances``.
    """

    def __init__(
        self,
        protocols: Sequence[str] = ("parts3", "ep2", "no_oracle"),
        shots: int = 1,
        amp: bool = False,
        distances: bool | str = True,
        **kwargs: Any,
    ) -> None:
        protocols = ensure_tuple(protocols)  # the command line makes a name of one
        unknown = [name for name in protocols if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"unknown protocols {unknown}; there are {list(PROTOCOLS)}.")
        super().__init__(decollate=False, **kwargs)
        self.protocols = list(protocols)
        self.shots, self.distances = shots, check_distances(distances)
        self.bfloat16 = use_bfloat16(amp, self.state.device)
        self._banks: dict[tuple, SupportBank] = {}
        self.add_event_handler(Events.STARTED, lambda engine: engine._banks.clear())  # the network has changed

    def _iteration(self, engine: FewShotEvaluator, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
        engine.state.output = engine.segment_query(batchdata, engine.protocols[:1])
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def segment_query(self, query: dict[str, Any], protocols: Sequence[str]) -> list[dict[str, Any]]:
        """An entry for every protocol, novel label and bank of one query scan, which is encoded once."""
        self.network.eval()
        device, supports = self.state.device, query["support"]
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            embedded = embed_slices(self.network, query["image"].to(device))
            banks = [supports] if self.shots == 0 else [[support] for support in supports]
            pairs = [(scans, protocol) for scans in banks for protocol in protocols]
            return [entry for scans, protocol in pairs for entry in self._segment(query, embedded, scans, protocol)]

    def _segment(self, query: dict, embedded: tuple, scans: list[dict], protocol: str) -> list[dict[str, Any]]:
        labels, support = list(query["novel_labels"]), "+".join(scan["case"] for scan in scans)
        parts = PROTOCOLS[protocol]
        key = (tuple(scan["file"] for scan in scans), tuple(labels), parts)
        if key not in self._banks:
            self._banks[key] = SupportBank(self.network, scans, labels, parts)
        entries = []
        for label in labels:
            truth, first = query["label"] == label, 0
            predicted = copied = torch.zeros_like(truth)
            if protocol != "parts3" or truth.any():  # parts3 needs the organ's extent; without, the row reads "absent"
                bank = self._banks[key]
                predicted, truth, first = predict(self.network, bank, embedded, query["label"], label, protocol)
                copied = copy_mask(scans[0], query["label"], label, protocol)
            volumes = {Keys.PRED: predicted.cpu(), Keys.LABEL: truth, "copy": copied}
            names = {
                "case": query["case"],
                "support": support,
                "protocol": protocol,
                "structure": query["novel_labels"][label],
            }
            entries.append({k: v.permute(1, 2, 0)[None].float() for k, v in volumes.items()} | names | {"first": first})
        return entries

    def report(self, model_file: str, output_dir: str, pictures: int = 4) -> list[dict[str, Any]]:
        """Score the saved model under every protocol; writes ``cases.csv``, ``summary.md`` and overlay pictures.

        Each row also has the Dice of the floor, the support's mask copied to the same slices (``copy_dice``).
        """
        load_weights(self.network, model_file)
        self._banks.clear()
        rows: list[dict[str, Any]] = []
        folder = Path(output_dir)
        for old in folder.glob("overlay_*.png"):
            old.unlink()
        drawn = 0
        for query in tqdm(self.data_loader, desc="scoring", unit="scan", disable=None):
            for entry in self.segment_query(query, self.protocols):
                rows.append(entry_row(entry, query, self.distances))
                if entry["protocol"] == self.protocols[0] and drawn < pictures:
                    draw_entry(entry, query, rows[-1]["dice"], folder)
                    drawn += 1
        write_cases_csv(rows, folder / "cases.csv")
        table = format_table(summarise(rows, by=("protocol", "structure")))
        floor = format_floor(rows)
        text = "\n\n".join([table, floor, *describe_selection(read_record(model_file), "validation")])
        (folder / "summary.md").write_text(f"{text}\n")
        logger.info("\n%s\n\ncases: %s\npictures: %s", text, folder / "cases.csv", folder / "overlay_*.png")
        return rows


def entry_row(entry: dict[str, Any], query: dict[str, Any], distances: bool | str) -> dict[str, Any]:
    """One line of the report for one prediction of a :class:`FewShotEvaluator`."""
    predicted, truth, copied = (entry[key][0].cpu().numpy() > 0 for key in (Keys.PRED, Keys.LABEL, "copy"))
    names = {key: entry[key] for key in ("case", "support", "protocol", "structure")}
    copy = score_structure(copied, truth, query["spacing"], distances=False)["dice"]
    return {**names, **score_structure(predicted, truth, query["spacing"], distances), "copy_dice": copy}


def draw_entry(entry: dict[str, Any], query: dict[str, Any], dice: float, folder: Path) -> None:
    name = f"{entry['structure']} of {entry['case']} from {entry['support']} ({entry['protocol']})"
    file = folder / f"overlay_{entry['case']}_{entry['structure']}_{entry['support']}.png".replace(" ", "_")
    depth = entry[Keys.PRED].shape[-1]
    image = query["native"][..., entry["first"] : entry["first"] + depth]
    masks = [entry[key][0].cpu().numpy().astype(np.uint8) for key in (Keys.LABEL, Keys.PRED)]
    save_overlay(
        file, image.numpy(), *masks, {1: entry["structure"]}, query["affine"], name, {entry["structure"]: dice}
    )


def format_floor(rows: Sequence[dict[str, Any]]) -> str:
    """The floor under the table: Dice of the copied support mask, by protocol and structure."""
    lines = ["| protocol | structure | Dice of the copied support mask |", "|---|---|---|"]
    for key in dict.fromkeys((row["protocol"], row["structure"]) for row in rows):
        values = [row["copy_dice"] for row in rows if (row["protocol"], row["structure"]) == key]
        lines.append(f"| {key[0]} | {key[1]} | {np.nanmean(values):.3f} |")
    return "\n".join(lines)
