"""Random amplitude mixup (RAM): the look of another domain's image, lent to an image that keeps what it shows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

BAND = 0.1  # highest frequency that is mixed, as a share of the shortest axis
RATIOS, STEPS = (0.1, 1.0), 10  # share of the image, of so many equally spaced values


def mix_amplitude(image: torch.Tensor, partner: torch.Tensor, ratio: float) -> torch.Tensor:
    r"""Mix the low frequencies' amplitudes of two images; the phases, and all above the band, stay the image's.

    .. math:: |\hat x'(k)| = r\,|\hat x(k)| + (1-r)\,|\hat p(k)| \quad\text{where}\quad
              \max_i |k_i| \le \lfloor 0.1 \cdot \min_i n_i \rfloor

    Frequencies k are in cycles over an axis, n are the axes' lengths; zero, the mean, belongs to the band: where both
    means are positive, that of the result is their mix. A negative mean keeps its sign, so mix images in [0, 1] and
    centre them afterwards.

    Source: random amplitude mixup of Zhou et al., RAM-DSIR (ECCV 2022). Departures: none.

    Args:
        ratio: share of the image in 0 .. 1; 1 gives the image back.

    Shape:
        image and partner ``(C, H, W)``; the result is like the image, in float32 (float64 stays float64).

    Raises:
        ValueError: the shapes differ or are not of an image; the ratio is out of range.
    """
    if image.shape != partner.shape or image.ndim != 3:
        raise ValueError(
            f"image and partner must have one shape (C, H, W), got {tuple(image.shape)} and {tuple(partner.shape)}; "
            "resize the partner to the image."
        )
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in 0 .. 1, got {ratio}.")
    dtype = torch.promote_types(image.dtype, torch.float32)
    size = image.shape[1:]
    spectrum = torch.fft.rfft2(image.to(dtype))
    low = _low_frequencies(size, int(BAND * min(size)), image.device)
    other = torch.fft.rfft2(partner.to(dtype))[:, low]
    own = spectrum[:, low]
    spectrum[:, low] = torch.polar(ratio * own.abs() + (1 - ratio) * other.abs(), own.angle())
    return torch.fft.irfft2(spectrum, s=size)


def _low_frequencies(size: Sequence[int], half: int, device: torch.device) -> torch.Tensor:
    """Where in a real image's spectrum (the last axis halved) no frequency exceeds ``half`` cycles."""
    cycles = [torch.arange(n, device=device) for n in (size[0], size[1] // 2 + 1)]
    rows, columns = (torch.minimum(k, n - k) <= half for k, n in zip(cycles, size, strict=True))
    return rows[:, None] & columns


class RandAmplitudeMixd(RandomizableTransform, MapTransform):
    """Add to each image, as ``image_ram``, a view of it with the low-frequency amplitudes of a partner mixed in.

    The image itself stays. One ratio is drawn for an item, for all its channels and keys: 0.1, 0.2 .. 1.0. The view is
    clipped to 0 .. 1, where the images are. See :func:`mix_amplitude`.

    Source: Zhou et al., RAM-DSIR (ECCV 2022), with its settings. Departures: none.

    Args:
        keys: images ``(C, H, W)``; an item holds as ``partner`` an image of the same shape from another domain.

    Raises:
        ValueError: the partner's shape is not the image's (both named).
        KeyError: the item has no partner.
    """

    def __init__(self, keys: KeysCollection) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.ratio = 1.0  # the last one drawn

    def randomize(self, data: Any = None) -> None:
        super().randomize(data)
        self.ratio = float(np.interp(self.R.randint(STEPS) / (STEPS - 1), (0, 1), RATIOS))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        for key in self.key_iterator(item):
            view = self._view(item, key)
            item[f"{key}_ram"] = convert_to_dst_type(view, item[key], dtype=view.dtype)[0]
        return item

    def _view(self, item: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
        if "partner" not in item:
            raise KeyError(f"'partner', the image whose amplitudes are mixed in; the item has {list(item)}.")
        image, partner = (convert_to_tensor(item[name], track_meta=False) for name in (key, "partner"))
        if partner.shape != image.shape:
            raise ValueError(
                f"{item.get('case', key)}: 'partner' has shape {tuple(partner.shape)}, expected that of {key!r}, "
                f"{tuple(image.shape)}; resize the partner first."
            )
        return mix_amplitude(image, partner, self.ratio).clamp(0, 1)
