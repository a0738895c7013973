"""The S4 kernel in the frequency domain: a second, independent way to the numbers of `kernel.py`.

Gu et al., arXiv 2111.00396, section 3 and appendix C.3. Slow and memory-hungry, hence not for
training: it is for weights whose kernel was defined at given frequency nodes, and for checking.

Letters: H channels, N state size, n = N/2 conjugate pairs, L kernel length, F = L/2 + 1 nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .system import Step, power


@dataclass(frozen=True, kw_only=True)
class ContinuousDplr:
    """A = Λ − P Q*, one of each conjugate pair: complex Lambda (n,), P, Q, B, C (H, n); dt (H,)."""

    Lambda: Tensor
    P: Tensor
    Q: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor

    def channels(self, start: int, stop: int) -> ContinuousDplr:
        """Some of the channels."""
        P, Q, B, C, dt = (x[start:stop] for x in (self.P, self.Q, self.B, self.C, self.dt))
        return ContinuousDplr(Lambda=self.Lambda, P=P, Q=Q, B=B, C=C, dt=dt)


MAX_TERMS = 1 << 22
"""Terms of the sums over n in memory at once: 64 MB each time that they are held as complex128."""


def unit_nodes(length: int) -> Tensor:
    """exp(−2πik/L) for 0 ≤ k ≤ L/2, complex128 (F,)."""
    k = torch.arange(length // 2 + 1, dtype=torch.float64)  # F
    return torch.polar(torch.ones_like(k), -2 * torch.pi * k / length)


def cauchy_kernel(ssm: ContinuousDplr, nodes: Tensor, *, num_taps: int) -> Tensor:
    """K[l] = Re C̃ Āˡ B̄ for l < num_taps from the generating function at `nodes`: (H, num_taps).

    `ssm.C` is C̃ = C (I − Āᴸ), which makes the truncated series exact (S4, lemma C.3). For a node
    ω the bilinear rule turns the resolvent into (Woodbury, with s = (1 + ω)/2)

        K̂(ω) = r_CB − s · r_CP · r_QB / (1 + s · r_QP)
        r_ab(ω) = dt Σ_n a_n b_n / ((1 − ω) − s dt λ_n)      (a runs over C, Q*; b over B, P)

    Multiplying by s = (1+ω)/2 throughout removes the pole that the usual z = 2(1−ω)/(1+ω) has
    at ω = −1.
    """
    H, n = ssm.P.shape
    size = max(1, MAX_TERMS // (n * len(nodes)))
    spectrum = torch.cat(
        [_spectrum(ssm.channels(at, at + size), nodes) for at in range(0, H, size)]
    )
    # n must be given: without it an odd length would lose a tap.
    K: Tensor = torch.fft.irfft(spectrum, n=num_taps)
    return K


def _spectrum(ssm: ContinuousDplr, nodes: Tensor) -> Tensor:
    """K̂ at the nodes, complex (H, F).

    The two terms of a conjugate pair share one denominator, and so do all four r_ab. With
    z = 1 − ω, p = dt λ and v = a b,

        v / (z − s p) + v̄ / (z − s p̄) = (2 Re v · z − 2 Re(v p̄) · s) / (z² − 2 Re p · z s + |p|² s²)

    so that what is left of the sum over n is a product of real matrices.
    """
    s, z = (1 + nodes) / 2, 1 - nodes  # F
    pole = (ssm.dt[:, None] * ssm.Lambda)[:, :, None]  # H n 1
    inverse = 1 / (z * z - 2 * pole.real * (z * s) + pole.abs().square() * (s * s))  # H n F
    rows = torch.stack([ssm.C, ssm.Q.conj()], dim=1)  # H 2 n
    columns = torch.stack([ssm.B, ssm.P], dim=1)  # H 2 n
    v = (rows[:, :, None] * columns[:, None]).flatten(1, 2)  # H 4 n: CB CP QB QP
    weights = torch.cat([2 * v.real, -2 * (v * pole[:, None, :, 0].conj()).real], dim=1)  # H 8 n
    pairs = torch.view_as_real(inverse).flatten(2)  # H n 2F
    sums = torch.view_as_complex(torch.unflatten(torch.bmm(weights, pairs), 2, (-1, 2)))  # H 8 F
    r = ssm.dt[:, None, None] * (z * sums[:, :4] + s * sums[:, 4:])  # H 4 F
    CB, CP, QB, QP = r.unbind(1)  # H F
    return CB - s * CP * QB / (1 + s * QP)


def truncated_rows(step: Step, C: Tensor, length: int) -> Tensor:
    """C̃ = C (I − Āᴸ) in real coordinates: (H, N) → (H, N)."""
    return -power(step, length).excess_transposed(C[:, None])[:, 0]


def untruncated_rows(step: Step, C_tilde: Tensor, length: int) -> Tensor:
    """The C with C̃ = C (I − Āᴸ), the inverse of `truncated_rows`: (H, N) → (H, N)."""
    E = power(step, length).matrix()  # H N N
    C: Tensor = torch.linalg.solve(-E.mT, C_tilde[:, :, None])[..., 0]
    return C
