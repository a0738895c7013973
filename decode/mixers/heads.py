"""What all mixers of queries, keys and values share: heads, positions, channel dropout.

    y = Linear(Dropout(concat_h attend(Q_h, K_h, V_h))),   [Q K V] = Linear(x + positions)

How a head attends is the subclass's choice. Everything else stands where the state-space mixers
have it, so that the skeleton changes in nothing else. Attention has no order of its own, so the
positions of the tokens can be added. None of these mixers is causal.

A mask says which keys are real. Every window has a real token (decoders refuse one with none), so
that no softmax is over nothing. Queries at masked places get finite values that mean nothing.

Letters: B batch, L tokens, D width, N heads, d = D/N width of a head.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...store.errors import UsageError
from ..typed import refuse
from .base import ChannelDropout, Mixer, MixerOptions

LONGEST_PERIOD = 10_000  # tokens per radian of the slowest channel, as in arXiv 1706.03762


@dataclass(frozen=True, kw_only=True)
class HeadsOptions(MixerOptions):
    """Options that all mixers with heads share.

    heads: N; must divide the width of the tokens in every block.
    positions: add sinusoids of the token's place in the sequence to the mixer's input. A choice:
    a mixer knows its own sequence alone, so every block adds those of its own, and sinusoids have
    no parameters and no longest length.
    """

    heads: int = 8
    positions: bool = False

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise refuse("heads", self.heads, "at least 1")


class HeadsMixer(Mixer):
    """The layer around any way for heads to attend."""

    def __init__(self, width: int, *, dropout: float, options: HeadsOptions) -> None:
        nn.Module.__init__(self)
        if width % options.heads:
            raise UsageError(
                f"decoder.heads is {options.heads}, which does not divide the width {width} of a "
                f"block's tokens; use --set decoder.heads={math.gcd(width, options.heads)}, a "
                "smaller decoder.depth or --set decoder.scaling=false"
            )
        self.heads = options.heads
        self.positions = options.positions
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = ChannelDropout(dropout)
        self.output = nn.Linear(width, width)

    @abstractmethod
    def attend(self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
        """What the queries gather: Q, K, V (B, N, L, d), mask of keys (B, L) → (B, N, L, d)."""

    def core(self, x: Tensor, mask: Tensor | None) -> Tensor:
        B, L, D = x.shape
        if self.positions:
            x = x + sinusoids(L, D, device=x.device).to(x.dtype)  # B L D
        qkv = self.qkv(x).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # 3 B N L d
        Q, K, V = qkv.unbind(0)  # each B N L d
        y = self.attend(Q, K, V, mask).transpose(1, 2).reshape(B, L, D)
        dropped: Tensor = self.dropout(y)
        return dropped


def sinusoids(length: int, width: int, *, device: torch.device) -> Tensor:
    """Positions as in "Attention Is All You Need" (arXiv 1706.03762, 3.5): float32 (L, D).

    At place t, channel 2i is sin(t / 10000^(2i/D)) and channel 2i + 1 the cosine of the same.
    """
    pair = torch.arange(0, width, 2, device=device)  # ⌈D/2⌉, the values 2i
    rates = torch.exp(pair * (-math.log(LONGEST_PERIOD) / width))  # ⌈D/2⌉
    angles = torch.arange(length, device=device)[:, None] * rates  # L ⌈D/2⌉
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]  # L D


def key_mask(mask: Tensor | None) -> Tensor | None:
    """A mask of tokens (B, L) as scores (B, N, queries, keys) take it: (B, 1, 1, L)."""
    return None if mask is None else mask[:, None, None, :]
