"""S4: a linear state-space layer whose state matrix is diagonal plus rank one (DPLR).

Gu et al., arXiv 2111.00396. Letters: H channels, N state size, n = N/2 conjugate pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Ssm, as_complex, as_pairs, init_log_dt
from .hippo import legs_nplr
from .system import Diagonal, LowRank, System, real_columns, real_rows


class Dplr(Ssm):
    """The S4 system: A = Λ − P Q*, HiPPO-LegS at the start, discretised by the bilinear rule.

    Λ is shared by the layer's channels; dt, B, P, C and D are the channel's own. Re Λ is negative
    by construction (−exp) and, unless `tied` is false, Q = P: then A + A* ≤ 2 Re Λ < 0, the
    state can only shrink, and no learning rate can blow it up. `tied=False` gives Q a life of its
    own, as in the code released for ViS4mer, without that guarantee.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        state_size: int = 64,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        tied: bool = True,
    ) -> None:
        super().__init__()
        start = legs_nplr(state_size)
        H, n = num_channels, state_size // 2
        self.log_dt = nn.Parameter(init_log_dt(H, dt_min, dt_max))  # H
        self.A_log_decay = nn.Parameter(torch.log(-start.Lambda.real).float())  # n
        self.A_frequency = nn.Parameter(start.Lambda.imag.float())  # n
        self.B = nn.Parameter(as_pairs(start.B.expand(H, n)))  # H n 2
        self.P = nn.Parameter(as_pairs(start.P.expand(H, n)))  # H n 2
        self.Q = None if tied else nn.Parameter(as_pairs(start.P.expand(H, n)))  # H n 2
        self.C = nn.Parameter(as_pairs(torch.randn(H, n, dtype=torch.complex64)))  # H n 2
        self.D = nn.Parameter(torch.randn(H))  # H

    def dynamics(self) -> list[nn.Parameter]:
        optional = [] if self.Q is None else [self.Q]
        return [self.log_dt, self.A_log_decay, self.A_frequency, self.B, self.P, *optional]

    def vectors(self) -> tuple[Tensor, ...]:
        """The bilinear rule on A = Λ − P Q*, by the formula of Sherman and Morrison.

        In real coordinates P Q* x is 2 p (q·x) with p = [Re P, Im P] and q alike, because the
        conjugate half of the state contributes the conjugate number. With G = (I − dt/2 Λ)⁻¹,

            (I − dt/2 A)⁻¹ = G − dt (G p)(qᵀ G) / s,     s = 1 + dt qᵀ G p
            Ā − I = 2 (I − dt/2 A)⁻¹ − 2 I = dt Λ G − (2 dt / s) (G p)(qᵀ G)
            B̄ = (I − dt/2 A)⁻¹ dt B

        Returns (diagonal of dt Λ G, left, right, B̄, C, D), where Ā − I is the diagonal minus
        left rightᵀ; shapes (H, N) but for D.
        """
        dt = self.log_dt.exp()[:, None]  # H 1
        Lambda = torch.complex(-self.A_log_decay.exp(), self.A_frequency)  # n
        G = 1 / (1 - dt / 2 * Lambda)  # H n
        P, B, C = as_complex(self.P), as_complex(self.B), as_complex(self.C)  # H n
        Q = P if self.Q is None else as_complex(self.Q)  # H n
        Gp, QG = G * P, Q.conj() * G  # H n; the row q·G acts as Re(Q* G x)
        s = 1 + dt * (Q.conj() * Gp).real.sum(dim=1, keepdim=True)  # H 1
        GB = G * B  # H n
        QGB = (QG * B).real.sum(dim=1, keepdim=True)  # H 1
        return (
            real_columns(dt * Lambda * G),
            real_columns(Gp) * (dt / s),
            real_rows(QG),
            real_columns(dt * (GB - Gp * (dt / s * QGB))),
            real_rows(C),
            self.D,
        )

    @staticmethod
    def system(*vectors: Tensor) -> System:
        diagonal, left, right, B, C, D = vectors
        re, im = diagonal.chunk(2, dim=1)  # H n
        step = LowRank(Diagonal(re, im), left=left[:, None], right=right[:, None])
        return System(step=step, B=B, C=C, D=D)
