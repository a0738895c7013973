"""Performer: softmax attention through random positive features, linear in the tokens.

Choromanski et al., "Rethinking Attention with Performers" (FAVOR+, arXiv 2009.14794). The mixer of
the row Performer in ViS4mer (arXiv 2204.01692), a re-implementation: the paper ships no code for
this row. Queries and keys are first scaled, x ← x·d^(−1/4); then

    φ(x) = m^(−1/2) [exp(W x − ‖x‖²/2 − c) + ε]
    attend(Q, K, V) = φ(Q) (φ(K)ᵀ V) / (φ(Q) Σ_l φ(K)_l)

W (m, d) has orthogonal rows in blocks of d, each as long as a Gaussian vector of d numbers, so that
E φ(q)ᵀφ(k) ∝ exp(qᵀk) without ε. c keeps exp from overflowing and cancels in the fraction up to ε:
the maximum of W x − ‖x‖²/2, for queries over the features, for keys over the features and the real
tokens, in each head of each window. (Maxima of W x alone are a choice too, but then ε outweighs the
features of long vectors.) m^(−1/2) cancels altogether and is left out.

Letters: B batch, L tokens, N heads, d width of a head, m features.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..typed import refuse
from .heads import HeadsMixer, HeadsOptions


@dataclass(frozen=True, kw_only=True)
class PerformerOptions(HeadsOptions):
    """Options of the random features.

    features: m, of each head.
    redraw: training steps between new draws of W; none keeps the first. A step is a forward pass in
    training mode. What is drawn depends on the initial weights' seed and the count of steps alone.
    epsilon: ε, a floor under every feature that keeps the denominator from 0.
    """

    features: int = 256
    redraw: int | None = None
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 1:
            raise refuse("features", self.features, "at least 1")
        if self.redraw is not None and self.redraw < 1:
            raise refuse("redraw", self.redraw, "at least 1, or none")
        if not self.epsilon > 0:
            raise refuse("epsilon", self.epsilon, "more than 0")


class PerformerMixer(HeadsMixer):
    """FAVOR+ attention. Its W is a buffer, shared by the heads: saved, and fixed at evaluation."""

    Options = PerformerOptions
    W: Tensor

    def __init__(
        self, width: int, *, length: int, dropout: float, options: PerformerOptions
    ) -> None:
        del length  # a sum over keys takes any
        super().__init__(width, dropout=dropout, options=options)
        self.num_features = options.features
        self.redraw = options.redraw
        self.epsilon = options.epsilon
        self.seed = int(torch.randint(2**62, ()))
        self.steps = 0
        self.register_buffer("W", self._draw(0))

    def attend(self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
        self._count_step()
        real = None if mask is None else mask[:, None, :, None]  # B 1 L 1
        dtype = torch.promote_types(Q.dtype, torch.float32)
        with torch.autocast(Q.device.type, enabled=False):
            W = self.W.to(dtype)
            phi_Q = query_features(Q.to(dtype), W, epsilon=self.epsilon)  # B N L m
            phi_K = key_features(K.to(dtype), W, real, epsilon=self.epsilon)  # B N L m
            phi_KV = phi_K.mT @ V.to(dtype)  # B N m d
            mass = phi_Q @ phi_K.sum(dim=2)[..., None]  # B N L 1
            return (phi_Q @ phi_KV / mass).to(V.dtype)  # B N L d

    def _count_step(self) -> None:
        if not self.training:
            return
        if self.redraw is not None and self.steps and self.steps % self.redraw == 0:
            # A new tensor: a backward pass to come may still need the old one.
            self.W = self._draw(self.steps // self.redraw).to(self.W)  # m d
        self.steps += 1

    def _draw(self, number: int) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}\0{number}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        width = self.output.in_features // self.heads
        return orthogonal_features(self.num_features, width, generator)

    # The count is a number on the host, since reading it from the device would wait for it.

    def get_extra_state(self) -> Tensor:
        """Seed and count of steps, saved with the weights: int64 (2,)."""
        return torch.tensor([self.seed, self.steps])

    def set_extra_state(self, state: Tensor) -> None:
        self.seed, self.steps = state.tolist()


def orthogonal_features(num_features: int, width: int, generator: torch.Generator) -> Tensor:
    """W: rows orthogonal in blocks of `width`, lengths chi-distributed. Float32 (m, d), on the CPU.

    Each row alone is a standard Gaussian vector: a uniform direction, and the length of one.
    """
    m, d = num_features, width
    gaussian = torch.randn(-(-m // d), d, d, generator=generator, dtype=torch.float64)  # ⌈m/d⌉ d d
    Q, R = torch.linalg.qr(gaussian)
    Q = Q * R.diagonal(dim1=1, dim2=2).sign()[:, None, :]  # uniform only with the signs of R
    lengths = torch.randn(m, d, generator=generator, dtype=torch.float64).norm(dim=1)  # m
    W: Tensor = Q.flatten(0, 1)[:m] * lengths[:, None]  # m d
    return W.float()


def query_features(Q: Tensor, W: Tensor, *, epsilon: float) -> Tensor:
    """φ without m^(−1/2), c the maximum over features: Q (B, N, L, d), W (m, d) → (B, N, L, m)."""
    exponent = _exponent(Q, W)  # B N L m
    c = exponent.detach().amax(dim=3, keepdim=True)  # B N L 1
    return exponent.sub_(c).exp_() + epsilon


def key_features(K: Tensor, W: Tensor, real: Tensor | None, *, epsilon: float) -> Tensor:
    """φ without m^(−1/2), c the maximum over features and real tokens; 0 for all other keys.

    K (B, N, L, d), W (m, d), real (B, 1, L, 1) or None → (B, N, L, m).
    """
    exponent = _exponent(K, W)  # B N L m
    if real is not None:
        exponent.masked_fill_(~real, -math.inf)
    c = exponent.detach().amax(dim=(2, 3), keepdim=True)  # B N 1 1
    return exponent.sub_(c).exp_() + (epsilon if real is None else epsilon * real)


def _exponent(x: Tensor, W: Tensor) -> Tensor:
    """W x − ‖x‖²/2 of the scaled x = x·d^(−1/4): (B, N, L, d) → (B, N, L, m), a tensor of its own.

    It is the largest tensor here, and its gradient needs no values of it: callers work in place.
    """
    x = x * x.shape[3] ** -0.25
    return (x @ W.mT).sub_(x.square().sum(dim=3, keepdim=True) / 2)
