"""Whole scans segmented from annotated ones, under the protocols of the field."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.utils import ensure_tuple
from monai.utils.enums import CommonKeys as Keys

from common.engine import ModelRecord, describe_selection
from common.engine.unwrap import unwrap
from common.report import Pictures, ReportEvaluator, save_overlay, score_structure
from common.report.evaluator import Row
from common.report.markdown import markdown

from .adaptation import Adaptation
from .network import FewShotNetwork
from .protocol import ADAPTED, PROTOCOLS, SupportBank, copy_mask, embed_slices, predict, predict_adapted


class FewShotEvaluator(ReportEvaluator):
    """Segments whole query scans from annotated scans, one support scan at a time, and scores them in 3-D.

    An item is a query scan (see :class:`~apscl_fewshot.data.QueryDataset`). ``engine.state.output`` is a list with one
    entry for every novel label and support scan: binary ``pred`` and ``label`` ``(1, H, W, D)`` and what they are.

    Args:
        protocols: which of ``parts3``, ``ep2``, ``no_oracle``, ``adapted`` to score.
        pool_supports: all support scans in one bank; otherwise each in turn, which shows the spread.
        adaptation: how the network goes on learning from the annotated scans for ``adapted``.
        kwargs: as :class:`common.report.ReportEvaluator`.

    Each row of the report also has the Dice of the floor, the support's mask copied to the same slices (``copy_dice``).

    Raises:
        ValueError: unknown ``protocols``.
    """

    by = ("protocol", "structure")

    def __init__(
        self,
        protocols: Sequence[str] = ("parts3", "ep2", "no_oracle"),
        pool_supports: bool = False,
        adaptation: Adaptation | None = None,
        **kwargs: Any,
    ) -> None:
        protocols = ensure_tuple(protocols)  # the command line makes a name of one
        unknown = [name for name in protocols if name not in PROTOCOLS]
        if unknown:
            raise ValueError(f"unknown protocols {unknown}; there are {list(PROTOCOLS)}.")
        if ADAPTED in protocols and adaptation is None:
            raise ValueError(f"protocols: expected `adaptation` for {ADAPTED}, found none; give it, or leave it out.")
        super().__init__(**kwargs)
        self.protocols, self.pool_supports, self.adaptation = list(protocols), pool_supports, adaptation
        self._banks: dict[tuple, Any] = {}
        self.add_event_handler(Events.STARTED, lambda engine: engine._banks.clear())  # the network has changed

    def validate(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        quick = [name for name in self.protocols if name != ADAPTED]  # validation is no time to train
        return self.segment_query(query, quick[:1] or ["no_oracle"])

    def segment_query(self, query: dict[str, Any], protocols: Sequence[str]) -> list[dict[str, Any]]:
        """An entry for every protocol, novel label and bank of one query scan, which is encoded once."""
        return list(self.entries(query, protocols))

    @torch.no_grad()
    def entries(self, query: dict[str, Any], protocols: Sequence[str]) -> Iterator[dict[str, Any]]:
        """As :meth:`segment_query`, one by one: memory does not grow with the number of labels."""
        self.network.eval()
        supports = query["support"]
        with self.autocast():
            embedded = embed_slices(self.network, query["image"].to(self.state.device))
        for scans in [supports] if self.pool_supports else [[support] for support in supports]:
            for protocol in protocols:
                with self.autocast():
                    adapted = self._adapted(query, scans) if protocol == ADAPTED else None
                for label in query["novel_labels"]:
                    yield self._segment(query, embedded, scans, protocol, label, adapted)

    def _segment(
        self, query: dict, embedded: tuple, scans: list[dict], protocol: str, label: int, adapted: torch.Tensor | None
    ) -> dict[str, Any]:
        truth, first = query["label"] == label, 0
        predicted = copied = torch.zeros_like(truth)
        if protocol != "parts3" or truth.any():  # parts3 needs the organ's extent; without, the row reads "absent"
            if adapted is None:
                place = query["label"], label, protocol, query["case"]
                bank = self._bank(scans, list(query["novel_labels"]), PROTOCOLS[protocol])
                with self.autocast():
                    predicted, truth, first = predict(self.network, bank, embedded, *place)
            else:
                predicted = adapted == list(query["novel_labels"]).index(label) + 1
            copied = copy_mask(scans[0], query["label"], label, protocol)
        volumes = {Keys.PRED: predicted.cpu(), Keys.LABEL: truth, "copy": copied}
        names = {
            "case": query["case"],
            "support": "+".join(scan["case"] for scan in scans),
            "protocol": protocol,
            "structure": query["novel_labels"][label],
        }
        return {k: v.permute(1, 2, 0)[None].float() for k, v in volumes.items()} | names | {"first": first}

    def _bank(self, scans: list[dict], labels: list[int], parts: int) -> SupportBank:
        key = (tuple(scan["scan"] for scan in scans), tuple(labels), parts)
        if key not in self._banks:
            with self.autocast():
                self._banks[key] = SupportBank(self.network, scans, labels, parts)
        return self._banks[key]

    def _adapted(self, query: dict, scans: list[dict]) -> torch.Tensor:
        """Classes ``(D, H', W')`` of a query by a copy of the network that has learned from the scans."""
        labels = list(query["novel_labels"])
        key = (tuple(scan["scan"] for scan in scans), tuple(labels), ADAPTED)
        if key not in self._banks:
            network: FewShotNetwork = copy.deepcopy(unwrap(self.network))
            self._banks[key] = network, *self.adaptation(network, scans, labels)
        images, size = query["image"].to(self.state.device), query["label"].shape[1:]
        return predict_adapted(*self._banks[key], images, size, query["case"])

    def units(self, record: ModelRecord) -> Iterable[dict[str, Any]]:
        self._banks.clear()
        return self.data_loader

    def score(self, query: dict[str, Any], pictures: Pictures) -> list[Row]:
        rows = []
        for entry in self.entries(query, self.protocols):
            rows.append(self.entry_row(entry, query))
            if entry["protocol"] == self.protocols[0] and pictures.wanted():
                file = pictures.file(entry["case"], entry["structure"], entry["support"])
                draw_entry(file, entry, query, rows[-1]["dice"])
                pictures.add(file)
        return rows

    def entry_row(self, entry: dict[str, Any], query: dict[str, Any]) -> Row:
        """One line of the report for one prediction."""
        predicted, truth, copied = (entry[key][0].cpu().numpy() > 0 for key in (Keys.PRED, Keys.LABEL, "copy"))
        names = {key: entry[key] for key in ("case", "support", "protocol", "structure")}
        copy = score_structure(copied, truth, query["spacing"], distances=False)["dice"]
        scores = score_structure(predicted, truth, query["spacing"], self.distances, self.distance_unit)
        return {**names, **scores, "copy_dice": copy}

    def statements(self, rows: Sequence[Row], record: ModelRecord) -> list[str]:
        return [format_floor(rows), *describe_selection(record, "validation")]


def draw_entry(file: Path, entry: dict[str, Any], query: dict[str, Any], dice: float) -> None:
    name = f"{entry['structure']} of {entry['case']} from {entry['support']} ({entry['protocol']})"
    depth = entry[Keys.PRED].shape[-1]
    image = query["native"][..., entry["first"] : entry["first"] + depth]
    masks = [entry[key][0].cpu().numpy().astype(np.uint8) for key in (Keys.LABEL, Keys.PRED)]
    save_overlay(
        file, image.numpy(), *masks, {1: entry["structure"]}, query["affine"], name, {entry["structure"]: dice}
    )


def format_floor(rows: Sequence[Row]) -> str:
    """The floor under the table: Dice of the copied support mask, by protocol and structure."""
    lines = [["protocol", "structure", "Dice of the copied support mask"]]
    for key in dict.fromkeys((row["protocol"], row["structure"]) for row in rows):
        values = [row["copy_dice"] for row in rows if (row["protocol"], row["structure"]) == key]
        lines.append([*key, f"{np.nanmean(values):.3f}"])
    return markdown(lines)
