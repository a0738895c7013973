"""Mamba-2: selective state spaces over all tokens, forwards and backwards, in plain PyTorch.

Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060): a state-space model whose step and whose B
and C depend on the token (selective), with one scalar A < 0 a head. Of each head, from t = 0:

    h_t = exp(dt_t A) h_{t−1} + dt_t x_t B_tᵀ        y_t = h_t C_t + D x_t,   h (P, S)

A block is  u ← u + Dropout(W_out RMSNorm(Σ_directions y ∘ SiLU(z))),   [z x B C dt] = W_in LN(u),
with (x, B, C) through a short causal depthwise convolution and SiLU, and dt = softplus(dt + bias).
The two directions share W_in, W_out and the norm; each has its own dt, convolution, A and D. A
choice, as in Vision Mamba (arXiv 2401.09417), where A, B, C and dt are of each direction's own. The
reverse direction begins at a window's last real token, so padding is never before a real one.

`scan` computes the recurrence in the paper's chunked matrix form (its section 6): with
a_t = dt_t A and s_t its running sum inside a chunk of Q tokens,

    y_i = Σ_{j≤i} exp(s_i − s_j) (C_i · B_j) dt_j x_j  +  exp(s_i) h C_i       h: before the chunk
    h ← exp(s_Q) h + Σ_j exp(s_Q − s_j) dt_j x_j B_jᵀ

Matrix products inside chunks, a recurrence over L/Q chunks; memory grows as L·Q·N, linear in L. All
exponents are at most 0 and in float32, as are the states: only the products are rounded under
autocast. A direction keeps its inputs alone for the way back and computes the rest again.

Letters of shapes: B batch (elsewhere the paper's input matrix), L tokens, W width, I = 2 W inner
width, N heads, P = I/N, S state size, c chunks of Q tokens, k taps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu, softplus
from torch.utils.checkpoint import checkpoint

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..mixers.base import ChannelDropout
from ..skeleton import masked_mean
from ..typed import refuse
from .base import Decoder, DecoderOptions

EXPAND = 2  # I/W
TAPS = 4  # k
A_RANGE = (1.0, 16.0)  # of −A when drawn, uniform
DT_RANGE = (1e-3, 1e-1)  # of dt when drawn and a token says nothing, uniform in its logarithm


@dataclass(frozen=True, kw_only=True)
class Mamba2Options(DecoderOptions):
    """width: W.   depth: number of blocks.   state_size: S.   heads: N, must divide 2 W.

    chunk: Q; changes speed and memory, and the outputs only by rounding.
    dropout: of channels, after each block.
    """

    width: int = 256
    depth: int = 2
    state_size: int = 64
    heads: int = 8
    chunk: int = 128
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("width", "depth", "state_size", "heads", "chunk"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")
        if not 0 <= self.dropout < 1:
            raise refuse("dropout", self.dropout, "at least 0 and less than 1")
        inner = EXPAND * self.width
        if inner % self.heads:
            raise UsageError(
                f"decoder.heads is {self.heads}, which does not divide the inner width {inner}; "
                f"use --set decoder.heads={math.gcd(inner, self.heads)}"
            )


class Mamba2Decoder(Decoder):
    """Bidirectional selective state-space blocks over all tokens, mean, then Linear."""

    Options = Mamba2Options
    name = "mamba2"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: Mamba2Options) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self.embed = nn.Linear(shape.dim, options.width)
        self.blocks = nn.ModuleList(Mamba2Block(options) for _ in range(options.depth))
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, num_outputs)

    def forward(self, batch: TokenBatch) -> Tensor:
        x = batch.sequence(self._dtype())  # B L D
        mask = batch.token_mask() if batch.padded else None
        if mask is not None:
            x = torch.where(mask[..., None], x, 0)
        backwards = None if mask is None else reversed_places(mask)  # B L
        u = self.embed(x)  # B L W
        for block in self.blocks:
            u = block(u, backwards)
        outputs: Tensor = self.head(masked_mean(self.norm(u), mask).to(self.head.weight.dtype))
        return outputs

    def _dtype(self) -> torch.dtype:
        device = self.head.weight.device.type
        autocast = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if autocast else self.head.weight.dtype


class Mamba2Block(nn.Module):
    """u (B, L, W), places as `reversed_places` gives them or None → (B, L, W)."""

    def __init__(self, options: Mamba2Options) -> None:
        super().__init__()
        inner = EXPAND * options.width
        self.sizes = [inner, inner + 2 * options.state_size, options.heads, options.heads]
        self.norm = nn.LayerNorm(options.width)
        self.in_proj = nn.Linear(options.width, sum(self.sizes), bias=False)
        self.forwards = SelectiveScan(options)
        self.backwards = SelectiveScan(options)
        self.gated_norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, options.width, bias=False)
        self.dropout = ChannelDropout(options.dropout)

    def forward(self, u: Tensor, places: Tensor | None) -> Tensor:
        z, x_B_C, dt, dt_back = torch.split(self.in_proj(self.norm(u)), self.sizes, dim=2)
        y = self.forwards(x_B_C, dt)  # B L I
        y_back = self.backwards(reverse(x_B_C, places), reverse(dt_back, places))  # B L I
        gated = (y + reverse(y_back, places)) * silu(z)  # B L I, float32
        out: Tensor = self.dropout(self.out_proj(self.gated_norm(gated)))
        return u + out


class SelectiveScan(nn.Module):
    """One direction: x, B and C side by side (B, L, I + 2S) and dt (B, L, N) → y (B, L, I).

    y is in float32 at least.
    """

    def __init__(self, options: Mamba2Options) -> None:
        super().__init__()
        inner, N = EXPAND * options.width, options.heads
        self.sizes = [inner, options.state_size, options.state_size]
        self.heads, self.chunk = N, options.chunk
        channels = sum(self.sizes)
        self.conv = nn.Conv1d(channels, channels, TAPS, groups=channels, padding=TAPS - 1)
        self.log_A = nn.Parameter(torch.empty(N).uniform_(*A_RANGE).log())  # A = −exp(log_A)
        log_dt = torch.empty(N).uniform_(*map(math.log, DT_RANGE))  # N
        self.dt_bias = nn.Parameter(log_dt.exp().expm1().log())  # N, softplus⁻¹ of dt
        self.D = nn.Parameter(torch.ones(N))

    def dynamics(self) -> list[nn.Parameter]:
        """What sets the state's motion: these learn slowly and never decay."""
        return [self.log_A, self.dt_bias]

    def forward(self, x_B_C: Tensor, dt: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self._run(x_B_C, dt)
        # Without random state: nothing here draws, and reading a GPU's would wait for it.
        y: Tensor = checkpoint(self._run, x_B_C, dt, use_reentrant=False, preserve_rng_state=False)
        return y

    def _run(self, x_B_C: Tensor, dt: Tensor) -> Tensor:
        L = x_B_C.shape[1]
        x_B_C = silu(self.conv(x_B_C.mT)[..., :L]).mT  # B L I+2S; a tap sees no later token
        x, B, C = torch.split(x_B_C, self.sizes, dim=2)
        x = x.reshape(*x.shape[:2], self.heads, -1).to(self.D.dtype)  # B L N P
        dt = softplus(dt.to(self.D.dtype) + self.dt_bias)  # B L N
        y = scan(x * dt[..., None], -dt * self.log_A.exp(), B, C, chunk=self.chunk)  # B L N P
        y = y + self.D[:, None] * x
        return y.flatten(2)


def scan(x: Tensor, a: Tensor, B: Tensor, C: Tensor, *, chunk: int) -> Tensor:
    """y_t = h_t C_t,  h_t = exp(a_t) h_{t−1} + x_t B_tᵀ,  h_{−1} = 0, chunk by chunk.

    x: (B, L, N, P).   a: (B, L, N), at most 0.   B, C: (B, L, S), the same for all heads.
    x and a are float32 or float64, and so is the result (B, L, N, P).
    """
    L = x.shape[1]
    Q = min(chunk, L)
    x, a, B, C = (_in_chunks(tensor, Q) for tensor in (x, a, B, C))  # B c Q …
    heads = x.shape[3:]  # N P
    s = a.cumsum(dim=2)  # B c Q N
    total = s[:, :, -1]  # B c N
    from_chunk = _inside_chunks(x, s.mT, B, C)  # B c Q N P
    to_end = (total[:, :, None] - s).exp()  # B c Q N
    added = (x * to_end[..., None]).flatten(3).mT @ B  # B c N·P S
    h = _states_before(
        total.exp(), added.view(*added.shape[:2], *heads, -1).to(x.dtype)
    )  # B c N P S
    read = C @ h.flatten(2, 3).mT  # B c Q N·P
    y = from_chunk + read.view(*C.shape[:3], *heads) * s.exp()[..., None]  # B c Q N P
    return y.flatten(1, 2)[:, :L]


def _in_chunks(tensor: Tensor, size: int) -> Tensor:
    """(B, L, …) → (B, c, Q, …), zeros after the end: they add nothing and let nothing decay."""
    missing = -tensor.shape[1] % size
    if missing:
        tensor = pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, missing])
    return tensor.reshape(tensor.shape[0], -1, size, *tensor.shape[2:])


