"""Where the support says the organ lies, carried over to the query in the frame of the body."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from common.description import described

GRID = 64  # side of the map that a support keeps
REACH = 0.25  # how far the map extends beyond the body's box, in widths of the box


def body_frame(images: torch.Tensor, threshold: float = 0.12, tail: float = 0.02) -> torch.Tensor:
    """The body's box in each image: ``(B, C, H, W)`` to ``(B, 4)``, top, bottom, left, right as shares of the image.

    A pixel is body when it exceeds ``threshold`` of the image's range above its minimum; the box leaves out ``tail`` of
    the body's area on each side, so that arms or noise far out do not move it. Without contrast it is the whole image.
    """
    image = images.float().mean(1)
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    body = (image > low + threshold * (high - low)).float()
    sides = []
    for other in (2, 1):  # rows, then columns
        share = torch.cumsum(body.sum(other) + 1e-3, dim=1)
        share = share / share[:, -1:]
        count = share.shape[1]
        sides.append((share <= tail).sum(1).float() / count)
        sides.append(1.0 - (share >= 1 - tail).sum(1).float() / count + 1.0 / count)
    return torch.stack(sides, dim=1)


@described()
class PositionPrior(nn.Module):
    r"""Log-prior of the class at every pixel, added to the log-odds at inference.

    .. math:: \log \pi(x) = w \left[ \log\Big( \frac{(G_\sigma * m)(x)}{\max (G_\sigma * m)} + \epsilon \Big)
              - \log \tfrac12 \right]

    m is the support's mask (the mean over shots), moved from the support's body box to the query's. Bayes' rule: the
    features give the likelihood, the annotated scan's anatomy the prior. Source: ours, not in the paper, whose latent
    never sees the support's mask at test time. It stays out of training, where the features would lean on it.

    Args:
        weight: w; 0 switches it off.
        sigma: width of the Gaussian, in widths of the body.
        floor: :math:`\epsilon`, what a place far from the organ keeps.

    Shape:
        :meth:`condition`: masks ``(S, 1, H, W)`` and their frames ``(S, 4)`` to a map ``(64, 64)`` in the body's frame;
        :meth:`forward`: the map and frames ``(Q, 4)`` to ``(Q, H, W)``.
    """

    def __init__(self, weight: float = 2.0, sigma: float = 0.05, floor: float = 0.02) -> None:
        super().__init__()
        self.weight = weight
        self.floor = floor
        self.reach = REACH  # TorchScript sees attributes, not the module's constants
        places = (torch.arange(GRID) + 0.5) / GRID * (1 + 2 * REACH)
        blur = torch.exp(-0.5 * ((places[:, None] - places[None]) / sigma) ** 2)
        self.register_buffer("blur", blur / blur.sum(1, keepdim=True), persistent=False)

    def condition(self, masks: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        places = (torch.arange(GRID, device=masks.device) + 0.5) / GRID * (1 + 2 * REACH) - REACH
        rows = frames[:, 0:1] + places * (frames[:, 1:2] - frames[:, 0:1])  # (S, GRID), as shares of the image
        columns = frames[:, 2:3] + places * (frames[:, 3:4] - frames[:, 2:3])
        # covered area first: what lies between the points of the map would be lost
        masks = F.adaptive_avg_pool2d(masks.float(), [min(masks.shape[2], GRID), min(masks.shape[3], GRID)])
        moved = _sample(masks, rows, columns, "zeros").mean(0)[0]
        smooth = self.blur @ moved @ self.blur.t()
        return self.weight * (torch.log(smooth / smooth.max().clamp(min=1e-6) + self.floor) - math.log(0.5))

    def forward(self, position: torch.Tensor, frames: torch.Tensor, size: list[int]) -> torch.Tensor:
        rows = (torch.arange(size[0], device=frames.device) + 0.5) / size[0]
        columns = (torch.arange(size[1], device=frames.device) + 0.5) / size[1]
        rows = (rows - frames[:, 0:1]) / (frames[:, 1:2] - frames[:, 0:1])  # (Q, H), as shares of the body's box
        columns = (columns - frames[:, 2:3]) / (frames[:, 3:4] - frames[:, 2:3])
        maps = position[None, None].expand(frames.shape[0], -1, -1, -1)
        return _sample(
            maps, (rows + self.reach) / (1 + 2 * self.reach), (columns + self.reach) / (1 + 2 * self.reach), "border"
        )[:, 0]


def _sample(maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, padding: str) -> torch.Tensor:
    """Maps ``(B, 1, h, w)`` at rows ``(B, H)`` x columns ``(B, W)``, given as shares of the map's height and width."""
    height, width = rows.shape[1], columns.shape[1]
    grid = torch.stack(
        [(2 * columns - 1)[:, None, :].expand(-1, height, -1), (2 * rows - 1)[:, :, None].expand(-1, -1, width)], dim=-1
    )
    return F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", padding_mode=padding, align_corners=False)
