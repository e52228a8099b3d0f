"""The space in which features of two networks are compared, and what ties the two together in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.loss import _Loss

from common.losses.class_statistics import check_whole


class Projection(nn.Module):
    r"""Features of voxels to vectors of length 1: linear, batch norm, ReLU, linear, :math:`z / \lVert z \rVert`.

    On voxels drawn from a map, a linear layer is the 1x1x1 convolution of that map. Batch norm normalises by the rows
    of one call: what is to be compared belongs into one call. A single row has no statistics of its own, and is
    normalised by the running ones, as in eval mode. In float32 under autocast.

    Source: Diff-CL (arXiv 2503.09408) has a projection head in each network; its layers are a reconstruction.

    Args:
        feat_dim: A. embedding: D.

    Shape:
        ``(N, A)`` to ``(N, D)``; N may be 0.
    """

    def __init__(self, feat_dim: int, embedding: int = 64) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(feat_dim, feat_dim), nn.BatchNorm1d(feat_dim)
        self.second = nn.Linear(feat_dim, embedding)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            hidden = self.first(rows.to(self.first.weight.dtype))
            norm = self.norm
            if self.training and len(rows) < 2:
                hidden = F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
            else:
                hidden = norm(hidden)
            return F.normalize(self.second(hidden.relu()), dim=1)


class PrototypeLoss(_Loss):
    r"""Cross-entropy of the cosines between vectors and one learnt direction per class.

    .. math:: -\frac1N \sum_i \log \frac{\exp(\cos(z_i, p_{y_i})/\tau)}{\sum_k \exp(\cos(z_i, p_k)/\tau)}

    Two networks whose vectors meet the same prototypes have one space; nothing else says that a cosine between a vector
    of the one and a vector of the other means anything.

    Source: none; Diff-CL (arXiv 2503.09408) does not say what ties its two projections.

    Args:
        num_classes: K. embedding: D. temperature: :math:`\tau`.

    Shape:
        vectors ``(N, D)``, labels ``(N,)``, negative: ignored; a scalar in float32 or better, 0 with zero gradient
        when no label counts.

    Raises:
        ValueError: the temperature is not positive; shapes that do not fit; labels that are no whole numbers below K.
    """

    def __init__(self, num_classes: int, embedding: int = 64, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.temperature = temperature
        self.prototypes = nn.Parameter(torch.randn(num_classes, embedding))

    def forward(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self._check(vectors, labels)
        dtype = torch.promote_types(vectors.dtype, torch.float32)
        with torch.autocast(vectors.device.type, enabled=False):
            cosines = F.normalize(vectors.to(dtype), dim=1) @ F.normalize(self.prototypes.to(dtype), dim=1).T
            counted = labels.clamp(min=-1).long()
            total = F.cross_entropy(cosines / self.temperature, counted, ignore_index=-1, reduction="sum")
            return total / (counted >= 0).sum().clamp(min=1)

    def _check(self, vectors: torch.Tensor, labels: torch.Tensor) -> None:
        classes, width = self.prototypes.shape
        if vectors.ndim != 2 or vectors.shape[1] != width or labels.shape != vectors.shape[:1]:
            shapes = f"{(*vectors.shape,)} and {(*labels.shape,)}"
            raise ValueError(f"expected vectors (N, {width}) and labels (N,), got {shapes}.")
        check_whole(labels, classes, "labels")
