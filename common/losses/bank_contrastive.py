"""Contrast of pixels with remembered features: the sampled counterpart of a contrast with class distributions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.loss import _Loss

from common.description import described

CHUNK = 1024  # pixels compared with the bank at once: it bounds the memory and leaves the result as it is


def _check_pixels(features: torch.Tensor, labels: torch.Tensor, num_classes: int, feat_dim: int) -> None:
    if features.ndim != 2 or features.shape[1] != feat_dim or labels.shape != features.shape[:1]:
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"expected features (N, {feat_dim}) and labels (N,), got {shapes}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}.")
    if labels.numel() and int(labels.max()) >= num_classes:
        raise ValueError(f"labels must be below {num_classes} (negative: ignored), got {int(labels.max())}.")


@described()
class ClassMemoryBank(nn.Module):
    """The latest ``size`` features of each class, first in, first out.

    Everything is in the state dict, so that a resumed run continues exactly. Features are kept detached, in float32;
    in eval mode nothing is taken in. A push that holds more than ``size`` features of a class keeps the last ones: rows
    of neighbouring pixels should be drawn at random before. Each process of a distributed run has a bank of its own.

    Args:
        num_classes, feat_dim, size: classes K, width A of a feature, features kept for a class.

    Attributes:
        filled: how many features each class holds, ``(K,)``.

    Raises:
        ValueError: a number is below 1, features or labels do not fit, or a label, class or count is out of range.
    """

    def __init__(self, num_classes: int, feat_dim: int, size: int) -> None:
        super().__init__()
        if min(num_classes, feat_dim, size) < 1:
            raise ValueError(f"num_classes, feat_dim and size must be positive, got {num_classes}, {feat_dim}, {size}.")
        self.num_classes, self.feat_dim, self.size = num_classes, feat_dim, size
        self.register_buffer("features", torch.zeros(num_classes, size, feat_dim))
        self.register_buffer("pointer", torch.zeros(num_classes, dtype=torch.int64))  # where the next feature goes
        self.register_buffer("filled", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in features ``(N, A)``, in their order, of classes ``labels`` ``(N,)``; negative labels are ignored."""
        _check_pixels(features, labels, self.num_classes, self.feat_dim)
        if not self.training:
            return
        for c in range(self.num_classes):
            latest = features[labels == c][-self.size :].to(self.features.dtype)
            places = (self.pointer[c] + torch.arange(len(latest), device=features.device)) % self.size
            self.features[c, places] = latest
            self.pointer[c] = (self.pointer[c] + len(latest)) % self.size
            self.filled[c] = (self.filled[c] + len(latest)).clamp(max=self.size)

    def get(self, c: int) -> torch.Tensor:
        """A copy of the features of class ``c``, oldest first: ``(M, A)`` with ``M = filled[c]``."""
        self._check_class(c)
        start, end = int(self.pointer[c]), int(self.filled[c])  # equal until the class is full
        return torch.cat([self.features[c, start:end], self.features[c, :start]])

    def draw(self, c: int, count: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """A copy of ``min(count, filled[c])`` random features of class ``c``, no one twice: ``(M, A)``.

        Args:
            generator: of the CPU; null takes torch's global one.
        """
        self._check_class(c)
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}.")
        chosen = torch.randperm(int(self.filled[c]), generator=generator)[:count]
        return self.features[c, chosen.to(self.features.device)]

    def _check_class(self, c: int) -> None:
        if not 0 <= c < self.num_classes:
            raise ValueError(f"class must be from 0 to {self.num_classes - 1}, got {c}.")


def _contrast(query: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, log_share: torch.Tensor):
    """Loss ``(n,)`` of pixels of one class and its slope ``(n, A)``; the query is divided by the temperature."""
    scores = query @ negatives.T + log_share
    log_negative = scores.logsumexp(1, keepdim=True)
    gap = log_negative - query @ positives.T
    pull = gap.sigmoid()
    away = pull.mean(1, keepdim=True) * ((scores - log_negative).exp() @ negatives)
    return -F.logsigmoid(-gap).mean(1), away - pull @ positives / len(positives)


class _PixelContrast(torch.autograd.Function):
    """Loss of each pixel; its gradient is formed chunk by chunk on the way, so that ``(N, A)`` is all that is kept."""

    @staticmethod
    def forward(ctx, features, labels, banks, temperature):
        values, slopes = features.new_zeros(len(features)), torch.zeros_like(features)
        filled = [c for c, bank in enumerate(banks) if len(bank)]
        for c in filled:
            others = [banks[other] for other in filled if other != c]
            if not others:
                break  # without a negative the loss is 0
            negatives = torch.cat(others)
            log_share = torch.cat([bank.new_full((len(bank),), -math.log(len(bank))) for bank in others])
            for rows in (labels == c).nonzero()[:, 0].split(CHUNK):
                value, slope = _contrast(features[rows] / temperature, banks[c], negatives, log_share)
                values[rows], slopes[rows] = value, slope / temperature
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad[:, None] * ctx.saved_tensors[0], None, None, None


@described()
class BankContrastiveLoss(_Loss):
    r"""Contrast of pixels with the features that a :class:`ClassMemoryBank` holds.

    .. math:: \ell_i = -\frac1{|P_y|} \sum_{k \in P_y} \log \frac{e^{q \cdot k/\tau}}
              {e^{q \cdot k/\tau} + \sum_{c \ne y} \frac1{|P_c|} \sum_{n \in P_c} e^{q \cdot n/\tau}}

    for a pixel q of class y and the bank's features :math:`P_c` of class c. Source: "SgCG: Semantic-guided Contrastive
    Generalization for Medical Image Segmentation" (submission to ICLR 2025), Eq. 4, with means over a memory bank for
    its expectations, as in the bank variant of Xie et al., "SePiCo: Semantic-Guided Pixel Contrast for Domain Adaptive
    Semantic Segmentation", TPAMI 2023. Departures: Eq. 4 as printed lost an expectation; the form above is that of
    its Eq. 5. Negatives are averaged within their class: neither the size of the bank nor a half-filled class moves
    the loss, and with Gaussian classes and a growing bank it tends to the expectation over all features, of which
    the loss on the Gaussians themselves is an upper bound. Nothing is normalised here: give features of unit length
    to bank and loss, if wanted. The cost is pixels times remembered features: give a sample of the pixels.

    Args:
        temperature: :math:`\tau > 0`.

    Shape:
        features ``(N, A)``, labels ``(N,)``; returns the mean over the pixels that count, a float32 scalar, in float32
        under autocast too (float64 stays float64). Pixels with a negative label or of a class whose bank is empty do
        not count; other classes with an empty bank leave the denominator. ``0`` with zero gradient when no pixel
        counts, or when no other class is filled. Differentiable once; the bank is taken as it is when the loss is
        called.

    Raises:
        ValueError: temperature not positive, features or labels that do not fit the bank.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def forward(self, features: torch.Tensor, labels: torch.Tensor, bank: ClassMemoryBank) -> torch.Tensor:
        _check_pixels(features, labels, bank.num_classes, bank.feat_dim)
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        banks = [bank.get(c).to(features.dtype) for c in range(bank.num_classes)]
        with torch.autocast(features.device.type, enabled=False):  # similarities and their exponentials in float32
            values = _PixelContrast.apply(features, labels, banks, self.temperature)
        counted = sum(int((labels == c).sum()) for c, remembered in enumerate(banks) if len(remembered))
        return values.sum() / max(counted, 1)  # pixels that do not count have 0
