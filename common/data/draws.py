"""What gives every draw of a training the same bits, whatever the workers, the threads and the epochs before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta

from .errors import DataError


@contextmanager
def drawing() -> Iterator[None]:
    """One thread and no metadata.

    The last bits of a Fourier transform depend on the number of threads, and worker processes have one. MONAI keeps
    books of affines and applied transforms, which takes longer than to crop and mirror a slice.
    """
    threads, metadata = torch.get_num_threads(), get_track_meta()
    torch.set_num_threads(1)
    set_track_meta(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_track_meta(metadata)


def endless(members: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    """The members in a random order, each once; then again in another order, for ever."""
    while True:
        yield from rng.permutation(members).tolist()


def slices(
    image: torch.Tensor, label: torch.Tensor | None, spatial_dims: int
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Image ``(C, *spatial)`` and label, if any, or their slices along the last axis when there is one axis too many.

    Raises:
        DataError: the image has another number of axes.
    """
    if image.ndim == spatial_dims + 1:
        return [(image, label)]
    if image.ndim == spatial_dims + 2 == 4:
        return [(image[..., z].contiguous(), None if label is None else label[..., z].contiguous())
                for z in range(image.shape[-1])]  # fmt: skip
    axes = "volumes of 3 axes" if spatial_dims == 3 else "images of 2 axes, or volumes of 3 that are cut into slices"
    todo = "train with spatial_dims 2 (slices)" if (spatial_dims, image.ndim) == (3, 3) else "convert the images"
    raise DataError(f"expected {axes}, found {image.ndim - 1} axes; {todo}.")


def plain(tensor: Any) -> torch.Tensor:
    """Without the meta data and the history that MONAI attaches."""
    return torch.as_tensor(tensor).as_subclass(torch.Tensor)
