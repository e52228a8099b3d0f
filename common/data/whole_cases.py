"""Whole cases, to be segmented and scored on their own grid."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .draws import plain
from .items import file_stem
from .photograph import is_photograph


class CaseDataset(Dataset):
    """Whole cases, one image each; the images of a case (two time points of one patient) are told apart by ``scan``.

    An item holds ``image`` ``(C, *size)``, ``label`` ``(*native)``, ``native`` ``(C, *native)`` to be looked at,
    ``affine`` (None for photographs), ``spacing`` with its ``unit`` (mm, for photographs px), ``case``, ``scan``
    (the name of the image file, with its folders in front where two files share one) and ``domain``.

    Args:
        data: items with ``image`` and ``label`` paths, and ``case`` and ``domain`` where they are known.
        transform: deterministic, of ``image`` and ``label``; adds ``native``. The image comes out at the network's
            size, covering the same as before, the label and ``native`` at the case's own.
    """

    def __init__(self, data: Sequence[dict], transform: Callable) -> None:
        self.data = list(data)
        self.transform = transform
        self.scans = scan_names([str(item["image"]) for item in self.data])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        done = self.transform({"image": item["image"], "label": item["label"]})
        volume = not is_photograph(item["image"])
        label = done["label"]
        return {
            "image": plain(done["image"]).float(),
            "label": plain(label)[0].to(torch.uint8),
            "native": plain(done["native"]),
            "affine": np.asarray(label.affine) if volume else None,
            "spacing": [float(step) for step in label.pixdim] if volume else [1.0] * (label.ndim - 1),
            "unit": "mm" if volume else "px",
            "case": str(item.get("case") or file_stem(Path(item["image"]).name)),
            "scan": self.scans[index],
            "domain": item.get("domain", "unknown"),
        }


def scan_names(files: Sequence[str]) -> list[str]:
    """A name for each image: that of its file, with its folders in front where two files share one."""
    names = [file_stem(Path(file).name) for file in files]
    if len(set(names)) == len(names):
        return names
    above = os.path.commonpath([Path(file).parent for file in files])
    parts = [[*Path(file).parent.relative_to(above).parts, name] for file, name in zip(files, names, strict=True)]
    joined = ["_".join(one) for one in parts]
    return joined if len(set(joined)) == len(joined) else ["/".join(one) for one in parts]
