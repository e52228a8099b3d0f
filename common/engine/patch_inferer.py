"""Whole images through a network of patches: volumes, slices of volumes, and photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer

WINDOWS = {2: 16, 3: 4}  # how many go through the network together, by the axes of a patch


class PatchInferer(SliceInferer):
    """MONAI's sliding window of ``patch_size``: half overlapping, Gaussian weights.

    An image of one axis more than a patch has is taken slice by slice along its last one. MONAI's class for slices
    refuses images that are one: these go through the sliding window as they are.

    Args:
        patch_size: two or three lengths.

    Raises:
        ValueError: they are something else.

    Shape:
        with two lengths ``(B, C, H, W)`` or, slice by slice along S, ``(B, C, H, W, S)``; with three
        ``(B, C, H, W, S)``. To logits ``(B, K, ...)`` of the same size.
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        fits = isinstance(patch_size, (list, tuple)) and len(patch_size) in WINDOWS
        if not fits or any(type(length) is not int or length < 1 for length in patch_size):
            raise ValueError(f"patch_size: expected a list of two or three lengths of 1 or more, found {patch_size!r}; "
                             "correct it, in model.json where it stands there.")  # fmt: skip
        super().__init__(
            spatial_dim=2, roi_size=patch_size, sw_batch_size=WINDOWS[len(patch_size)], overlap=0.5, mode="gaussian"
        )

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        if inputs.ndim == len(self.orig_roi_size) + 2:
            self.roi_size = self.orig_roi_size  # a volume before has left one of three axes
            return SlidingWindowInferer.__call__(self, inputs, network, *args, **kwargs)
        return super().__call__(inputs, network, *args, **kwargs)
