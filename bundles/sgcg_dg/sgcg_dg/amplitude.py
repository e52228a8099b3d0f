"""Random amplitude mixup (RAM): the look of another domain's image, lent to an image that keeps what it shows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor


def mix_amplitude(image: torch.Tensor, partner: torch.Tensor, ratio: float, band: float = 0.1) -> torch.Tensor:
    r"""Mix the low frequencies' amplitudes of two images; the phases, and all above the band, stay the image's.

    .. math:: |\hat x'(k)| = r\,|\hat x(k)| + (1-r)\,|\hat p(k)| \quad\text{where}\quad
              \max_i |k_i| \le \lfloor \text{band} \cdot \min_i n_i \rfloor

    Frequencies k are in cycles over an axis, n are the axes' lengths; zero, the mean, belongs to the band: where both
    means are positive, that of the result is their mix. A negative mean keeps its sign, so mix images in [0, 1] and
    centre them afterwards.

    Source: random amplitude mixup of Zhou et al., RAM-DSIR (ECCV 2022). Departures: three dimensions, where the
    shortest axis sets the band.

    Args:
        ratio: share of the image in 0 .. 1; 1 gives the image back.
        band: share of the shortest axis in 0 .. 0.5; 0 mixes the means alone.

    Shape:
        image and partner ``(C, *spatial)`` with 2 or 3 spatial axes; the result is like the image, in float32
        (float64 stays float64).

    Raises:
        ValueError: the shapes differ or have no channel axis; ratio or band out of range.
    """
    if image.shape != partner.shape or image.ndim not in (3, 4):
        raise ValueError(
            f"image and partner must have one shape (C, *spatial) with 2 or 3 spatial axes, got {tuple(image.shape)} "
            f"and {tuple(partner.shape)}; resize the partner to the image."
        )
    if not (0 <= ratio <= 1 and 0 <= band <= 0.5):
        raise ValueError(f"ratio must lie in 0 .. 1 and band in 0 .. 0.5, got {ratio} and {band}.")
    dtype = torch.promote_types(image.dtype, torch.float32)
    axes, size = tuple(range(1, image.ndim)), image.shape[1:]
    spectrum = torch.fft.rfftn(image.to(dtype), dim=axes)
    low = _low_frequencies(size, int(band * min(size)), image.device)
    other = torch.fft.rfftn(partner.to(dtype), dim=axes)[:, low]
    own = spectrum[:, low]
    spectrum[:, low] = torch.polar(ratio * own.abs() + (1 - ratio) * other.abs(), own.angle())
    return torch.fft.irfftn(spectrum, s=size, dim=axes)


def _low_frequencies(size: Sequence[int], half: int, device: torch.device) -> torch.Tensor:
    """Where in a real image's spectrum (the last axis halved) no frequency exceeds ``half`` cycles."""
    cycles = [torch.arange(n, device=device) for n in (*size[:-1], size[-1] // 2 + 1)]
    inside = [torch.minimum(k, n - k) <= half for k, n in zip(cycles, size, strict=True)]
    return reduce(lambda mask, axis: mask[..., None] & axis, inside)


class RandAmplitudeMixd(RandomizableTransform, MapTransform):
    """Add to each image a view of it with the low-frequency amplitudes of a partner mixed in.

    The image itself stays. With probability ``1 - prob`` the view is a copy of it. One ratio is drawn for an item, for
    all its channels and keys. See :func:`mix_amplitude`.

    Source: Zhou et al., RAM-DSIR (ECCV 2022), whose settings the defaults are. Departures: none; a clip of (0, 1)
    serves images in that range.

    Args:
        keys: images ``(C, *spatial)``.
        partner_key: an image of the same shape, from another domain.
        output_postfix: the view is ``f"{key}_{output_postfix}"``.
        band: see :func:`mix_amplitude`.
        ratio: lowest and highest share of the image.
        steps: the ratio is one of so many equally spaced values; null draws from the whole range.
        prob: probability of mixing.
        clip: lowest and highest value of the view, or null.

    Raises:
        ValueError: an option out of range; the partner's shape is not the image's (both named).
        KeyError: the item has no partner.
    """

    def __init__(
        self,
        keys: KeysCollection,
        partner_key: str = "partner",
        output_postfix: str = "ram",
        band: float = 0.1,
        ratio: Sequence[float] = (0.1, 1.0),
        steps: int | None = 10,
        prob: float = 1.0,
        clip: Sequence[float] | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        wrong = []
        if not 0 <= band <= 0.5:
            wrong.append(f"band must lie in 0 .. 0.5, got {band}")
        if len(ratio) != 2 or not 0 <= ratio[0] <= ratio[1] <= 1:
            wrong.append(f"ratio must be two ascending values in 0 .. 1, got {list(ratio)}")
        if steps is not None and steps < 2:
            wrong.append(f"steps must be at least 2, or null, got {steps}")
        if not 0 <= prob <= 1:
            wrong.append(f"prob must lie in 0 .. 1, got {prob}")
        if clip is not None and (len(clip) != 2 or not clip[0] < clip[1]):
            wrong.append(f"clip must be two ascending values or null, got {list(clip)}")
        if wrong:
            raise ValueError("; ".join(wrong) + ".")
        self.partner_key, self.output_postfix = partner_key, output_postfix
        self.band, self.bounds, self.steps, self.clip = band, tuple(ratio), steps, clip
        self.ratio = 1.0  # the last one drawn

    def randomize(self, data: Any = None) -> None:
        super().randomize(data)
        if self._do_transform:
            share = self.R.random() if self.steps is None else self.R.randint(self.steps) / (self.steps - 1)
            self.ratio = float(np.interp(share, (0, 1), self.bounds))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        for key in self.key_iterator(item):
            view = self._view(item, key)
            item[f"{key}_{self.output_postfix}"] = convert_to_dst_type(view, item[key], dtype=view.dtype)[0]
        return item

    def _view(self, item: Mapping[Hashable, Any], key: Hashable) -> torch.Tensor:
        image = convert_to_tensor(item[key], track_meta=False)
        if not self._do_transform:
            return image.to(torch.promote_types(image.dtype, torch.float32), copy=True)
        if self.partner_key not in item:
            raise KeyError(f"{self.partner_key!r}, the image whose amplitudes are mixed in; the item has {list(item)}.")
        partner = convert_to_tensor(item[self.partner_key], track_meta=False)
        if partner.shape != image.shape:
            raise ValueError(
                f"{item.get('case', key)}: {self.partner_key!r} has shape {tuple(partner.shape)}, expected that of "
                f"{key!r}, {tuple(image.shape)}; resize the partner first."
            )
        view = mix_amplitude(image, partner, self.ratio, self.band)
        return view if self.clip is None else view.clamp(*self.clip)
