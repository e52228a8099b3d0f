r"""The gradients of the two-level selective scan, written by hand: they recompute the states of a segment at a time.

With :math:`a_t = \exp(\Delta_t A)`, :math:`h_t = a_t h_{t-1} + \Delta_t u_t B_t` and :math:`y_t = C_t^T h_t`, the
adjoint of the state is :math:`\lambda_t = C_t\,\partial y_t + a_{t+1} \lambda_{t+1}`, a scan from the last step to the
first, which is taken in two levels as the forward is. From it

.. math:: \partial B_t = \sum_d \lambda_t \Delta_t u_t,\quad \partial C_t = \sum_d h_t\,\partial y_t,\quad
          \partial(\Delta_t u_t) = B_t^T \lambda_t,\quad q_t = \lambda_t a_t h_{t-1},\quad
          \partial\Delta_t = \sum_n q_t A,\quad \partial A = \sum_t q_t \Delta_t .

Nothing of size ``B * D * N * L`` ever exists: two arrays of that kind are held for one tile of one segment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .chunked_forward import by_row, by_row_parameter, by_step, carry, rows_of


def backward(u, delta, A, B, C, D, delta_bias, delta_softplus, sizes, first, y_grad):
    """The gradients of the seven inputs, None for those not given.

    Args:
        u, delta, A, B, C, D, delta_bias, delta_softplus, sizes: as in the forward.
        first: the chunks' first states, as the forward returns them.
        y_grad: of the output.
    """
    rows = rows_of(u, B)
    steps, chunks, block = sizes
    scan = _Backward(u, delta, A, B, C, D, delta_bias, delta_softplus, rows, y_grad)
    blocks = [slice(c, min(c + block, scan.u.shape[1])) for c in range(0, scan.u.shape[1], block)]
    adjoint = [u.new_zeros(rows, c.stop - c.start, A.shape[1], 1) for c in blocks]
    first = list(first)
    for start in reversed(range(0, u.shape[2], steps * chunks)):
        tokens = slice(start, min(start + steps * chunks, u.shape[2]))
        segment = _Segment(scan, tokens, steps)
        for i in reversed(range(len(blocks))):
            adjoint[i] = segment.walk_back(blocks[i], first.pop(), adjoint[i])
        segment.write_shared()
    return scan.gradients(A, B, D, delta_bias)


class _Backward:
    """The inputs by rows, and the gradients, filled in place."""

    def __init__(self, u, delta, A, B, C, D, delta_bias, delta_softplus, rows, y_grad):
        self.u, self.delta, self.B, self.C, self.y_grad = (by_row(x, rows) for x in (u, delta, B, C, y_grad))
        self.A, self.D, self.shift = (by_row_parameter(x, u, rows) for x in (A, D, delta_bias))
        self.rate, self.softplus = self.A * 1.4426950408889634, delta_softplus
        self.u_grad, self.delta_grad = torch.empty_like(self.u), torch.empty_like(self.delta)
        self.B_grad, self.C_grad = torch.empty_like(self.B), torch.empty_like(self.C)
        self.A_grad, self.D_grad, self.shift_grad = (torch.zeros_like(x) for x in (self.A, self.D, self.shift))
        self.shape, self.room = u.shape, u.new_empty(0)

    def tiles(self, steps: int, shape: torch.Size) -> Tensor:
        """Room for a segment's states, decays and one more: fresh memory for each would cost more than the sums."""
        size = (2 * steps + 2) * shape.numel()
        if self.room.numel() < size:
            self.room = self.room.new_empty(size)
        return self.room[:size].view(2 * steps + 2, *shape)

    def gradients(self, A, B, D, delta_bias):
        """In the order and the shapes of the inputs."""
        batch, channels, _ = self.shape
        of_A, of_D, of_shift = (x.view(batch, channels, -1).sum(0) for x in (self.A_grad, self.D_grad, self.shift_grad))
        return (
            self.u_grad.view(self.shape),
            self.delta_grad.view(self.shape),
            of_A,
            self.B_grad.view(B.shape),
            self.C_grad.view(B.shape),
            None if D is None else of_D[:, 0],
            None if delta_bias is None else of_shift[:, 0],
        )


