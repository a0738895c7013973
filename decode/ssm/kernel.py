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
from torch.nn.functional import pad

from .system import Step, System, apply, power

BLOCK = 64
"""Block length: as long as the usual state, so that no product is lopsided."""

MANY_INPUTS = 2**15
"""Inputs a channel from which blocks of twice that length pay: their operators cost more, once."""

FEW_STEPS = 24
"""Up to so many blocks are gone through one by one; more are joined in pairs first."""


@dataclass(frozen=True)
class BlockOperators:
    """What maps (state, block of m inputs) to (block of m outputs, next state).

    readout: (H, m, N), C Āⁱ⁺¹.   reach: (H, m, N), Āⁱ B̄.   advance: Āᵐ.
    taps: (H, m), K[i], with D added to the first.
    """

    readout: Tensor
    reach: Tensor
    taps: Tensor
    advance: Step

    @property
    def length(self) -> int:
        return self.taps.shape[1]


def block_operators(system: System, length: int) -> BlockOperators:
    """The operators of a block of `length` ≥ 1 inputs, powers by doubling."""
    reach = system.B[:, None]  # H 1 N
    readout = system.C[:, None]  # H 1 N
    readout = readout + system.step.excess_transposed(readout)  # H 1 N, C Ā
    doubled = system.step  # Ā to the number of rows so far
    while reach.shape[1] < length:
        reach = torch.cat([reach, apply(doubled, reach)], dim=1)  # H 2k N
        readout = torch.cat([readout, readout + doubled.excess_transposed(readout)], dim=1)
        doubled = doubled.then(doubled)
    exact = reach.shape[1] == length
    reach, readout = reach[:, :length], readout[:, :length]
    taps = torch.bmm(reach, system.C[:, :, None])[..., 0]  # H m
    return BlockOperators(
        readout=readout,
        reach=reach,
        taps=torch.cat([taps[:, :1] + system.D[:, None], taps[:, 1:]], dim=1),
        advance=doubled if exact else power(system.step, length),
    )


def krylov(step: Step, start: Tensor, count: int) -> Tensor:
    """start, Ā start, …, Ā^(count−1) start, from start (H, N): (H, count, N)."""
    rows = start[:, None]  # H 1 N
    while (missing := count - rows.shape[1]) > 0:
        rows = torch.cat([rows, apply(step, rows[:, :missing])], dim=1)
        if rows.shape[1] < count:
            step = step.then(step)
    return rows


def kernel(system: System, length: int) -> Tensor:
    """The impulse response K[l] = C Āˡ B̄ (+ D at l = 0) for 0 ≤ l < length: (H, L)."""
    if length == 1:
        return block_operators(system, 1).taps
    block = 1 << ((length - 1).bit_length() // 2)  # about √L
    operators = block_operators(system, block)
    starts = krylov(operators.advance, system.B, -(-(length - 1) // block))  # H J N
    K = torch.bmm(starts, operators.readout.mT).flatten(1)  # H J·m, K[1:]
    return torch.cat([operators.taps[:, :1], K[:, : length - 1]], dim=1)  # H L


def block_convolution(system: System, u: Tensor, *, block: int | None = None) -> Tensor:
    """y = K * u + D u, causal, from a zero state. u, y: (H, B, L), any L.

    block: its length m, by default the quicker one; changes nothing but speed and rounding.
    """
    H, B, L = u.shape
    block = block or (BLOCK if B * L < MANY_INPUTS else 2 * BLOCK)
    operators = block_operators(system, min(block, 1 << (L - 1).bit_length()))
    m = operators.length
    J = _round_up(-(-L // m))
    u = pad(u, (0, J * m - L)).view(H, B, J, m).transpose(1, 2).reshape(H, J * B, m)
    y = torch.bmm(u, toeplitz(operators.taps).mT)  # H J·B m
    if J > 1:
        inputs = torch.bmm(u, operators.reach.flip(1)).view(H, J, B, -1)  # H J B N
        x = states_before(operators.advance, inputs).flatten(1, 2)  # H J·B N
        y = torch.baddbmm(y, x, operators.readout.mT)  # H J·B m
    y = y.view(H, J, B, m).transpose(1, 2).reshape(H, B, J * m)
    return y[:, :, :L]


def _round_up(num_blocks: int) -> int:
    """The next number that halves evenly until few are left."""
    halvings = max(0, (-(-num_blocks // FEW_STEPS) - 1).bit_length())
    return -(-num_blocks >> halvings) << halvings


def states_before(step: Step, inputs: Tensor) -> Tensor:
    """The states before each of J steps x ← (I + E) x + v[j] from zero: v, x (H, J, B, N).

    Two steps make one step with the squared map: a few such levels leave few steps that wait for
    one another, and below those a square costs more than it saves.
    """
    num_steps = inputs.shape[1]
    if num_steps <= FEW_STEPS or num_steps % 2:
        return _states_before_one_by_one(step, inputs)
    first, second = torch.unflatten(inputs, 1, (-1, 2)).unbind(2)  # H J/2 B N
    before_first = states_before(step.then(step), apply(step, first) + second)  # H J/2 B N
    before_second = apply(step, before_first) + first  # H J/2 B N
    return torch.stack([before_first, before_second], dim=2).flatten(1, 2)  # H J B N


def _states_before_one_by_one(step: Step, inputs: Tensor) -> Tensor:
    now = torch.zeros_like(inputs[:, 0])  # H B N
    states = [now]
    for v in inputs.unbind(1)[:-1]:
        now = apply(step, now) + v
        states.append(now)
    return torch.stack(states, dim=1)  # H J B N


def toeplitz(taps: Tensor) -> Tensor:
    """T[i, j] = taps[i − j] for j ≤ i, else 0: (H, m) → (H, m, m)."""
    m = taps.shape[1]
    padded = pad(taps.flip(1), (0, m - 1))  # H 2m−1, reversed in time
    # Row i of T is taps[i], taps[i−1], …, taps[0], 0, …: the window that begins at m−1−i.
    return padded.unfold(1, m, 1).flip(1)  # H m m


def block_step(operators: BlockOperators, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One block of a stream: inputs u (H, B, m) and state x (H, B, N) to outputs and new state."""
    y = torch.bmm(u, toeplitz(operators.taps).mT)  # H B m
    y = torch.baddbmm(y, x, operators.readout.mT)  # H B m
    return y, apply(operators.advance, x) + torch.bmm(u, operators.reach.flip(1))  # …, H B N


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
