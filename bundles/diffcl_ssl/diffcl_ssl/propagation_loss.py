"""The loss of contrastive label propagation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss

from common.description import described

POSITIVE, NEGATIVE = 0.1, 0.3  # shares of the vectors


@described()
class LabelPropagationLoss(_Loss):
    r"""Contrast of unlabelled vectors that are most like a class, as a whole, with those that are least.

    .. math:: -\frac{1}{|\Gamma|} \sum_{c \in \Gamma} \frac{1}{|P^c|} \sum_{p \in P^c} \log
              \frac{e^{s_p^c/\tau}}{e^{s_p^c/\tau} + \sum_{n \in N^c} e^{s_n^c/\tau}},
              \qquad s_j^c = \frac{1}{|A^c|} \sum_{a \in A^c} \cos(a, b_j)

    with anchors :math:`A^c` of known class and vectors b of unknown. :math:`P^c`: of the tenth of the vectors that has
    the highest :math:`s^c`, those more like c than like any other class that has anchors, so that no vector is pulled
    to two classes; :math:`N^c`: the three tenths of the lowest. :math:`\Gamma`: the classes that have both.

    Source: reconstructed from the abstract and captions of Diff-CL (arXiv 2503.09408), which have the anchors, the
    vectors and the selection by cosine, but neither its limits nor the form of the loss.

    Args:
        temperature: :math:`\tau`.
        min_bank: a class of fewer anchors is left out.

    Shape:
        anchors: K tensors ``(M_c, D)``, detached here; vectors ``(N, D)``; any length. A scalar in float32 or better, 0
        with zero gradient when no class has both; and for the log the share of vectors that are positive
        (``positives``), and the share of negatives that are most like the very class they are pushed from
        (``own_negatives``), which is high for a class that covers most of the images.

    Raises:
        ValueError: an option is out of its range; anchors and vectors do not fit.
    """

    def __init__(self, temperature: float = 0.1, min_bank: int = 64) -> None:
        super().__init__()
        if temperature <= 0 or min_bank < 1:
            raise ValueError(f"temperature and min_bank must be positive, got {temperature} and {min_bank}.")
        self.temperature, self.min_bank = temperature, min_bank

    def forward(
        self, anchors: Sequence[torch.Tensor], vectors: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        _check_anchors(anchors, vectors)
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        known = [a.detach().to(dtype) for a in anchors if len(a) >= self.min_bank]
        with torch.autocast(vectors.device.type, enabled=False):
            unit = F.normalize(vectors.to(dtype), dim=1)
            if not known or not len(unit):
                nothing = unit.new_zeros(())
                return unit[:0].sum(), {"positives": nothing, "own_negatives": nothing}
            # the mean of cosines is one product with the mean of the unit anchors
            similarity = unit @ torch.stack([F.normalize(a, dim=1).mean(0) for a in known]).T
            positive, negative, nearest = _select(similarity.detach())
            scores, chosen = similarity / self.temperature, zip(positive.T, negative.T, strict=True)
            values = [_contrast(scores[:, c], p, n) for c, (p, n) in enumerate(chosen) if p.any() and n.any()]
            loss = torch.stack(values).mean() if values else unit[:0].sum()
        own = (negative & nearest).sum() / negative.sum().clamp(min=1)
        return loss, {"positives": positive.any(1).to(dtype).mean(), "own_negatives": own}


def _select(similarity: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which vectors are positive for each class, which negative, and which are nearest to it; ``(N, K)``."""
    nearest = F.one_hot(similarity.argmax(1), similarity.shape[1]).bool()
    # from one order, so that equal similarities are not on both ends
    order, count = similarity.argsort(dim=0, stable=True), len(similarity)
    top, bottom = torch.zeros_like(nearest), torch.zeros_like(nearest)
    top.scatter_(0, order[count - _share(POSITIVE, count) :], True)
    bottom.scatter_(0, order[: _share(NEGATIVE, count)], True)
    return top & nearest, bottom, nearest


def _contrast(scores: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    return F.softplus(scores[negative].logsumexp(0) - scores[positive]).mean()


def _share(share: float, count: int) -> int:
    return int(share * count + 1e-9)  # 0.29 * 100 is a little less than 29


def _check_anchors(anchors: Sequence[torch.Tensor], vectors: torch.Tensor) -> None:
    shapes = {c: (*a.shape,) for c, a in enumerate(anchors)}
    bad = [f"class {c}: {shape}" for c, shape in shapes.items() if len(shape) != 2 or shape[1:] != vectors.shape[1:]]
    if vectors.ndim != 2 or bad:
        raise ValueError(
            f"expected vectors (N, D) and anchors (M, D) of each class, got {(*vectors.shape,)} and "
            f"{', '.join(bad) or 'anchors that fit'}."
        )
