"""Whole scans through a network of slices, and photographs, which are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai import inferers


class SliceInferer(inferers.SliceInferer):
    """MONAI's, which refuses images of as many axes as ``roi_size``: these go through its sliding window as they are.

    Shape:
        with two lengths ``(B, C, H, W, S)``, slice by slice along S, or ``(B, C, H, W)``; with three
        ``(B, C, H, W, D)``. To logits ``(B, K, ...)`` of the same size.
    """

    def __call__(self, inputs: torch.Tensor, network: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        if inputs.ndim == len(self.orig_roi_size) + 2:
            self.roi_size = self.orig_roi_size  # a volume before has left one of three axes
            return inferers.SlidingWindowInferer.__call__(self, inputs, network, *args, **kwargs)
        return super().__call__(inputs, network, *args, **kwargs)