def _inside_chunks(x: Tensor, s: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """What tokens give to later ones of their chunk; s (B, c, N, Q), result (B, c, Q, N, P)."""
    scores = (C @ B.mT).to(x.dtype)[:, :, None]  # B c 1 Q Q
    later = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=s.device).triu(1)  # Q Q
    exponents = s[..., :, None] - s[..., None, :]  # B c N Q Q
    decay = exponents.masked_fill(later, -math.inf).exp()  # B c N Q Q
    y: Tensor = (scores * decay) @ x.transpose(2, 3)  # B c N Q P
    return y.transpose(2, 3)


def _states_before(decay: Tensor, added: Tensor) -> Tensor:
    """h before every chunk (B, c, N, P, S): decay (B, c, N) and what each chunk adds to h."""
    h, before = torch.zeros_like(added[:, 0]), []
    for shrink, more in zip(decay[..., None, None].unbind(1), added.unbind(1), strict=True):
        before.append(h)  # B N P S
        h = shrink * h + more
    return torch.stack(before, dim=1)


def reversed_places(mask: Tensor) -> Tensor:
    """Where each place of a window read backwards lies: real tokens turned round, padding left.

    mask: bool (B, L), real tokens first → int64 (B, L). Its own inverse.
    """
    n = mask.sum(dim=1, keepdim=True)  # B 1
    place = torch.arange(mask.shape[1], device=mask.device)  # L
    return torch.where(mask, n - 1 - place, place)


def reverse(x: Tensor, places: Tensor | None) -> Tensor:
    """x (B, L, C) with the tokens at `places`; None turns the whole sequence round."""
    if places is None:
        return x.flip(1)
    return x.gather(1, places[..., None].expand_as(x))
