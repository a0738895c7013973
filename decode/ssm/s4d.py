"""S4D: the state-space layer with a purely diagonal state matrix.

Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models"
(arXiv 2206.11893). Letters: H channels, N state size, n = N/2 conjugate pairs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from .base import Ssm, as_complex, as_pairs, init_log_dt
from .hippo import legs_nplr
from .system import Diagonal, System, real_columns, real_rows

Start = Literal["lin", "inv", "legs"]
Discretization = Literal["zoh", "bilinear"]


def initial_eigenvalues(start: Start, state_size: int) -> Tensor:
    """Λ at the start, one of each conjugate pair: complex128 (n,).

    lin (equation 9): −½ + iπk.  inv (equation 8): −½ + i (N/π)(N/(2k+1) − 1).
    legs: the eigenvalues of the normal part of HiPPO-LegS.
    """
    if start == "legs":
        return legs_nplr(state_size).Lambda
    k = torch.arange(state_size // 2, dtype=torch.float64)  # n
    N = state_size
    frequency = math.pi * k if start == "lin" else N / math.pi * (N / (2 * k + 1) - 1)
    return torch.complex(torch.full_like(k, -0.5), frequency)


class DiagonalSsm(Ssm):
    """The S4D system: A = Λ, B = 1 at the start, Λ shared by the layer's channels.

    Re Λ is negative by construction (−exp), so the state can only shrink.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        start: Start,
        discretization: Discretization = "zoh",
        state_size: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
    ) -> None:
        super().__init__()
        self.discretization: Discretization = discretization
        Lambda = initial_eigenvalues(start, state_size)
        H, n = num_channels, state_size // 2
        self.log_dt = nn.Parameter(init_log_dt(H, dt_min, dt_max))  # H
        self.A_log_decay = nn.Parameter(torch.log(-Lambda.real).float())  # n
        self.A_frequency = nn.Parameter(Lambda.imag.float())  # n
        self.B = nn.Parameter(as_pairs(torch.ones(H, n)))  # H n 2
        self.C = nn.Parameter(as_pairs(torch.randn(H, n, dtype=torch.complex64)))  # H n 2
        self.D = nn.Parameter(torch.randn(H))  # H

    def dynamics(self) -> list[nn.Parameter]:
        return [self.log_dt, self.A_log_decay, self.A_frequency, self.B]

    def vectors(self) -> tuple[Tensor, ...]:
        """(Ā − I, B̄, C, D); shapes (H, N) but for D.

        zoh: Ā = exp(dt Λ), B̄ = Λ⁻¹ (Ā − I) B.   bilinear: Ā − I = dt Λ / (1 − dt Λ/2),
        B̄ = dt B / (1 − dt Λ/2). In both, B̄ = (Ā − I) B / Λ.
        """
        dt = self.log_dt.exp()[:, None]  # H 1
        Lambda = torch.complex(-self.A_log_decay.exp(), self.A_frequency)  # n
        step = dt * Lambda  # H n
        excess = expm1(step) if self.discretization == "zoh" else step / (1 - step / 2)  # H n
        B = excess / Lambda * as_complex(self.B)  # H n
        return real_columns(excess), real_columns(B), real_rows(as_complex(self.C)), self.D

    @staticmethod
    def system(*vectors: Tensor) -> System:
        excess, B, C, D = vectors
        re, im = excess.chunk(2, dim=1)  # H n
        return System(step=Diagonal(re, im), B=B, C=C, D=D)


def expm1(z: Tensor) -> Tensor:
    """exp(z) − 1 for complex z without cancellation: eᵃ cos b − 1 = (eᵃ−1) cos b − 2 sin²(b/2)."""
    a, b = z.real, z.imag
    real = torch.expm1(a) * torch.cos(b) - 2 * torch.sin(b / 2).square()
    return torch.complex(real, torch.exp(a) * torch.sin(b))
