"""HiPPO-LegS: the state matrix that makes a linear state remember a whole signal.

Equations are those of Gu et al., "Efficiently Modeling Long Sequences with Structured State
Spaces" (S4, arXiv 2111.00396). Everything here is float64 on the CPU; nothing here
knows about layers, channels or time steps.

Letters: N state size, n = N/2 conjugate pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def legs(state_size: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS as dense matrices: A float64 (N, N) and B float64 (N,).

    S4, equation (2), with its sign: A[n,k] = −√(2n+1)·√(2k+1) below the diagonal, −(n+1) on it,
    0 above; B[n] = √(2n+1).
    """
    index = torch.arange(state_size, dtype=torch.float64)  # N
    root = torch.sqrt(2 * index + 1)  # N
    A = -torch.tril(root[:, None] * root[None, :], diagonal=-1) - torch.diag(index + 1)  # N N
    return A, root


@dataclass(frozen=True)
class Nplr:
    """A = V (Λ − P P*) V*, one of each conjugate pair kept, sorted by Im Λ from small to large.

    Lambda, P, B: complex128 (n,), where the full vectors are [x, conj(x)].
    V: complex128 (N, n), the kept columns of the unitary change of basis.
    """

    Lambda: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def legs_nplr(state_size: int) -> Nplr:
    """The normal-plus-low-rank form of HiPPO-LegS (S4, theorem 1 and appendix C.1).

    With P[n] = √(n + ½), A + P Pᵀ = −½ I + S where S is skew-symmetric; −iS is Hermitian, so its
    eigenvalues are real, come in pairs ±ω, and V is unitary.

    An eigenvector is free to turn by any phase, and libraries disagree about it. The phase is
    fixed here by making every V*P real and positive, so that the same seed gives the same layer
    everywhere; B = √2·P in LegS, hence V*B is real and positive too.
    """
    if state_size < 2 or state_size % 2:
        raise ValueError(f"the state size must be even and at least 2, got {state_size}")
    A, B = legs(state_size)
    P = B / 2**0.5  # N
    S = A + P[:, None] * P[None, :] + 0.5 * torch.eye(state_size, dtype=torch.float64)  # N N
    omega, V = torch.linalg.eigh(-1j * S)  # ascending: the last n are positive
    kept = slice(state_size // 2, None)
    omega, V = omega[kept], V[:, kept]  # n, N n
    projected = V.conj().T @ P.to(V.dtype)  # n
    V = V * (projected / projected.abs())  # V* P becomes real and positive
    return Nplr(
        Lambda=torch.complex(torch.full_like(omega, -0.5), omega),
        P=V.conj().T @ P.to(V.dtype),
        B=V.conj().T @ B.to(V.dtype),
        V=V,
    )
