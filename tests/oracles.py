"""Slow definitions that the state-space tests compare with; float64, nothing clever.

They share no arithmetic with the layers: matrices are dense, recurrences are loops, convolutions
are sums over taps.
"""

import math

import numpy as np
import torch


def dense_legs(state_size):
    """HiPPO-LegS entry by entry: A (N, N), B (N,)."""
    A = torch.zeros(state_size, state_size, dtype=torch.float64)
    for n in range(state_size):
        for k in range(n):
            A[n, k] = -math.sqrt((2 * n + 1) * (2 * k + 1))
        A[n, n] = -(n + 1)
    B = torch.tensor([math.sqrt(2 * n + 1) for n in range(state_size)], dtype=torch.float64)
    return A, B


def full_system(ssm):
    """Continuous A (H, N, N), B, C (H, N) of a `Dplr` layer, complex, both halves of the pairs.

    Differentiable in the layer's parameters.
    """

    def pair(x):
        x = torch.view_as_complex(x.double())
        return torch.cat([x, x.conj()], dim=-1)

    half = torch.complex(-ssm.A_log_decay.double().exp(), ssm.A_frequency.double())
    Lambda = torch.cat([half, half.conj()])
    P = pair(ssm.P)
    Q = P if ssm.Q is None else pair(ssm.Q)
    A = torch.diag(Lambda) - P[:, :, None] * Q.conj()[:, None, :]
    return A, pair(ssm.B), pair(ssm.C)


def bilinear(A, B, dt):
    """(I − dt/2 A)⁻¹ (I + dt/2 A) and (I − dt/2 A)⁻¹ dt B, for A (H, N, N), B (H, N), dt (H,)."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype)
    dt = dt.to(A.dtype)[:, None, None]
    left = identity - dt / 2 * A
    return (
        torch.linalg.solve(left, identity + dt / 2 * A),
        torch.linalg.solve(left, dt * B[:, :, None])[..., 0],
    )


def recurrent_kernel(A, B, C, length):
    """C Āˡ B̄ one l after another: real (H, L)."""
    taps, x = [], B[:, :, None]
    for _ in range(length):
        taps.append((C[:, None, :] @ x)[:, 0, 0])
        x = A @ x
    K = torch.stack(taps, dim=1)
    return K.real if K.is_complex() else K


def slow_kernel(ssm, length):
    """The kernel that a `Dplr` layer's parameters define, without D."""
    A, B, C = full_system(ssm)
    A_bar, B_bar = bilinear(A, B, ssm.log_dt.double().exp())
    return recurrent_kernel(A_bar, B_bar, C, length)


def causal_convolution(K, u):
    """y[h, b, l] = Σ_j K[h, l−j] u[h, b, j]."""
    y = np.zeros(u.shape)
    for h in range(u.shape[0]):
        for b in range(u.shape[1]):
            y[h, b] = np.convolve(K[h], u[h, b])[: u.shape[2]]
    return y


def relative_error(found, expected):
    """Overall and of the worst row, in the Euclidean norm."""
    found, expected = found.detach().double().flatten(1), expected.detach().double().flatten(1)
    rows = (found - expected).norm(dim=1)
    return float(rows.norm() / expected.norm()), float((rows / expected.norm(dim=1)).max())
