"""Discrete linear systems, one per channel, in real coordinates, and their exact powers.

    x[l] = Ā x[l−1] + B̄ u[l],   y[l] = C x[l] + D u[l]

A complex state of n conjugate pairs is held as the real vector [Re x, Im x] of length N = 2n, so
that everything that follows is real matrix arithmetic. `Dense` steps have a full Ā per channel
(S4), `Diagonal` steps a 2×2 rotation and scale per pair (S4D). Nothing here knows about
parameters, layers or batches. `LowRank` is how the first powers of an S4 step are held: its
Ā is diagonal plus rank one.

All keep E = Ā − I rather than Ā. With a step of 1e-3 the entries of Ā are 1 plus something of
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

MAX_RANK = 8
"""Up to this rank steps stay diagonal plus low rank; beyond it a full matrix is cheaper."""


class Step(Protocol):
    """A linear map I + E on the states of all channels."""

    def excess(self, x: Tensor) -> Tensor:
        """E x for every state x: (H, J, N), or (H, J, …, N), in and out."""

    def excess_transposed(self, c: Tensor) -> Tensor:
        """Eᵀ c, that is c E of a row vector, for every c: (H, J, N) in and out."""

    def then(self, other: Step) -> Step:
        """The composition of the two maps; they commute, being powers of one matrix."""

    def matrix(self) -> Tensor:
        """E as a full matrix, (H, N, N)."""


@dataclass(frozen=True)
class Dense:
    """I + E with a full matrix E (H, N, N) per channel."""

    E: Tensor

    def excess(self, x: Tensor) -> Tensor:
        return torch.bmm(x.flatten(1, -2), self.E.mT).view(x.shape)  # H J … N

    def excess_transposed(self, c: Tensor) -> Tensor:
        return torch.bmm(c, self.E)  # H J N

    def then(self, other: Step) -> Dense:
        E = other.matrix()
        return Dense(torch.baddbmm(self.E + E, self.E, E))  # H N N

    def matrix(self) -> Tensor:
        return self.E


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

    def matrix(self) -> Tensor:
        """Each pair's 2×2 block spread over the halves."""
        re, im = torch.diag_embed(self.re), torch.diag_embed(self.im)  # H n n
        return torch.cat([torch.cat([re, -im], dim=2), torch.cat([im, re], dim=2)], dim=1)


@dataclass(frozen=True)
class LowRank:
    """I + E, E = diagonal − left rightᵀ of rank r; left, right: (H, r, N), a vector in each row.

    What two such steps make together is one of rank r + r', at a fraction of a matrix product's
    cost: with D the diagonal part and l, r the vectors,

        (I + E₁)(I + E₂) = (I + D₁)(I + D₂) − (I + E₁) l₂ r₂ᵀ − l₁ ((I + D₂)ᵀ r₁)ᵀ
    """

    diagonal: Diagonal
    left: Tensor
    right: Tensor

    def excess(self, x: Tensor) -> Tensor:
        rows = x.flatten(1, -2)  # H J N
        along = torch.bmm(rows, self.right.mT)  # H J r
        return torch.baddbmm(self.diagonal.excess(rows), along, self.left, alpha=-1).view(x.shape)

    def excess_transposed(self, c: Tensor) -> Tensor:
        along = torch.bmm(c, self.left.mT)  # H J r
        return torch.baddbmm(self.diagonal.excess_transposed(c), along, self.right, alpha=-1)

    def then(self, other: Step) -> Step:
        if not isinstance(other, LowRank) or self._rank + other._rank > MAX_RANK:
            return Dense(self.matrix()).then(other)
        right = self.right + other.diagonal.excess_transposed(self.right)  # H r N
        return LowRank(
            self.diagonal.then(other.diagonal),
            left=torch.cat([apply(self, other.left), self.left], dim=1),
            right=torch.cat([other.right, right], dim=1),
        )

    @property
    def is_full(self) -> bool:
        """Is the square of this step a full matrix?"""
        return 2 * self._rank > MAX_RANK

    @property
    def _rank(self) -> int:
        return self.left.shape[1]

    def matrix(self) -> Tensor:
        return torch.baddbmm(self.diagonal.matrix(), self.left.mT, self.right, alpha=-1)  # H N N


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
