"""How a query is segmented given the support: prototypes (PANet), local prototypes (ALPNet), a threshold (ADNet).

The paper's own decoder is in :mod:`apscl_fewshot.guidance`.

Every decoder has two steps, so that a support is read once for any number of queries and classes:
``condition(features (S, A, h, w), masks (S, 1, H, W))`` returns a *code*, a dictionary of tensors;
``decode(features (Q, A, h, w), code)`` returns logits ``(Q, 2, h, w)`` for background and foreground.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described

EPSILON = 1e-5
Code = dict[str, torch.Tensor]


def shrink_mask(mask: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Masks at feature resolution as covered area in 0..1, so that an organ of one pixel keeps a weight."""
    return F.interpolate(mask.float(), size=size, mode="area")


def masked_mean(features: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean over positions of each of S images, then over those images that have any weight: ``(A,)``."""
    features, weights = features.float(), weights.float()
    weight = weights.sum((2, 3))  # (S, 1)
    means = (features * weights).sum((2, 3)) / (weight + EPSILON)
    present = (weight > 0).to(means.dtype)
    return (means * present).sum(0) / present.sum().clamp(min=1.0)


def class_prototypes(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Background and foreground prototypes ``(2, A)`` by masked averaging (Huang et al., Eq. 11)."""
    weights = shrink_mask(masks, features.shape[2:])
    return torch.stack([masked_mean(features, 1 - weights), masked_mean(features, weights)])


def cosine_logits(features: torch.Tensor, prototypes: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled cosine of every position with every prototype: ``(Q, P, h, w)`` (Huang et al., Eq. 12)."""
    if torch.jit.is_scripting():  # TorchScript cannot switch autocast off on a device it does not know yet
        return _cosine_logits(features.float(), prototypes.float(), scale)
    else:
        with torch.autocast(features.device.type, enabled=False):  # in bfloat16 a logit has steps of 0.1
            return _cosine_logits(features.float(), prototypes.float(), scale)


def _cosine_logits(features: torch.Tensor, prototypes: torch.Tensor, scale: float) -> torch.Tensor:
    return scale * torch.einsum("qahw,pa->qphw", F.normalize(features, dim=1), F.normalize(prototypes, dim=1))


@described()
class PANetDecoder(nn.Module):
    """One prototype for the class and one for the background, compared by scaled cosine.

    Source: Wang et al., "PANet", ICCV 2019, Eq. 1-3 (scale 20). Departures: masks are area-averaged to the features'
    size instead of features enlarged to the masks'.
    """

    def __init__(self, cos_scale: float = 20.0) -> None:
        super().__init__()
        self.cos_scale = cos_scale

    def condition(self, features: torch.Tensor, masks: torch.Tensor) -> Code:
        return {"prototypes": class_prototypes(features, masks)}

    def decode(self, features: torch.Tensor, code: Code) -> torch.Tensor:
        return cosine_logits(features, code["prototypes"], self.cos_scale)


CELLS = 8  # of ALPNet along a side of the map: the published cells are 4 x 4 positions of 32 x 32


@described()
class ALPNetDecoder(nn.Module):
    r"""Local prototypes pooled on a grid beside the global one; each position matches its own mixture of them.

    .. math:: s_c(x) = \kappa \sum_p \mathrm{softmax}_p(\kappa\, \cos(f_x, p)) \cos(f_x, p), \quad p \in P_c

    Source: Ouyang et al., "Self-supervision with Superpixels" (SSL-ALPNet), ECCV 2020, Eq. 1-4 (grid cells count when
    their averaged mask exceeds 0.95; scale 20). Departures: the grid is 8 x 8 cells
    whatever the map's size.

    Args:
        threshold: share of class (or background) a cell needs to become a local prototype.
    """

    def __init__(self, threshold: float = 0.95, cos_scale: float = 20.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.cos_scale = cos_scale

    def condition(self, features: torch.Tensor, masks: torch.Tensor) -> Code:
        features = features.float()
        foreground = shrink_mask(masks, features.shape[2:])
        side = max(1, min(features.shape[2], features.shape[3]) // CELLS)
        cells = F.avg_pool2d(features, side).permute(0, 2, 3, 1).flatten(0, 2)  # (cells, A)
        code: Code = {}
        for name, weights in (("background", 1 - foreground), ("foreground", foreground)):
            chosen = cells[F.avg_pool2d(weights, side).flatten() > self.threshold]
            # the global prototype joins the class's own; the background has it only when no cell qualifies
            if name == "foreground" or len(chosen) == 0:
                chosen = torch.cat([chosen, masked_mean(features, weights)[None]])
            code[name] = chosen
        return code

    def decode(self, features: torch.Tensor, code: Code) -> torch.Tensor:
        scores = []
        for name in ("background", "foreground"):
            similarity = cosine_logits(features, code[name], self.cos_scale)
            scores.append((torch.softmax(similarity, dim=1) * similarity).sum(1))
        return torch.stack(scores, dim=1)


@described()
class ADNetDecoder(nn.Module):
    r"""Anomaly detection: only the class has a prototype; whatever lies beyond a learned threshold is background.

    .. math:: S(x) = -\kappa \cos(f_x, p), \qquad \hat y = 1 - \sigma(\tfrac12 (S(x) - T))

    Source: Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation", Med. Image Anal. 2022,
    Eq. 3-5; the loss adds T / :math:`\kappa` to keep the threshold tight, and the background weighs 0.1 in the
    cross-entropy (set by the caller). Departures: T is stored as T / 100, since a step of Adam cannot move -10.
    """

    def __init__(self, cos_scale: float = 20.0, threshold: float = -10.0) -> None:
        super().__init__()
        self.cos_scale = cos_scale
        self.threshold = nn.Parameter(torch.tensor(threshold / 100))

    def condition(self, features: torch.Tensor, masks: torch.Tensor) -> Code:
        return {"prototypes": class_prototypes(features, masks)[1:]}

    def decode(self, features: torch.Tensor, code: Code) -> torch.Tensor:
        anomaly = -cosine_logits(features, code["prototypes"], self.cos_scale)
        foreground = -0.5 * (anomaly - 100 * self.threshold)
        return torch.cat([torch.zeros_like(foreground), foreground], dim=1)  # softmax of (0, l) is the sigmoid of l

    def regulariser(self) -> torch.Tensor:
        """The threshold term of the ADNet loss, T / kappa."""
        return 100 * self.threshold / self.cos_scale
