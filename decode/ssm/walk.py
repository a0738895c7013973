"""The walk of a state through the blocks of a sequence, with gradients written by hand.

One block of m inputs u and the state x before it give m outputs y and the state after it,

    [ y  ]   [ T   R   ] [ u ]
    [ x' ] = [ Gᵀ  I+E ] [ x ]

with T the Toeplitz matrix of the taps, R the readout C Āⁱ⁺¹, G the reach Āᵐ⁻¹⁻ⁱ B̄ and E = Āᵐ − I.
Going back, the gradients g of y and λ of x' go through the transposed matrix in reversed time, and
the gradient of the whole matrix is the sum over the blocks of [g; λ] [u; x]ᵀ.

Sequences in bfloat16 are multiplied in bfloat16, with sums in float32. The state is what could
collect errors over a long sequence, so the squares of I + E, and the steps that wait for one
another, stay in the type of the system; the levels above, through which a number passes once, do
not. An output is off by some parts in 2⁹, as after any product in bfloat16, at any length.

Letters: H channels, B batch, L sequence, J blocks, m block length, N state size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

FEW_STEPS = 24
"""Up to so many blocks are gone through one by one; more are joined in pairs first."""


def walk(u: Tensor, taps: Tensor, readout: Tensor, reach: Tensor, E: Tensor) -> Tensor:
    """The outputs of all blocks from a zero state: u (H, B, L) → (H, B, L), any L and strides.

    taps: (H, m), the direct term in the first.   readout: (H, m, N), C Āⁱ⁺¹.   reach: (H, m, N),
    Āⁱ B̄.   E: (H, N, N), Āᵐ − I.   The result has the type of taps, or bfloat16 if u has.
    """
    y: Tensor = _Walk.apply(u, taps, readout, reach, E)  # type: ignore[no-untyped-call]
    return y


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, taps: Tensor, readout: Tensor, reach: Tensor, E: Tensor
    ) -> Tensor:
        (H, B, L), (_, m, N), dtype = u.shape, reach.shape, product_dtype(u, taps)
        ctx.types = u.dtype, E.dtype
        T = toeplitz(taps.to(dtype))  # H m m
        readout, latest = readout.to(dtype), reach.to(dtype).flip(1)  # H m N
        blocks = _blocks(u, m, dtype)  # H B J m
        rows = blocks.flatten(1, 2)  # H B·J m
        squares = _squares(E, blocks.shape[2])
        x = states_before(squares, torch.bmm(rows, latest).view(H, B, -1, N))  # H B J N
        ctx.save_for_backward(blocks, x, T, readout, latest, *squares)
        y = torch.bmm(rows, T.mT).baddbmm_(x.flatten(1, 2), readout.mT)  # H B·J m
        return y.view(H, B, -1)[:, :, :L]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        blocks, x, T, readout, latest, *squares = ctx.saved_tensors
        (H, B, L), (type_of_u, type_of_system) = grad_y.shape, ctx.types
        g = _blocks(grad_y, T.shape[1], T.dtype).flatten(1, 2)  # H B·J m
        grad_x = torch.bmm(g, readout).view(x.shape)  # H B J N
        transposed = [E.mT for E in squares]
        after = states_before(transposed, grad_x, reverse=True).flatten(1, 2)  # H B·J N, λ
        u, x = blocks.flatten(1, 2), x.flatten(1, 2)
        grad_u = None
        if ctx.needs_input_grad[0]:
            grad_u = torch.bmm(g, T).baddbmm_(after, latest.mT)  # H B·J m
            grad_u = grad_u.view(H, B, -1)[:, :, :L].to(type_of_u)
        of_T, of_readout, of_latest, of_E = (
            torch.bmm(a.mT, b).to(type_of_system)
            for a, b in ((g, u), (g, x), (u, after), (after, x))
        )
        return grad_u, _sums_of_diagonals(of_T), of_readout, of_latest.flip(1), of_E


def product_dtype(u: Tensor, operator: Tensor) -> torch.dtype:
    """In which products of the sequence with operators are taken."""
    return u.dtype if u.dtype == torch.bfloat16 else operator.dtype


def toeplitz(taps: Tensor) -> Tensor:
    """T[i, j] = taps[i − j] for j ≤ i, else 0: (H, m) → (H, m, m)."""
    m = taps.shape[1]
    padded = pad(taps.flip(1), (0, m - 1))  # H 2m−1, reversed in time
    # Row i of T is taps[i], taps[i−1], …, taps[0], 0, …: the window that begins at m−1−i.
    return padded.unfold(1, m, 1).flip(1)  # H m m


def _sums_of_diagonals(T: Tensor) -> Tensor:
    """Σ_i T[i, i−k] for 0 ≤ k < m, the transpose of `toeplitz`: (H, m, m) → (H, m)."""
    H, m, _ = T.shape
    # With m zeros before each row, going down a diagonal is going on by 2m + 1 places.
    padded = pad(T, (m, 0)).flatten(1)  # H 2m²
    diagonals = padded.as_strided((H, m, m), (2 * m * m, 2 * m + 1, 1), 1)  # H i m−1−k
    return diagonals.sum(dim=1).flip(1)  # H m


def _blocks(u: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """(H, B, L) of any strides → (H, B, J, length), zeros after the end. No copy where there is
    nothing to change."""
    H, B, L = u.shape
    size = padded_length(L, length)
    if size == L and u.dtype == dtype and u.is_contiguous():
        return u.view(H, B, -1, length)
    blocks = torch.empty(H, B, size, dtype=dtype, device=u.device)
    blocks[:, :, :L] = u
    blocks[:, :, L:] = 0
    return blocks.view(H, B, -1, length)


def padded_length(length: int, block: int) -> int:
    """Of a sequence with the zeros after it: whole blocks, in a number that halves evenly."""
    return _round_up(-(-length // block)) * block


def _round_up(num_blocks: int) -> int:
    """The next number that halves evenly until few are left."""
    halvings = max(0, (-(-num_blocks // FEW_STEPS) - 1).bit_length())
    return -(-num_blocks >> halvings) << halvings


def _squares(E: Tensor, num_steps: int) -> list[Tensor]:
    """E of the step, of its square, of the square of that …: one a level of `states_before`."""
    squares = [E]
    while num_steps > FEW_STEPS and num_steps % 2 == 0:
        E = torch.baddbmm(E, E, E, beta=2)  # (I + E)² = I + (2E + E²)
        squares.append(E)
        num_steps //= 2
    return squares


def states_before(squares: Sequence[Tensor], inputs: Tensor, *, reverse: bool = False) -> Tensor:
    """The states before each of J steps x ← (I + E) x + v[j] from zero: v, x (H, B, J, N).

    squares: E, and those of the squares of I + E. Two steps make one step with the squared map: a
    few such levels leave few steps that wait for one another, and below those a square costs more
    than it saves. reverse: from the last step to the first.
    """
    E, *rest = squares
    if not rest:
        return _one_by_one(E, inputs, reverse=reverse)
    pairs = torch.unflatten(inputs, 2, (-1, 2))  # H B J/2 2 N
    earlier, later = (1, 0) if reverse else (0, 1)
    first, second = pairs[..., earlier, :], pairs[..., later, :]  # H B J/2 N
    low = E if E.dtype == inputs.dtype else _whole(E).to(inputs.dtype)
    onward = _onward if E.dtype == inputs.dtype else _onward_whole
    before_first = states_before(rest, onward(low, first, second), reverse=reverse)
    states = torch.empty_like(pairs)
    states[..., earlier, :] = before_first
    states[..., later, :] = onward(low, before_first, first)
    return states.flatten(2, 3)  # H B J N


def _one_by_one(E: Tensor, inputs: Tensor, *, reverse: bool) -> Tensor:
    """In the type of E, whatever that of the inputs."""
    states = torch.empty_like(inputs)
    now = torch.zeros_like(inputs[:, :, 0], dtype=E.dtype)  # H B N
    order = range(inputs.shape[2])
    for j in reversed(order) if reverse else order:
        states[:, :, j] = now
        now = torch.baddbmm(now + inputs[:, :, j], now, E.mT)
    return states


def _whole(E: Tensor) -> Tensor:
    """I + E."""
    return E + torch.eye(E.shape[1], dtype=E.dtype, device=E.device)


def _onward(E: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """(I + E) x + v, with all digits of E: x, v (H, B, J, N)."""
    return torch.baddbmm((x + v).flatten(1, 2), x.flatten(1, 2), E.mT).view(x.shape)


def _onward_whole(A: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """A x + v: one pass over x and v less, where a type has no digits to keep anyway."""
    return torch.baddbmm(v.flatten(1, 2), x.flatten(1, 2), A.mT).view(x.shape)
