"""The mutual guidance decoder (MGD): channel co-occurrence of query and support, then prototype matching."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described

from .decoders import Code, class_prototypes, cosine_logits


class MutualGuidance(nn.Module):
    r"""Channel attention from the query itself and from the support at the same place.

    .. math:: \alpha = \hat Z_q^\top \hat Z_q + \hat Z_s^\top \hat Z_q, \qquad
              \tilde Z_q = \hat Z_q \alpha^\top + \hat Z_q

    Source: Huang et al., ACM MM 2024, Eq. 9-10; alpha multiplies the map from the left, as printed, which brings the
    support's content in. Departures: ``normalise`` removes the spatial mean inside alpha and divides alpha by its
    Frobenius norm. As printed (``false``), alpha sums over all positions and collapses the map to one direction.

    Shape:
        query ``(Q, A, h, w)``, support ``(A, h, w)`` (the mean over shots: alpha is linear in it); returns the query's.
    """

    def __init__(self, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, query: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
        height, width = query.shape[2], query.shape[3]
        if support.shape[1:] != query.shape[2:]:
            support = F.interpolate(support[None], size=[height, width], mode="bilinear", align_corners=False)[0]
        z_q, z_s = query.float().flatten(2), support.float().flatten(1)  # (Q, A, M), (A, M)
        if torch.jit.is_scripting():  # see cosine_logits
            guided = self._alpha(z_q, z_s) @ z_q + z_q
        else:
            with torch.autocast(query.device.type, enabled=False):  # sums over all positions need float32
                guided = self._alpha(z_q, z_s) @ z_q + z_q
        return guided.view(query.shape[0], -1, height, width)

    def _alpha(self, z_q: torch.Tensor, z_s: torch.Tensor) -> torch.Tensor:
        if self.normalise:
            z_q, z_s = z_q - z_q.mean(2, keepdim=True), z_s - z_s.mean(1, keepdim=True)
        alpha = z_q @ z_q.transpose(1, 2) + z_s @ z_q.transpose(1, 2)  # (Q, A, A)
        if self.normalise:
            alpha = alpha / alpha.square().sum((1, 2), keepdim=True).clamp(min=1e-12).sqrt()  # sqrt(0) has no slope
        return alpha


@described()
class MutualGuidanceDecoder(nn.Module):
    """MGD: 1x1 projections h of support and query, guidance of the query, cosines with the support's prototypes.

    Source: Huang et al., ACM MM 2024, Eq. 9-12. The width of h is not given; here it keeps that of the features.
    Departures: each is an option whose printed value is named. ``shared`` uses one h for both sides: with two
    (``false``), h_q learns the training organs by itself, whatever the support shows, and an unseen organ becomes
    background. All start as the identity. ``normalise`` (``false``) is that of :class:`MutualGuidance`. ``cos_scale``
    is 20 instead of 1, with which cross-entropy cannot fall below 0.127.
    """

    def __init__(
        self, feat_dim: int = 256, shared: bool = True, normalise: bool = True, cos_scale: float = 20.0
    ) -> None:
        super().__init__()
        self.guidance = MutualGuidance(normalise)
        self.cos_scale = cos_scale
        self.support_projection = _identity_start(feat_dim)
        self.query_projection = self.support_projection if shared else _identity_start(feat_dim)

    def condition(self, features: torch.Tensor, masks: torch.Tensor) -> Code:
        projected = self.support_projection(features)
        return {"prototypes": class_prototypes(projected, masks), "guide": projected.float().mean(0)}

    def decode(self, features: torch.Tensor, code: Code) -> torch.Tensor:
        guided = self.guidance(self.query_projection(features), code["guide"])
        return cosine_logits(guided, code["prototypes"], self.cos_scale)


def _identity_start(feat_dim: int) -> nn.Conv2d:
    """A 1x1 convolution that passes its input on. From two random ones, support and query have no direction in common,
    and a few hundred episodes teach nothing but background."""
    conv = nn.Conv2d(feat_dim, feat_dim, 1)
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv
