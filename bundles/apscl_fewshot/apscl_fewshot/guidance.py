"""The mutual guidance decoder (MGD): channel co-occurrence of query and support, then prototype matching."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .decoders import Code, class_prototypes, cosine_logits

PROJECTIONS = ("separate", "shared", "none")
NORMS = ("fro", "none", "mean", "softmax")


class MutualGuidance(nn.Module):
    r"""Channel attention from the query itself and from the support at the same place.

    .. math:: \alpha = \hat Z_q^\top \hat Z_q + \hat Z_s^\top \hat Z_q, \qquad
              \tilde Z_q = \hat Z_q \alpha^\top + \hat Z_q

    Source: Huang et al., ACM MM 2024, Eq. 9-10. Departures: each is an option whose printed value is named.
    ``norm="fro"`` divides alpha by its Frobenius norm and ``center`` removes the spatial mean inside it: as printed
    (``none``, ``false``), alpha sums over all positions and collapses the map to one direction. ``side="left"`` is
    Eq. 10 (alpha times the map, which brings support content in), ``right`` its transpose. ``aggregate="product"``
    multiplies the terms, as the prose has it.

    Args:
        gate: learn a factor on the guidance, starting at 1.

    Shape:
        query ``(Q, A, h, w)``, support ``(A, h, w)`` (the mean over shots: alpha is linear in it); returns the query's.
    """

    def __init__(
        self, norm: str = "fro", center: bool = True, side: str = "left", aggregate: str = "sum", gate: bool = False
    ) -> None:
        super().__init__()
        if norm not in NORMS or side not in ("left", "right") or aggregate not in ("sum", "product"):
            raise ValueError(
                f"norm must be one of {NORMS}, side left or right, aggregate sum or product; got {norm!r}, {side!r}, "
                f"{aggregate!r}."
            )
        self.norm = norm
        self.center = center
        self.side = side
        self.aggregate = aggregate
        self.gate = nn.Parameter(torch.ones(()), requires_grad=gate)

    def forward(self, query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        height, width = query.shape[2], query.shape[3]
        if support.shape[1:] != query.shape[2:]:
            support = F.interpolate(support[None], size=[height, width], mode="bilinear", align_corners=False)[0]
        z_q, z_s = query.float().flatten(2), support.float().flatten(1)  # (Q, A, M), (A, M)
        if torch.jit.is_scripting():  # see cosine_logits
            guided = self._guide(z_q, z_s)
        else:
            with torch.autocast(query.device.type, enabled=False):  # sums over all positions need float32
                guided = self._guide(z_q, z_s)
        return guided.view(query.shape[0], -1, height, width)

    def _guide(self, z_q: torch.Tensor, z_s: torch.Tensor) -> torch.Tensor:
        return self.gate * (self._alpha(z_q, z_s) @ z_q) + z_q

    def _alpha(self, z_q: torch.Tensor, z_s: torch.Tensor) -> torch.Tensor:
        inner_q, inner_s = z_q, z_s
        if self.center:
            inner_q, inner_s = z_q - z_q.mean(2, keepdim=True), z_s - z_s.mean(1, keepdim=True)
        own = inner_q @ inner_q.transpose(1, 2)  # (Q, A, A)
        cross = inner_s @ inner_q.transpose(1, 2)
        alpha = own + cross if self.aggregate == "sum" else own * cross
        alpha = self._normalise(alpha, z_q.shape[2])
        return alpha.transpose(1, 2) if self.side == "right" else alpha

    def _normalise(self, alpha: torch.Tensor, positions: int) -> torch.Tensor:
        if self.norm == "fro":
            return alpha / alpha.square().sum((1, 2), keepdim=True).clamp(min=1e-12).sqrt()  # sqrt(0) has no slope
        if self.norm == "mean":
            return alpha / positions
        if self.norm == "softmax":
            return torch.softmax(alpha / positions**0.5, dim=2)
        return alpha


class MutualGuidanceDecoder(nn.Module):
    """MGD and the cosine decoder: 1x1 projections h, guidance of the query, prototypes of the support.

    Source: Huang et al., ACM MM 2024, Eq. 9-12. Departures: ``projection="shared"`` uses one h for both sides,
    ``none`` drops it. With the printed ``separate`` ones, h_q learns the training organs by itself, whatever the
    support shows, and an unseen organ becomes background. All start as the identity. ``cos_scale`` is 20 instead of
    the printed 1, with which cross-entropy cannot fall below 0.127. ``guidance=null`` is plain prototype matching.
    """

    def __init__(
        self,
        guidance: MutualGuidance | None = None,
        feat_dim: int = 256,
        mgd_dim: int = 256,
        projection: str = "shared",
        cos_scale: float = 20.0,
    ) -> None:
        super().__init__()
        if projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}.")
        self.guidance = guidance
        self.cos_scale = cos_scale
        self.support_projection: nn.Module = nn.Identity()
        self.query_projection: nn.Module = nn.Identity()
        if projection == "separate":
            self.support_projection = _identity_start(feat_dim, mgd_dim)
            self.query_projection = _identity_start(feat_dim, mgd_dim)
        elif projection == "shared":
            self.support_projection = self.query_projection = _identity_start(feat_dim, mgd_dim)

    def condition(self, features: torch.Tensor, masks: torch.Tensor) -> Code:
        projected = self.support_projection(features)
        return {"prototypes": class_prototypes(projected, masks), "guide": projected.float().mean(0)}

    def decode(self, features: torch.Tensor, code: Code) -> torch.Tensor:
        projected = self.query_projection(features)
        if self.guidance is not None:
            projected = self.guidance(projected, code["guide"])
        return cosine_logits(projected, code["prototypes"], self.cos_scale)


def _identity_start(feat_dim: int, mgd_dim: int) -> nn.Conv2d:
    """A 1x1 convolution that passes its input on. From two random ones, support and query have no direction in common,
    and a few hundred episodes teach nothing but background."""
    conv = nn.Conv2d(feat_dim, mgd_dim, 1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
