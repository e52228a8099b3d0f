"""Validation on the source domains, and the report on the domain left out.

Training follows the gradient of :class:`~sgcg_dg.objective.GeneralisationObjective` in
:class:`common.engine.ObjectiveTrainer`: Adam with polynomial decay, the encoder at half the rate, every domain in every
batch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils import ensure_tuple
from monai.utils.enums import CommonKeys as Keys
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from common.data.whole_cases import CaseDataset
from common.engine import describe_selection, read_record, use_bfloat16
from common.networks.weights import load_weights
from common.report import check_distances, distance_unit, format_table, score_structure, summarise, write_cases_csv
from common.report.overlay import save_case_overlay

from .data import DomainDataset
from .features import between_domain_scatter, pixel_features, save_tsne
from .protocol import BATCH_NORMS, Protocol, mean_masks, predict, to_masks, together
from .regions import Regions

logger = logging.getLogger(__name__)
FEATURE_IMAGES = 8  # images of a domain that its features are measured on


class DomainEvaluator(SupervisedEvaluator):
    """Scores regions of whole cases on their own grid: source cases during training, the left-out domain in the report.

    Args:
        regions: name to label ids.
        labels: label id to name.
        test: cases of the domain left out; without any, the report is on the source validation.
        training: gives the mean training mask and the sources' features.
        protocol: arguments of :class:`~sgcg_dg.protocol.Protocol`.
        batch_norms: columns of the report, of ``eval`` and ``batch``; networks without batch norm have ``eval`` alone.
        distances: HD95 and ASD in mm (photographs: pixels); "voxels" gives them in voxels, False leaves them out, which
            saves most of the time of a report.
        kwargs: as :class:`monai.engines.SupervisedEvaluator`.

    Raises:
        ValueError: unknown ``distances``.
    """

    def __init__(
        self,
        regions: Mapping[str, Sequence[int]],
        labels: Mapping[int, str],
        test: CaseDataset,
        training: DomainDataset,
        spatial_dims: int = 2,
        protocol: Mapping[str, Any] | None = None,
        batch_norms: Sequence[str] = BATCH_NORMS,
        amp: bool = False,
        distances: bool | str = True,
        **kwargs: Any,
    ) -> None:
        batch_norms = ensure_tuple(batch_norms)  # the command line makes a name of one
        unknown = [name for name in batch_norms if name not in BATCH_NORMS]
        if unknown:
            raise ValueError(f"unknown batch norms {unknown}; there are {list(BATCH_NORMS)}.")
        super().__init__(decollate=False, **kwargs)
        self.regions, self.labels = Regions(regions, labels), dict(labels)
        self.test, self.training = test, training
        self.spatial_dims, self.bfloat16 = spatial_dims, use_bfloat16(amp, self.state.device)
        self.protocol, self.distances = Protocol(**(protocol or {})), check_distances(distances)
        has_norm = any(isinstance(module, _BatchNorm) for module in self.network.modules())
        self.batch_norms = [name for name in batch_norms if has_norm or name == "eval"]

    def _iteration(self, engine: DomainEvaluator, batchdata: dict[str, Any]) -> list[dict[str, Any]]:
        masks = engine.segment([batchdata], "eval")[0]
        truth = engine.regions.masks(batchdata["label"][None, None])[0]
        engine.state.output = [{Keys.PRED: torch.from_numpy(masks).float(), Keys.LABEL: truth.float()}]
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def segment(self, cases: Sequence[dict], bn: str) -> list[np.ndarray]:
        """Region masks ``(K, *native)`` of the cases of one group."""
        device = self.state.device
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = predict(self.network, cases, self.spatial_dims, bn, device)
        return [to_masks(own, case, self.protocol) for own, case in zip(logits, cases, strict=True)]

    def report(self, model_file: str, output_dir: str, pictures: int = 4) -> list[dict[str, Any]]:
        """Score the saved model; writes ``cases.csv``, ``summary.md``, overlay pictures and ``features.png``.

        Each row also has the scores of the mean training mask (``prior_dice``, ...), the least that a method must beat.
        A last row without structure holds ``scatter``, how far apart the features of the source domains lie, and
        ``scatter_all``, the same with the target's; each where there are two domains or more to compare.
        """
        load_weights(self.network, model_file)
        folder = Path(output_dir)
        for old in folder.glob("overlay_*.png"):
            old.unlink()
        data = self.test if len(self.test) else self.data_loader.dataset
        cases = [data[i] for i in tqdm(range(len(data)), desc="reading", unit="case", disable=None)]
        prior = mean_masks(self.training.labels, self.regions.masks).float()
        scatter = self.feature_report(cases, folder if pictures else None)
        rows: list[dict[str, Any]] = []
        groups = list(together(cases, self.spatial_dims))
        drawn = 0
        for group in tqdm(groups, desc="scoring", unit="group", disable=None):
            for bn in self.batch_norms:
                for case, masks in zip(group, self.segment(group, bn), strict=True):
                    own = self.case_rows(case, masks, prior, bn)
                    rows += own
                    if bn == self.batch_norms[0] and drawn < pictures:
                        draw_case(case, masks, self.regions, self.labels, own, folder)
                        drawn += 1
        domain = cases[0]["domain"] if cases else ""
        whole = {"case": "features", "domain": domain, "bn": "eval", "structure": "", **scatter}
        write_cases_csv([*rows, *([whole] if scatter else [])], folder / "cases.csv")
        text = self._summary(rows, scatter, read_record(model_file))
        (folder / "summary.md").write_text(f"{text}\n")
        logger.info("\n%s\n\ncases: %s\npictures: %s", text, folder / "cases.csv", folder / "*.png")
        return rows

    def case_rows(self, case: dict, masks: np.ndarray, prior: torch.Tensor, bn: str) -> list[dict[str, Any]]:
        """A row for each region of a case."""
        truth = self.regions.masks(case["label"][None, None])[0].numpy()
        size = tuple(case["label"].shape)
        if prior.ndim - 1 < len(size):  # the mask of a slice, for every slice
            prior = prior[..., None].expand(*prior.shape, size[-1])
        prior = F.interpolate(prior[None], size=size, mode="nearest-exact")[0].numpy() > 0
        unit, rows = distance_unit(case["unit"], self.distances), []
        for k, name in enumerate(self.regions.names):
            scores, floor = (self._score(found[k], truth[k], case) for found in (masks, prior))
            priors = {f"prior_{key}": floor[key] for key in ("dice", f"hd95_{unit}", f"asd_{unit}")}
            names = {"case": case["case"], "scan": case["scan"], "domain": case["domain"], "bn": bn, "structure": name}
            rows.append({**names, **scores, **priors})
        return rows

    def _score(self, mask: np.ndarray, truth: np.ndarray, case: dict) -> dict[str, Any]:
        unit, missing = distance_unit(case["unit"], self.distances), self.protocol.empty_distance
        scores = score_structure(mask, truth, case["spacing"], self.distances, case["unit"], self.protocol.symmetric)
        if missing is not None and scores["status"] == "missed" and self.distances:
            scores |= {f"hd95_{unit}": missing, f"asd_{unit}": missing}
        return scores

    def feature_report(self, cases: Sequence[dict], folder: Path | None) -> dict[str, float]:
        """Scatter of the features between the sources, and with the target; draws them into a folder, if any."""
        rng, found = np.random.default_rng(0), {}
        for number, name in enumerate(self.training.names):
            index = rng.permutation(self.training.members[number])[:FEATURE_IMAGES]
            images = torch.stack([self.training.images[i] for i in index]).to(self.state.device)
            labels = torch.stack([self.training.labels[i] for i in index])
            found[name] = pixel_features(self.network, images, labels, 4000, rng)
        sources = list(found.values())
        target = [case for case in cases if case["domain"] not in found and case["image"].ndim == self.spatial_dims + 1]
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

    def _summary(
        self, rows: Sequence[Mapping[str, Any]], scatter: Mapping[str, float], record: Mapping[str, Any]
    ) -> str:
        if not rows:
            return "Nothing was scored: there is no target domain, and no domain has images enough for a validation."
        lines = [format_table(summarise(rows, by=("domain", "bn", "structure"))), ""]
        lines += ["| structure | Dice of the mean training mask |", "|---|---|"]
        for name in self.regions.names:
            values = [row["prior_dice"] for row in rows if row["structure"] == name]
            lines.append(f"| {name} | {np.nanmean(values):.3f} |")
        names = {"scatter": "source domains", "scatter_all": "source and target domains"}
        lines += ["", *(f"scatter of the features between {names[key]}: {value:.4f}" for key, value in scatter.items())]
        known = {row["domain"] for row in rows} & set(record["settings"].get("trained_domains", []))
        if known and len(self.test):
            lines += ["", f"The model was trained on {', '.join(sorted(known))}, which is scored here: figures of it "
                      "say nothing of a domain that it has never seen."]  # fmt: skip
        for line in describe_selection(record, "target" if len(self.test) else "validation"):
            lines += ["", line]
        return "\n".join(lines)


def draw_case(
    case: dict, masks: np.ndarray, regions: Regions, labels: Mapping[int, str], rows: Sequence[Mapping], folder: Path
) -> None:
    dice = {row["structure"]: row["dice"] for row in rows}
    prediction = regions.label_map(torch.from_numpy(masks)).numpy()
    save_case_overlay(folder, case, prediction, labels, dice)
