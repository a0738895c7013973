"""Kernels and causal convolutions of discrete systems, as batched matrix products.

Write an index as l = i + m·j. Then

    K[l] = C Āˡ B̄ = (C Āⁱ) · (Āᵐʲ B̄)

is a product of an m × N by an N × J matrix per channel, and both factors come from doubling:
the first 2k columns of a Krylov sequence are [V, Āᵏ V], the next power is a square. No Cauchy
matrix, no roots of unity, no complex numbers, any length, exact gradients.

The same factors convolve without a kernel of length L. Cut the sequence into blocks of m; let x
be the state before a block and u its inputs:

    y[i]  = C Āⁱ⁺¹ x + Σ_{j ≤ i} K[i−j] u[j]          (what the past and the block itself give)
    x_new = Āᵐ x + Σ_j Āᵐ⁻¹⁻ʲ B̄ u[j]

`block_convolution` does all blocks of a sequence at once, `block_step` does one and hands the
state on, for streams. `kernel` with `fft_convolution` is another way to the same numbers.

Letters: H channels, N state size, L sequence, m block length, J blocks, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .system import Step, System, apply, power

BLOCK = 64
"""Default block length: as long as the usual state, so that no product is lopsided."""

FEW_STEPS = 24
"""Up to so many blocks are gone through one by one; more are joined in pairs first."""


@dataclass(frozen=True)
class BlockOperators:
    """What maps (state, block of m inputs) to (block of m outputs, next state).

    rows: (H, m, N), C Āⁱ⁺¹.   columns: (H, N, m), Āⁱ B̄.   advance: Āᵐ.
    taps: (H, m), K[i], with D added to the first.
    """

    rows: Tensor
    columns: Tensor
    taps: Tensor
    advance: Step

    @property
    def length(self) -> int:
        return self.taps.shape[1]


def block_operators(system: System, length: int) -> BlockOperators:
    """The operators of a block of `length` ≥ 1 inputs, powers by doubling."""
    columns = system.B[:, :, None]  # H N 1
    rows = system.C[:, None, :]  # H 1 N
    rows = rows + system.step.excess_of_rows(rows)  # H 1 N, C Ā
    doubled = system.step  # Ā to the number of columns so far
    while columns.shape[2] < length:
        columns = torch.cat([columns, apply(doubled, columns)], dim=2)  # H N 2k
        rows = torch.cat([rows, rows + doubled.excess_of_rows(rows)], dim=1)  # H 2k N
        doubled = doubled.then(doubled)
    exact = columns.shape[2] == length
    columns, rows = columns[:, :, :length], rows[:, :length]
    taps = torch.bmm(system.C[:, None], columns)[:, 0]  # H m
    return BlockOperators(
        rows=rows,
        columns=columns,
        taps=torch.cat([taps[:, :1] + system.D[:, None], taps[:, 1:]], dim=1),
        advance=doubled if exact else power(system.step, length),
    )


def krylov(step: Step, start: Tensor, count: int) -> Tensor:
    """[start, Ā start, …, Ā^(count−1) start] for start (H, N): (H, N, count)."""
    columns = start[:, :, None]  # H N 1
    while (missing := count - columns.shape[2]) > 0:
        columns = torch.cat([columns, apply(step, columns[:, :, :missing])], dim=2)
        if columns.shape[2] < count:
            step = step.then(step)
    return columns


def kernel(system: System, length: int) -> Tensor:
    """The impulse response K[l] = C Āˡ B̄ (+ D at l = 0) for 0 ≤ l < length: (H, L)."""
    if length == 1:
        return block_operators(system, 1).taps
    block = 1 << ((length - 1).bit_length() // 2)  # about √L
    operators = block_operators(system, block)
    starts = krylov(operators.advance, system.B, -(-(length - 1) // block))  # H N J
    K = torch.bmm(operators.rows, starts).transpose(1, 2).flatten(1)  # H J·m, K[1:]
    return torch.cat([operators.taps[:, :1], K[:, : length - 1]], dim=1)  # H L


def states_before(step: Step, inputs: Tensor, start: Tensor) -> Tensor:
    """The states before each of J steps x ← (I + E) x + v[j], from v (H, N, J, B).

    start: (H, N, 1, B), the state before the first step. Returns (H, N, J, B). Two steps make
    one step with the squared map: a few such levels leave few steps that wait for one another,
    and below those a square costs more than it saves.
    """
    num_steps = inputs.shape[2]
    if num_steps <= FEW_STEPS:
        return _states_before_one_by_one(step, inputs, start)
    even, odd = inputs[:, :, 0::2], inputs[:, :, 1::2]  # H N ⌈J/2⌉ B, H N ⌊J/2⌋ B
    pairs = apply(step, even[:, :, : odd.shape[2]]) + odd  # H N ⌊J/2⌋ B
    if num_steps % 2:  # the last step's own result is never asked for: anything will do
        pairs = torch.cat([pairs, even[:, :, -1:]], dim=2)  # H N ⌈J/2⌉ B
    before_even = states_before(step.then(step), pairs, start)  # H N ⌈J/2⌉ B
    before_odd = apply(step, before_even) + even  # H N ⌈J/2⌉ B
    return torch.stack([before_even, before_odd], dim=3).flatten(2, 3)[:, :, :num_steps]


def _states_before_one_by_one(step: Step, inputs: Tensor, start: Tensor) -> Tensor:
    states = [start]  # each H N 1 B
    for v in torch.split(inputs[:, :, :-1], 1, dim=2):
        states.append(apply(step, states[-1]) + v)
    return torch.cat(states, dim=2)  # H N J B


def block_convolution(system: System, u: Tensor, *, block: int = BLOCK) -> Tensor:
    """y = K * u + D u, causal, from a zero state. u, y: (H, B, L), any L."""
    H, B, L = u.shape
    operators = block_operators(system, min(block, 1 << (L - 1).bit_length()))
    m = operators.length
    J = -(-L // m)
    u = torch.nn.functional.pad(u, (0, J * m - L)).view(H, B * J, m)
    y = torch.bmm(u, toeplitz(operators.taps).mT)  # H B·J m
    if J > 1:
        inputs = torch.bmm(u, operators.columns.flip(2).mT)  # H B·J N
        inputs = inputs.view(H, B, J, -1).permute(0, 3, 2, 1)  # H N J B
        zero = inputs.new_zeros(H, inputs.shape[1], 1, B)
        x = states_before(operators.advance, inputs, zero)  # H N J B
        x = x.permute(0, 3, 2, 1).reshape(H, B * J, -1)  # H B·J N
        y = torch.baddbmm(y, x, operators.rows.mT)  # H B·J m
    return y.view(H, B, J * m)[:, :, :L]


def toeplitz(taps: Tensor) -> Tensor:
    """T[i, j] = taps[i − j] for j ≤ i, else 0: (H, m) → (H, m, m)."""
    m = taps.shape[1]
    padded = torch.nn.functional.pad(taps.flip(1), (0, m - 1))  # H 2m−1, reversed in time
    # Row i of T is taps[i], taps[i−1], …, taps[0], 0, …: the window that begins at m−1−i.
    return padded.unfold(1, m, 1).flip(1)  # H m m


def block_step(operators: BlockOperators, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One block of a stream: inputs u (H, B, m) and state x (H, N, B) to outputs and new state."""
    y = torch.bmm(u, toeplitz(operators.taps).mT)  # H B m
    y = torch.baddbmm(y, x.mT, operators.rows.mT)  # H B m
    inputs = torch.bmm(operators.columns.flip(2), u.mT)  # H N B
    return y, apply(operators.advance, x) + inputs


def fft_convolution(K: Tensor, u: Tensor) -> Tensor:
    """y[l] = Σ_j K[l−j] u[j], causal, by the FFT. K: (H, L), u, y: (H, B, L)."""
    L = u.shape[2]
    size = fast_fft_length(2 * L - 1)
    spectrum = torch.fft.rfft(K, n=size)[:, None] * torch.fft.rfft(u, n=size)  # H B size/2+1
    y: Tensor = torch.fft.irfft(spectrum, n=size)[..., :L]
    return y


def fast_fft_length(at_least: int) -> int:
    """The smallest even 2ᵃ·3ᵇ·5ᶜ that is at least `at_least`: lengths an FFT is quick at."""
    best = 1 << max(1, (at_least - 1).bit_length())
    five = 1
    while five < best:
        three = five
        while three < best:
            rest = -(-at_least // three)
            best = min(best, three << max(1, (rest - 1).bit_length()))
            three *= 3
        five *= 5
    return best
