"""Multi-head self-attention: every token attends to every real token.

The mixer of the row LST in ViS4mer (arXiv 2204.01692); the equation is that of "Attention Is All
You Need" (arXiv 1706.03762, 3.2). A re-implementation: the paper ships no code for this row.

    attend(Q, K, V) = softmax(Q Kᵀ / √d) V

Computed in one of two ways with the same numbers. "fused" never holds the L × L scores: memory
grows with L. "materialised" forms them, as the memory published for that row implies: N·L² numbers
stand twice at once (scores and their softmax) and the softmax is kept for the backward pass, 4.4 GB
in float32 for one window of 11,760 tokens and 8 heads.

Letters: B batch, L tokens, N heads, d width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..typed import refuse
from .base import Growth
from .heads import HeadsMixer, HeadsOptions, key_mask

Attention = Literal["fused", "materialised"]


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(HeadsOptions):
    """attention: "fused", or "materialised" to reproduce what the published row costs."""

    attention: Attention = "fused"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention not in ("fused", "materialised"):
            raise refuse("attention", self.attention, "one of fused, materialised")


class AttentionMixer(HeadsMixer):
    """Multi-head softmax attention."""

    Options = AttentionOptions

    def __init__(
        self, width: int, *, length: int, dropout: float, options: AttentionOptions
    ) -> None:
        super().__init__(width, dropout=dropout, options=options)
        self.length = length  # attention takes any; L² says what a full window costs
        self.attention: Attention = options.attention

    @property
    def memory_growth(self) -> Growth:
        return "quadratic" if self.attention == "materialised" else "linear"

    def attend(self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
        if self.attention == "fused":
            return scaled_dot_product_attention(Q, K, V, attn_mask=key_mask(mask))
        return materialised_attention(Q, K, V, mask)


def materialised_attention(Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ / √d) V by its definition: Q, K, V (B, N, L, d), mask (B, L) → (B, N, L, d).

    Of the L × L products autograd keeps the softmax alone: the scale is on Q, the mask is written
    into the scores, and under autocast the softmax stays in the type of the scores.
    """
    scores = (Q / math.sqrt(Q.shape[3])) @ K.mT  # B N L L
    if mask is not None:
        scores.masked_fill_(~mask[:, None, None, :], -math.inf)
    weights = torch.softmax(scores, dim=-1, dtype=scores.dtype)  # B N L L
    return weights @ V  # B N L d
