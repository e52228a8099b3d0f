"""Structures as overlapping regions of a label map (the cup lies in the disc), and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from common.data.label_names import name_problems


class Regions:
    """Named sets of label ids: what a sigmoid channel each segments, and what is scored.

    Two regions are nested or apart; the ids of one without those of the regions inside it say which label a pixel of it
    gets when a prediction is written (the first one, where the regions inside leave none).

    Args:
        regions: name to label ids, such as ``{"cup": [2], "disc": [1, 2]}``.
        labels: label id to name.

    Raises:
        ValueError: what :meth:`problems` lists.
    """

    def __init__(self, regions: Mapping[str, Sequence[int]], labels: Mapping[int, str]) -> None:
        found = self.problems(regions, labels)
        if found:
            raise ValueError("\n  ".join(["regions that cannot be used:", *found]))
        self.ids = {name: sorted(int(label) for label in ids) for name, ids in regions.items()}
        self.names = list(self.ids)

    @staticmethod
    def problems(regions: Mapping[str, Sequence[int]], labels: Mapping[int, str]) -> list[str]:
        """One line for every region that is empty, unknown to the labels, another in part, or called like another."""
        if not isinstance(regions, Mapping) or not all(isinstance(ids, Sequence) for ids in regions.values()):
            return [f"regions: expected a name and label ids of each, such as {{'cup': [2]}}, found {regions}"]
        sets = {name: {int(i) if str(i).isdecimal() else i for i in ids} for name, ids in regions.items()}
        shown = {name: sorted(ids, key=str) for name, ids in sets.items()}
        lines = [f"region {name}: expected label ids out of {dict(labels)}, found {shown[name]}; correct `regions`"
                 for name, ids in sets.items() if not ids or not ids <= set(labels)]  # fmt: skip
        lines += name_problems([(str(shown[name]), str(name)) for name in sets], "regions")
        names = list(sets)
        for i, one in enumerate(names):
            for other in names[:i]:
                a, b = sets[one], sets[other]
                if a == b or (a & b and not a < b and not b < a):
                    lines.append(f"regions {other} {shown[other]} and {one} {shown[one]}: expected one inside the "
                                 "other or no label in both; correct `regions`")  # fmt: skip
        return lines

    def missing(self, case: str, label_ids: Sequence[int]) -> list[str]:
        """One line for each region that a case does not show."""
        found = f"found labels {list(label_ids)}; correct the mask, leave the case out, or set allow_missing"
        return [f"{case}: expected a {name} (labels {ids}), {found}" for name, ids in self.ids.items()
                if not set(ids) & set(label_ids)]  # fmt: skip

    def masks(self, label: torch.Tensor) -> torch.Tensor:
        """Label map ``(B, 1, *spatial)`` to one mask a region ``(B, K, *spatial)``."""
        return torch.cat([self.mask(label, name) for name in self.names], 1)

    def mask(self, label: torch.Tensor, name: str) -> torch.Tensor:
        """Where a label map of any shape shows the region."""
        return torch.isin(label, torch.tensor(self.ids[name], device=label.device))

    def label_map(self, masks: torch.Tensor | Sequence[Any]) -> torch.Tensor:
        """Masks ``(*spatial)`` of the regions to a label map ``(*spatial)``: inner regions are drawn over outer ones.

        One mask in memory at a time, where ``masks`` makes each when it is asked for.
        """
        result = None
        for name in sorted(self.names, key=lambda name: -len(self.ids[name])):
            inner = {label for other in self.ids.values() if set(other) < set(self.ids[name]) for label in other}
            own = [label for label in self.ids[name] if label not in inner] or self.ids[name]
            mask = torch.as_tensor(masks[self.names.index(name)]) > 0
            result = torch.zeros_like(mask, dtype=torch.uint8) if result is None else result
            result[mask] = own[0]
        return result
