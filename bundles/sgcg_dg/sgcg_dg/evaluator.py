"""Validation on the source domains, and the report on the domain left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from common.data import make_cleanup
from common.data.whole_cases import CaseDataset
from common.engine import ModelRecord, describe_selection, refuse_bad_logits
from common.report import Pictures, ReportEvaluator, column_unit, score_structure
from common.report.evaluator import Row
from common.report.markdown import markdown, plain
from common.report.overlay import save_case_overlay

from .data import DomainDataset
from .features import between_domain_scatter, pixel_features, save_tsne
from .protocol import BATCH_NORMS, Protocol, RegionMasks, mean_masks, predict, together
from .regions import Regions

FEATURE_IMAGES = 8  # images of a domain that its features are measured on


class DomainEvaluator(ReportEvaluator):
    """Scores regions of whole cases on their own grid: source cases during training, the left-out domain in the report.

    Each row also has the scores of the mean training mask (``prior_dice``, ...), the least that a method must beat. A
    last row without structure holds ``scatter``, how far apart the features of the source domains lie, and
    ``scatter_all``, the same with the target's; each where there are two domains or more to compare. ``features.png``
    shows them.

    Args:
        regions: name to label ids.
        labels: label id to name.
        test: cases of the domain left out; without any, the report is on the source validation.
        training: gives the mean training mask and the sources' features.
        cleanup: of each region, see :func:`common.data.make_cleanup`.
        protocol: arguments of :class:`~sgcg_dg.protocol.Protocol`.
        batch_norms: columns of the report, of ``eval`` and ``batch``.
        kwargs: as :class:`common.report.ReportEvaluator`.

    Raises:
        ValueError: unknown ``batch_norms``.
    """

    by = ("domain", "bn", "structure")

    def __init__(
        self,
        regions: Mapping[str, Sequence[int]],
        labels: Mapping[int, str],
        test: CaseDataset,
        training: DomainDataset,
        cleanup: Sequence[str],
        protocol: Mapping[str, Any] | None = None,
        batch_norms: Sequence[str] = BATCH_NORMS,
        **kwargs: Any,
    ) -> None:
        batch_norms = ensure_tuple(batch_norms)  # the command line makes a name of one
        unknown = [name for name in batch_norms if name not in BATCH_NORMS]
        if unknown:
            raise ValueError(f"unknown batch norms {unknown}; there are {list(BATCH_NORMS)}.")
        super().__init__(**kwargs)
        self.regions, self.labels = Regions(regions, labels), dict(labels)
        self.test, self.training = test, training
        self.clean, self.protocol = make_cleanup(cleanup), Protocol(**(protocol or {}))
        self.batch_norms = list(batch_norms)

    def validate(self, case: Mapping[str, Any]) -> list[dict[str, Any]]:
        (masks,) = self.segment([case], "eval")
        truth = self.regions.masks(case["label"][None, None])[0]
        return [{Keys.PRED: torch.from_numpy(np.stack(masks)), Keys.LABEL: truth}]

    def segment(self, cases: Sequence[dict], bn: str) -> list[RegionMasks]:
        """Region masks ``(*native)`` of the cases of one group."""
        with torch.no_grad(), self.autocast():
            logits = predict(self.network, cases, bn, self.state.device)
        for own, case in zip(logits, cases, strict=True):
            refuse_bad_logits(own, case["case"])
        return [RegionMasks(own, case, self.protocol, self.clean) for own, case in zip(logits, cases, strict=True)]

    def units(self, record: ModelRecord) -> Iterable[list[dict]]:
        """Groups of cases: those whose statistics a batch norm of ``batch`` shares."""
        data = self.test if len(self.test) else self.data_loader.dataset
        self.cases = [data[i] for i in tqdm(range(len(data)), desc="reading", unit="case", disable=None)]
        self.prior = mean_masks(self.training.labels, self.regions.masks).float()
        return list(together(self.cases))

    def score(self, group: list[dict], pictures: Pictures) -> list[Row]:
        rows: list[Row] = []
        for bn in self.batch_norms:
            for case, masks in zip(group, self.segment(group, bn), strict=True):
                own = self.case_rows(case, masks, bn)
                rows += own
                if bn == self.batch_norms[0] and pictures.wanted():
                    dice = {row["structure"]: row["dice"] for row in own}
                    label_map = self.regions.label_map(masks).numpy()
                    file = pictures.file(case["scan"])
                    save_case_overlay(file, case, label_map, self.labels, dice)
                    pictures.add(file)
        return rows

    def case_rows(self, case: dict, masks: Sequence[np.ndarray], bn: str) -> list[Row]:
        """A row for each region of a case, one region in memory at a time."""
        unit, rows = column_unit(case["unit"], self.distance_unit), []
        for name, prior, mask in zip(self.regions.names, self.prior, masks, strict=True):
            truth = self.regions.mask(case["label"], name).numpy()
            scores, floor = (self._score(found, truth, case) for found in (mask, _prior_of(case, prior)))
            priors = {f"prior_{key}": floor[key] for key in ("dice", f"hd95_{unit}", f"asd_{unit}")}
            names = {"case": case["case"], "scan": case["scan"], "domain": case["domain"], "bn": bn, "structure": name}
            rows.append({**names, **scores, **priors})
        return rows

    def _score(self, mask: np.ndarray, truth: np.ndarray, case: dict) -> dict[str, Any]:
        unit, missing = column_unit(case["unit"], self.distance_unit), self.protocol.empty_distance
        scores = score_structure(mask, truth, case["spacing"], self.distances, self.distance_unit, case["unit"],
                                 self.protocol.symmetric)  # fmt: skip
        if missing is not None and scores["status"] == "missed" and self.distances:
            scores |= {f"hd95_{unit}": missing, f"asd_{unit}": missing}
        return scores

    def rows_of_the_run(self, pictures: int, folder: Path) -> list[Row]:
        self.scatter = self.feature_report(folder if pictures else None)
        domain = self.cases[0]["domain"] if self.cases else ""
        whole = {"case": "features", "domain": domain, "bn": "eval", "structure": "", **self.scatter}
        return [whole] if self.scatter else []

    def feature_report(self, folder: Path | None) -> dict[str, float]:
        """Scatter of the features between the sources, and with the target; draws them into a folder, if any."""
        rng, found = np.random.default_rng(0), {}
        for number, name in enumerate(self.training.names):
            index = rng.permutation(self.training.members[number])[:FEATURE_IMAGES]
            images = torch.stack([self.training.images[i] for i in index]).to(self.state.device)
            labels = torch.stack([self.training.labels[i] for i in index])
            found[name] = pixel_features(self.network, images, labels, 4000, rng)
        sources = list(found.values())
        target = [case for case in self.cases if case["domain"] not in found and case["image"].ndim == 3]
        if target:
            chosen = [target[i] for i in rng.permutation(len(target))[:FEATURE_IMAGES]]
            images = torch.stack([case["image"] for case in chosen]).to(self.state.device)
            labels = [F.interpolate(case["label"][None, None].float(), size=images.shape[2:], mode="nearest-exact")
                      for case in chosen]  # fmt: skip
            name = f"{chosen[0]['domain']} (target)"
            found[name] = pixel_features(self.network, images, torch.cat(labels), 4000, rng)
        if folder is not None:
            save_tsne(folder / "features.png", found, self.labels)
        classes = 1 + max(self.labels)
        result = {"scatter_all": between_domain_scatter(list(found.values()), classes)} if target else {}
        return result | ({"scatter": between_domain_scatter(sources, classes)} if len(sources) > 1 else {})

    def cautions(self, rows: Sequence[Row], record: ModelRecord) -> list[str]:
        known = sorted({row["domain"] for row in rows} & set(record["source_domains"]))
        if not known or not len(self.test):
            return []
        return [f"The model was trained on {plain(', '.join(known))}, which is scored here: figures of it say nothing "
                "of a domain that it has never seen."]  # fmt: skip

    def statements(self, rows: Sequence[Row], record: ModelRecord) -> list[str]:
        if not rows:
            return ["There is no target domain, and no domain has images enough for a validation."]
        values = {name: [row["prior_dice"] for row in rows if row["structure"] == name] for name in self.regions.names}
        floor = [[name, f"{np.nanmean(own):.3f}"] for name, own in values.items()]
        names = {"scatter": "source domains", "scatter_all": "source and target domains"}
        lines = [markdown([["structure", "Dice of the mean training mask"], *floor])]
        lines += [f"scatter of the features between {names[key]}: {value:.4f}" for key, value in self.scatter.items()]
        return lines + describe_selection(record, "target" if len(self.test) else "validation")


def _prior_of(case: dict, prior: torch.Tensor) -> np.ndarray:
    """The mean training mask of a region on the grid of a case."""
    size = tuple(case["label"].shape)
    if prior.ndim < len(size):  # the mask of a slice, for every slice
        prior = prior[..., None].expand(*prior.shape, size[-1])
    return F.interpolate(prior[None, None], size=size, mode="nearest-exact")[0, 0].numpy() > 0