class _Segment:
    """The walk back through one segment, block of channels by block."""

    def __init__(self, scan: _Backward, tokens: slice, steps: int):
        self.scan, self.tokens, self.steps = scan, tokens, steps
        self.B, self.C = by_step(scan.B[..., tokens], steps, 1), by_step(scan.C[..., tokens], steps, 1)
        self.B_grad, self.C_grad = ([torch.zeros_like(x) for x in self.B] for _ in range(2))

    def walk_back(self, channels: slice, first: Tensor, adjoint: Tensor) -> Tensor:
        """Fill in the gradients of a block of channels; from the adjoint after the segment to that before it."""
        scan, here = self.scan, (slice(None), channels, self.tokens)
        raw, skip = scan.delta[here] + scan.shift[:, channels], scan.D[:, channels]
        dt = F.softplus(raw) if scan.softplus else raw
        u, y_grad = scan.u[here], scan.y_grad[here]
        dt_t, w_t, y_t = (by_step(x, self.steps, 2) for x in (dt, dt * u, y_grad))
        rate, room = scan.rate[:, channels].unsqueeze(3), scan.tiles(self.steps, first.shape)
        states, decays, spare = room[: self.steps + 1], room[self.steps + 1 : -1], room[-1]
        self._recompute(dt_t, w_t, rate, first, states, decays, spare)
        adjoint = self._adjoints(dt_t, y_t, rate, adjoint, decays, spare)
        rate = scan.A[:, channels].unsqueeze(3)
        of_w, of_dt, of_A = self._gradients(dt_t, w_t, y_t, rate, adjoint, states, decays, spare)
        w_grad, dt_grad = self._by_token(of_w), self._by_token(of_dt)
        raw_grad = dt_grad + w_grad * u
        raw_grad = raw_grad * torch.where(raw > 20, 1.0, torch.sigmoid(raw)) if scan.softplus else raw_grad
        scan.u_grad[here] = w_grad * dt + skip * y_grad
        scan.delta_grad[here] = raw_grad
        scan.A_grad[:, channels] += of_A
        scan.D_grad[:, channels] += (y_grad * u).sum(2, keepdim=True)
        scan.shift_grad[:, channels] += raw_grad.sum(2, keepdim=True)
        return adjoint[..., :1].clone()

    def _recompute(self, dt, w, rate, first, states, decays, spare) -> None:
        """The states before every step and after the last, and the decays: by the very operations of the forward."""
        states[0] = first
        for t in range(self.steps):
            torch.mul(dt[t], rate, out=decays[t]).exp2_()
            torch.addcmul(torch.mul(w[t], self.B[t], out=spare), decays[t], states[t], out=states[t + 1])

    def _adjoints(self, dt, y_grad, rate, adjoint, decays, own) -> Tensor:
        """What each chunk's last state receives from the steps behind it."""
        if dt[0].shape[3] == 1:
            return adjoint.clone()
        own.zero_()
        for t in reversed(range(self.steps)):
            own.addcmul_(y_grad[t], self.C[t]).mul_(decays[t])
        decay = (torch.stack(dt).sum(0) * rate).exp2_()
        return carry(decay.flip(3), own.flip(3), adjoint).flip(3)

    def _gradients(self, dt, w, y_grad, A, adjoint, states, decays, spare) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Of ``dt * u`` and ``dt`` by step and of A; of B and C into the segment's; ``adjoint`` walks to the front."""
        of_w, of_dt, of_A = [], [], torch.zeros_like(adjoint)
        for t in reversed(range(self.steps)):
            self.C_grad[t] += torch.mul(states[t + 1], y_grad[t], out=spare).sum(1, keepdim=True)
            adjoint.addcmul_(y_grad[t], self.C[t])
            self.B_grad[t] += torch.mul(adjoint, w[t], out=spare).sum(1, keepdim=True)
            of_w.append(torch.mul(adjoint, self.B[t], out=spare).sum(2))
            adjoint.mul_(decays[t])
            torch.mul(adjoint, states[t], out=spare)
            of_A.addcmul_(spare, dt[t])
            of_dt.append(spare.mul_(A).sum(2))
        return of_w[::-1], of_dt[::-1], of_A.sum(3)

    def _by_token(self, steps: list[Tensor]) -> Tensor:
        """The tensors ``(rows, k, n)`` of each step as ``(rows, k, l)``, without what filled the end."""
        return torch.stack(steps, 3).flatten(2)[..., : self.tokens.stop - self.tokens.start]

    def write_shared(self) -> None:
        """The gradients of B and C, complete when all channels have been walked."""
        here = (slice(None), slice(None), self.tokens)
        self.scan.B_grad[here] = self._by_token([x.squeeze(1) for x in self.B_grad])
        self.scan.C_grad[here] = self._by_token([x.squeeze(1) for x in self.C_grad])
