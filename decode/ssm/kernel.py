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

from .doubling import doubled_rows
from .system import Dense, LowRank, Step, System, apply, power
from .walk import padded_length, product_dtype, toeplitz, walk

BLOCK = 64
"""Block length: as long as the usual state, so that no product is lopsided."""

MANY_INPUTS = 2**15
"""Inputs a channel from which blocks of twice that length pay: their operators cost more, once."""


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
    while reach.shape[1] < length and not isinstance(doubled, Dense):
        reach = torch.cat([reach, apply(doubled, reach)], dim=1)  # H 2k N
        readout = torch.cat([readout, readout + doubled.excess_transposed(readout)], dim=1)
        doubled = doubled.then(doubled)
    exact = length & (length - 1) == 0
    if reach.shape[1] < length:
        reach, readout, E = doubled_rows(doubled.matrix(), reach, readout, length)
        doubled = Dense(E)
    reach, readout = reach[:, :length], readout[:, :length]
    return BlockOperators(
        readout=readout,
        reach=reach,
        taps=_taps(system, reach),
        advance=doubled if exact else power(system.step, length),
    )


def _taps(system: System, reach: Tensor) -> Tensor:
    taps = torch.bmm(reach, system.C[:, :, None])[..., 0]  # H m
    return torch.cat([taps[:, :1] + system.D[:, None], taps[:, 1:]], dim=1)


def first_taps(system: System, length: int) -> Tensor:
    """K[l] with D added to the first, (H, length), without what hands a state on."""
    return _taps(system, krylov(system.step, system.B, length))


def krylov(step: Step, start: Tensor, count: int) -> Tensor:
    """start, Ā start, …, Ā^(count−1) start, from start (H, N): (H, count, N).

    A step whose square would be a full matrix is applied again and again instead: for the few rows
    of a short window, the squares would cost more than all else.
    """
    rows = start[:, None]  # H 1 N
    stride = 1  # the rows that `step` goes on by
    while (missing := count - rows.shape[1]) > 0:
        rows = torch.cat([rows, apply(step, rows[:, -stride:][:, :missing])], dim=1)
        if rows.shape[1] < count and not (isinstance(step, LowRank) and step.is_full):
            step, stride = step.then(step), rows.shape[1]
    return rows


def kernel(system: System, length: int) -> Tensor:
    """The impulse response K[l] = C Āˡ B̄ (+ D at l = 0) for 0 ≤ l < length: (H, L)."""
    if length == 1:
        return first_taps(system, 1)
    block = 1 << ((length - 1).bit_length() // 2)  # about √L
    operators = block_operators(system, block)
    starts = krylov(operators.advance, system.B, -(-(length - 1) // block))  # H J N
    K = torch.bmm(starts, operators.readout.mT).flatten(1)  # H J·m, K[1:]
    return torch.cat([operators.taps[:, :1], K[:, : length - 1]], dim=1)  # H L


def block_convolution(system: System, u: Tensor, *, block: int | None = None) -> Tensor:
    """y = K * u + D u, causal, from a zero state. u, y: (H, B, L), any L and strides.

    block: its length m, by default the quicker one; changes nothing but speed and rounding. Inputs
    in bfloat16 are multiplied and answered in bfloat16, all else in the type of the system.
    """
    block = block or block_length(u.shape[1:])
    return convolve_blocks(u, *block_inputs(system, length=u.shape[2], block=block))


def block_length(shape: torch.Size) -> int:
    """The quicker one for inputs of `shape`, (B, L)."""
    return BLOCK if shape.numel() < MANY_INPUTS else 2 * BLOCK


def block_inputs(system: System, *, length: int, block: int) -> tuple[Tensor, ...]:
    """What `convolve_blocks` needs of a system for sequences of `length`; no batch is in it.

    The taps alone where one block holds the sequence: nothing is handed on.
    """
    if length <= block:
        return (first_taps(system, length),)
    operators = block_operators(system, block)
    return operators.taps, operators.readout, operators.reach, operators.advance.matrix()


def inputs_length(length: int, block: int) -> int:
    """How long `convolve_blocks` makes sequences of `length` by zeros at their end; longer ones, of
    that length already, need no copy."""
    return length if length <= block else padded_length(length, block)


def convolve_blocks(u: Tensor, taps: Tensor, *handing_on: Tensor) -> Tensor:
    """`block_convolution` with what `block_inputs` made."""
    if handing_on:
        return walk(u, taps, *handing_on)
    dtype = product_dtype(u, taps)
    return torch.bmm(u.to(dtype), toeplitz(taps).mT.to(dtype))  # H B L


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
