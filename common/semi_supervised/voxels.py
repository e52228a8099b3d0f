"""A few voxels of many: which ones, and their features."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def draw_per_class(labels: torch.Tensor, classes: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """Indices of up to ``count`` random positions, with replacement, of each class in ``labels`` ``(N,)``."""
    chosen: Sequence[torch.Tensor] = []
    for label in range(classes):
        where = (labels == label).nonzero()[:, 0]
        if len(where) > count:
            where = where[torch.randint(len(where), (count,), generator=generator).to(where.device)]
        chosen.append(where)
    return torch.cat(chosen)


def pick(features: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rows ``(N, A)`` of features ``(B, A, *spatial)`` at indices ``(N,)`` into the flattened ``(B, *spatial)``.

    The map is not copied to put its channels last.
    """
    flat = features.flatten(2)
    return flat[chosen // flat.shape[2], :, chosen % flat.shape[2]]
