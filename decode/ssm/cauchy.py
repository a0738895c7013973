"""The S4 kernel in the frequency domain: a second, independent way to the numbers of `kernel.py`.

Gu et al., arXiv 2111.00396, section 3 and appendix C.3. Slow and memory-hungry, hence not for
training: it is for weights whose kernel was defined at given frequency nodes, and for checking.

Letters: H channels, N state size, n = N/2 conjugate pairs, L kernel length, F = L/2 + 1 nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .system import Dense, Step, power


@dataclass(frozen=True, kw_only=True)
class ContinuousDplr:
    """A = Λ − P Q*, one of each conjugate pair: complex Lambda (n,), P, Q, B, C (H, n); dt (H,)."""

    Lambda: Tensor
    P: Tensor
    Q: Tensor
    B: Tensor
    C: Tensor
    dt: Tensor


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
    step = ssm.dt[:, None] * ssm.Lambda  # H n
    s = (1 + nodes) / 2  # F

    def resolvent(row: Tensor, column: Tensor) -> Tensor:
        v = row * column  # H n
        total = torch.zeros(v.shape[0], nodes.shape[0], dtype=nodes.dtype)  # H F
        for n in range(v.shape[1]):  # one pair at a time: the whole product is gigabytes
            for a, pole in ((v[:, n], step[:, n]), (v[:, n].conj(), step[:, n].conj())):
                total += a[:, None] / ((1 - nodes) - s * pole[:, None])  # H F
        return ssm.dt[:, None] * total

    QP = resolvent(ssm.Q.conj(), ssm.P)  # H F
    correction = s * resolvent(ssm.C, ssm.P) * resolvent(ssm.Q.conj(), ssm.B) / (1 + s * QP)
    spectrum = resolvent(ssm.C, ssm.B) - correction  # H F
    # n must be given: without it an odd length would lose a tap.
    K: Tensor = torch.fft.irfft(spectrum, n=num_taps)
    return K


def truncated_rows(step: Step, C: Tensor, length: int) -> Tensor:
    """C̃ = C (I − Āᴸ) in real coordinates: (H, N) → (H, N)."""
    return -power(step, length).excess_transposed(C[:, None])[:, 0]


def untruncated_rows(step: Dense, C_tilde: Tensor, length: int) -> Tensor:
    """The C with C̃ = C (I − Āᴸ), the inverse of `truncated_rows`: (H, N) → (H, N)."""
    E = power(step, length)
    assert isinstance(E, Dense)
    C: Tensor = torch.linalg.solve(-E.E.mT, C_tilde[:, :, None])[..., 0]
    return C
