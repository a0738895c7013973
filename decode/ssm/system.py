"""Discrete linear systems, one per channel, in real coordinates, and their exact powers.

    x[l] = Ā x[l−1] + B̄ u[l],   y[l] = C x[l] + D u[l]

A complex state of n conjugate pairs is held as the real vector [Re x, Im x] of length N = 2n, so
that everything that follows is real matrix arithmetic. `Dense` steps have a full Ā per channel
(S4), `Diagonal` steps a 2×2 rotation and scale per pair (S4D). Nothing here knows about
parameters, layers or batches.

Both keep E = Ā − I rather than Ā. With a step of 1e-3 the entries of Ā are 1 plus something of
that size, and a float32 Ā would lose four digits of it; in the powers (I+E)² = I + (2E + E²) the
digits survive, at the same cost.

States stand in rows, so that a slice of them is still one that matrix products read as it is.

Letters: H channels, N state size, J any number of states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Step(Protocol):
    """A linear map I + E on the states of all channels."""

    def excess(self, x: Tensor) -> Tensor:
        """E x for every state x: (H, J, N), or (H, J, …, N), in and out."""

    def excess_transposed(self, c: Tensor) -> Tensor:
        """Eᵀ c, that is c E of a row vector, for every c: (H, J, N) in and out."""

    def then(self, other: Step) -> Step:
        """The composition of the two maps; they commute, being powers of one matrix."""


@dataclass(frozen=True)
class Dense:
    """I + E with a full matrix E (H, N, N) per channel."""

    E: Tensor

    def excess(self, x: Tensor) -> Tensor:
        return torch.bmm(x.flatten(1, -2), self.E.mT).view(x.shape)  # H J … N

    def excess_transposed(self, c: Tensor) -> Tensor:
        return torch.bmm(c, self.E)  # H J N

    def then(self, other: Step) -> Dense:
        assert isinstance(other, Dense)
        return Dense(torch.baddbmm(self.E + other.E, self.E, other.E))  # H N N


@dataclass(frozen=True)
class Diagonal:
    """I + E with E multiplying each complex pair by re + i·im; both (H, n)."""

    re: Tensor
    im: Tensor

    def excess(self, x: Tensor) -> Tensor:
        return _times(x.flatten(1, -2), self.re[:, None], self.im[:, None]).view(x.shape)

    def excess_transposed(self, c: Tensor) -> Tensor:
        return _times(c, self.re[:, None], -self.im[:, None])  # H J N

    def then(self, other: Step) -> Diagonal:
        assert isinstance(other, Diagonal)
        return Diagonal(
            self.re + other.re + self.re * other.re - self.im * other.im,
            self.im + other.im + self.re * other.im + self.im * other.re,
        )


def _times(x: Tensor, re: Tensor, im: Tensor) -> Tensor:
    """The complex product of pairs: x (H, J, N), re and im (H, 1, n)."""
    x_re, x_im = x.chunk(2, dim=2)  # H J n
    return torch.cat([re * x_re - im * x_im, re * x_im + im * x_re], dim=2)  # H J N


def apply(step: Step, x: Tensor) -> Tensor:
    """(I + E) x for every state x: (H, J, …, N)."""
    return x + step.excess(x)


def power(step: Step, exponent: int) -> Step:
    """`step` applied `exponent` ≥ 1 times, by squaring."""
    result: Step | None = None
    while True:
        if exponent & 1:
            result = step if result is None else result.then(step)
        exponent >>= 1
        if not exponent:
            assert result is not None
            return result
        step = step.then(step)


@dataclass(frozen=True)
class System:
    """One discrete single-input single-output system per channel. B, C: (H, N); D: (H,)."""

    step: Step
    B: Tensor
    C: Tensor
    D: Tensor


def real_columns(x: Tensor) -> Tensor:
    """Complex (…, n) → real (…, N), as [Re x, Im x]."""
    return torch.cat([x.real, x.imag], dim=-1)


def real_rows(c: Tensor) -> Tensor:
    """The real row r with r · [Re x, Im x] = 2 Re(c x): complex (…, n) → real (…, N).

    The factor two counts the conjugate half of the pairs, which is not stored.
    """
    return torch.cat([2 * c.real, -2 * c.imag], dim=-1)
