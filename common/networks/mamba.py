"""Mamba block: a selective state space over a sequence, or over the voxels of a grid in several orders at once."""

from __future__ import annotations

from math import ceil, log

import torch
import torch.nn.functional as F
from torch import nn

from common.selective_scan import selective_scan

__all__ = ["SCANS", "MambaBlock", "from_sequences", "scan_orders", "to_sequences"]

SCANS = ("bidirectional", "tri_axial")
TAPS = 4  # of the convolution
STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4  # of the first step sizes


def scan_orders(scan: str, spatial_dims: int) -> tuple[list[list[int]], list[bool]]:
    """The orders in which a scan visits a grid: for each the axes, slowest first, and whether it runs backwards.

    ``bidirectional`` is the order in memory and the same backwards; ``tri_axial`` lets each axis in turn be the
    fastest, the others keeping their order: of a plain sequence it is the one order forwards.

    Raises:
        ValueError: an unknown scan.
    """
    if scan not in SCANS:
        raise ValueError(f"scan must be one of {SCANS}, got {scan!r}.")
    axes = list(range(spatial_dims))
    if scan == "bidirectional":
        return [axes, axes], [False, True]
    permutations = [[axis for axis in axes if axis != last] + [last] for last in axes[::-1]]
    return permutations, [False] * len(permutations)


def to_sequences(x: torch.Tensor, permutations: list[list[int]], backwards: list[bool]) -> torch.Tensor:
    """``(B, E, *spatial)`` as ``(B, orders * E, L)``: the voxels in each of the orders, side by side as channels."""
    sequences: list[torch.Tensor] = []
    for axes, backward in zip(permutations, backwards):  # noqa: B905, TorchScript's zip knows no `strict`
        sequence = x.permute([0, 1] + [axis + 2 for axis in axes]).flatten(2)
        sequences.append(sequence.flip(2) if backward else sequence)
    return torch.cat(sequences, 1)


def from_sequences(
    y: torch.Tensor, permutations: list[list[int]], backwards: list[bool], size: list[int]
) -> torch.Tensor:
    """Back from `to_sequences`, summed over the orders: ``(B, orders * E, L)`` to ``(B, E, L)`` in memory order."""
    parts: list[torch.Tensor] = []
    for axes, backward, part in zip(permutations, backwards, y.chunk(len(permutations), 1)):  # noqa: B905
        if backward:
            part = part.flip(2)
        inverse = [0, 1] + [axes.index(axis) + 2 for axis in range(len(axes))]
        grid = part.reshape([y.shape[0], part.shape[1]] + [size[axis] for axis in axes])
        parts.append(grid.permute(inverse).flatten(2))
    return torch.stack(parts).sum(0)


class MambaBlock(nn.Module):
    r"""Mamba: project, convolve along the sequence, scan with input-dependent parameters, gate, project back.

    .. math:: h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \quad y_t = (C_t^\top h_t + D x_t)\,\mathrm{SiLU}(z_t)

    with :math:`\Delta = \mathrm{softplus}(W_\Delta x + b)`, :math:`A = -e^{A_{log}}`, and :math:`x` behind a causal
    depthwise convolution and a SiLU. Over a grid every order of `scan_orders` has parameters of its own, stacked along
    the first axis, and is one more set of channels of one scan; the orders share the projections in and out and are
    summed before the gate.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023. Names, shapes and
    first values of the parameters are those of ``mamba_ssm.Mamba``, so that its weights load into a block of one order.
    Departures: the several orders, summed as in Xing et al., "SegMamba", MICCAI 2024, there with other names.

    Args:
        channels: of a token, C.
        d_state: states N of a channel.
        expand: inner channels E in units of C.
        scan: one of `SCANS`.
        spatial_dims: axes of the grid the tokens lie on, slowest first; 1 for a plain sequence.

    Shape:
        ``(B, L, C)`` to the same; ``size`` is the grid's, of product L, and may be left out for a plain sequence.

    Raises:
        ValueError: an unknown scan, a number below 1; tokens of another shape, or that do not fill the grid.
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 16,
        expand: int = 2,
        scan: str = "tri_axial",
        spatial_dims: int = 1,
    ) -> None:
        super().__init__()
        if min(channels, d_state, expand, spatial_dims) < 1:
            raise ValueError(
                "channels, d_state, expand and spatial_dims must be at least 1, "
                f"got {channels}, {d_state}, {expand}, {spatial_dims}."
            )
        rank = ceil(channels / 16)  # of the map to the step sizes
        self.permutations, self.backwards = scan_orders(scan, spatial_dims)
        self.channels, self.states, self.rank, self.orders = channels, d_state, rank, len(self.backwards)
        self.inner = inner = expand * channels
        every = self.orders * inner
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(every, every, TAPS, groups=every, padding=TAPS - 1)
        self.x_proj = nn.Linear(inner, self.orders * (rank + 2 * d_state), bias=False)
        self.dt_proj = nn.Linear(rank, every)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(every, 1))
        self.D = nn.Parameter(torch.ones(every))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self._reset_steps()

    def _reset_steps(self) -> None:
        """Step sizes log-uniform in [STEP_MIN, STEP_MAX]: the bias is the inverse of softplus at such a draw."""
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            draw = torch.rand_like(self.dt_proj.bias) * (log(STEP_MAX) - log(STEP_MIN)) + log(STEP_MIN)
            step = draw.exp().clamp(min=STEP_FLOOR)
            self.dt_proj.bias.copy_(step + (-torch.expm1(-step)).log())

    def forward(self, tokens: torch.Tensor, size: list[int] | None = None) -> torch.Tensor:
        grid = self._grid(tokens, size)
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, 1)
        x = to_sequences(x.unflatten(2, grid), self.permutations, self.backwards)
        x = F.silu(self.conv1d(x)[:, :, : tokens.shape[1]])
        y = from_sequences(self._scan(x), self.permutations, self.backwards, grid)
        return self.out_proj((y * F.silu(z)).transpose(1, 2))

    def _scan(self, x: torch.Tensor) -> torch.Tensor:
        """Every order's selective scan of its sequence: ``(B, orders * E, L)`` to the same."""
        x_weight = self.x_proj.weight.unflatten(0, [self.orders, -1])
        dt_weight = self.dt_proj.weight.unflatten(0, [self.orders, -1])
        mixed = torch.matmul(x_weight, x.unflatten(1, [self.orders, self.inner]))
        low, B, C = mixed.split([self.rank, self.states, self.states], 2)
        delta = torch.matmul(dt_weight, low).flatten(1, 2)
        return selective_scan(
            x,
            delta,
            -torch.exp(self.A_log.float()),
            B,
            C,
            D=self.D.float(),
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
        )

    def _grid(self, tokens: torch.Tensor, size: list[int] | None) -> list[int]:
        """The size of the grid, checked against the tokens."""
        dims = len(self.permutations[0])
        if tokens.dim() != 3 or tokens.shape[2] != self.channels:
            raise ValueError(f"expected tokens (B, L, {self.channels}), got shape {list(tokens.shape)}.")
        grid = [tokens.shape[1]] if size is None else size
        count = 1
        for length in grid:
            count *= length
        if len(grid) != dims or count != tokens.shape[1] or count < 1:
            raise ValueError(f"expected a grid of {dims} axes that {tokens.shape[1]} tokens fill, got size {grid}.")
        return grid
