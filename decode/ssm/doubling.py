"""The rows B̄, ĀB̄, Ā²B̄, … and C, CĀ, CĀ², … by doubling, with gradients written by hand.

If the first k rows are known, and Āᵏ, then the next k are those times Āᵏ. All products write into,
or add to, one buffer of rows and one gradient a power, where automatic differentiation would join
and split copies at every level; this is the part of a training step that does not shrink with the
batch.

Letters: H channels, N state size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def doubled_rows(
    E: Tensor, reach: Tensor, readout: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first `length` rows of both sequences, each (H, length, N), and Āˡᵉⁿᵍᵗʰ − I, (H, N, N).

    E: Āᵏ − I, (H, N, N).   reach, readout: (H, k, N), the first k rows; k ≤ length. What is
    returned last is of the smallest power k·2ⁱ that is at least `length`, whether equal or not.
    """
    result: tuple[Tensor, Tensor, Tensor] = _Doubling.apply(  # type: ignore[no-untyped-call]
        E, reach, readout, length
    )
    return result


class _Doubling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, E: Tensor, reach: Tensor, readout: Tensor, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        known, (H, _, N) = reach.shape[1], E.shape
        ctx.known = known
        rows = [x.new_empty(H, length, N) for x in (reach, readout)]
        rows[0][:, :known], rows[1][:, :known] = reach, readout
        powers = [E]
        while known < length:
            new = slice(known, min(2 * known, length))
            for x, map_of_rows in zip(rows, (E.mT, E), strict=True):
                old = x[:, : new.stop - known]
                x[:, new] = torch.baddbmm(old, old, map_of_rows)
            E = torch.baddbmm(E, E, E, beta=2)  # (I + E)² = I + (2E + E²)
            powers.append(E)
            known *= 2
        ctx.save_for_backward(*rows, *powers[:-1])
        return rows[0], rows[1], E

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_reach: Tensor, grad_readout: Tensor, grad_E: Tensor
    ) -> tuple[Tensor | None, ...]:
        reach, readout, *powers = ctx.saved_tensors
        grads = [grad_reach.clone(), grad_readout.clone()]  # H length N
        for level in reversed(range(len(powers))):
            E, known = powers[level], ctx.known << level
            new = slice(known, min(2 * known, reach.shape[1]))
            old = slice(0, new.stop - known)
            of_square = grad_E
            grad_E = torch.baddbmm(of_square, of_square, E.mT, beta=2)  # H N N
            grad_E.baddbmm_(E.mT, of_square)
            grad_E.baddbmm_(grads[0][:, new].mT, reach[:, old])
            grad_E.baddbmm_(readout[:, old].mT, grads[1][:, new])
            for grad, map_of_rows in zip(grads, (E, E.mT), strict=True):
                later = grad[:, new]
                grad[:, old] += torch.baddbmm(later, later, map_of_rows)
        return grad_E, grads[0][:, : ctx.known], grads[1][:, : ctx.known], None
