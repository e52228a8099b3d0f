"""Contrast between feature maps that are compared place by place after attention has aligned them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss

from common.description import described

Projection = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # query, key, value, each (M, A)


def spatial_similarity(first: Projection, second: Projection) -> torch.Tensor:
    r"""Similarity of two sets of positions after each has been aligned to the other by attention.

    .. math:: r = \frac1{|\Omega_1|}\sum_l \cos(V_1^l, V_{2|1}^l) + \frac1{|\Omega_2|}\sum_l \cos(V_2^l, V_{1|2}^l),
              \qquad V_{2|1} = \mathrm{softmax}(Q_1 K_2^\top / \sqrt A)\, V_2

    Source: Huang et al., ACM MM 2024, Eq. 4-6. Departures: the order of the factors is that of Ouali et al., "Spatial
    Contrastive Learning for Few-Shot Classification", 2021, where the aligned values live on the positions they are
    compared with. Eq. 5 as printed multiplies softmax(Q_1 K_2ᵀ) with V_1, whose rows are positions of set 1 although
    the columns index set 2; sets of different size have no such product.

    Args:
        first, second: ``(query, key, value)`` of each set.

    Shape:
        each tensor ``(M_i, A)``; returns a scalar in [-2, 2], in float32 under autocast.
    """
    with torch.autocast(first[0].device.type, enabled=False):  # the softmax over positions needs float32
        dtype = torch.promote_types(first[0].dtype, torch.float32)
        q1, k1, v1 = (t.to(dtype) for t in first)
        q2, k2, v2 = (t.to(dtype) for t in second)
        scale = q1.shape[1] ** -0.5
        from_second = torch.softmax(q1 @ k2.T * scale, dim=1)  # rows: positions of set 1
        from_first = torch.softmax(q2 @ k1.T * scale, dim=1)
        return F.cosine_similarity(v1, from_second @ v2).mean() + F.cosine_similarity(v2, from_first @ v1).mean()


@described()
class SimilarityContrastiveLoss(_Loss):
    r"""Supervised contrast over a given matrix of similarities.

    .. math:: \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i}
              \log \frac{\exp(r_{ij}/\tau)}{\sum_{k \ne i} \exp(r_{ik}/\tau)}, \qquad P_i = \{j \ne i : c_j = c_i\}

    averaged over the anchors that have a positive. Source: Huang et al., ACM MM 2024, Eq. 7-8. Departures: j = i is
    excluded (kept, it would push a pair apart); the temperature, absent in print, is explicit;
    ``normalisation="paper"`` divides by 2N-1 as printed, the default by the number of positives (Khosla et al. 2020).

    Args:
        temperature: :math:`\tau > 0`.
        normalisation: ``mean_over_positives`` or ``paper``.

    Shape:
        similarity ``(M, M)``, labels ``(M,)``; returns a float32 scalar, ``0`` with zero gradient when no anchor has a
        positive or when the positive is the only other entry (one episode of whole slices).

    Raises:
        ValueError: the temperature is not positive, the normalisation is unknown, or the shapes do not fit.
    """

    def __init__(self, temperature: float = 0.1, normalisation: str = "mean_over_positives") -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        if normalisation not in ("mean_over_positives", "paper"):
            raise ValueError(f"normalisation must be 'mean_over_positives' or 'paper', got {normalisation!r}.")
        self.temperature = temperature
        self.normalisation = normalisation

    def forward(self, similarity: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        count = similarity.shape[0]
        if similarity.shape != (count, count) or labels.shape != (count,):
            raise ValueError(f"expected (M, M) and (M,), got {tuple(similarity.shape)} and {tuple(labels.shape)}.")
        dtype = torch.promote_types(similarity.dtype, torch.float32)
        own = torch.eye(count, dtype=torch.bool, device=similarity.device)
        logits = (similarity.to(dtype) / self.temperature).masked_fill(own, float("-inf"))
        positive = (labels[:, None] == labels[None, :]) & ~own
        log_ratio = (torch.log_softmax(logits, dim=1)).masked_fill(~positive, 0.0)
        if count < 2 or not bool(positive.any()):
            return similarity.sum().to(dtype) * 0.0
        anchors = positive.any(1)
        divisor = positive.sum(1).clamp(min=1) if self.normalisation == "mean_over_positives" else count - 1
        return (-log_ratio.sum(1) / divisor)[anchors].mean()
