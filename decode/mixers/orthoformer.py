"""Orthoformer: attention through a few landmarks, linear in the tokens.

Patrick et al., "Keeping Your Eye on the Ball: Trajectory Attention in Video Transformers"
(arXiv 2106.05392). The mixer of the row Orthoformer in ViS4mer (arXiv 2204.01692), a
re-implementation: the paper ships no code for this row.

R landmarks P are picked among the queries of real tokens, in each head of each window: the first at
random, then always the one whose largest |cos| to those already picked is smallest. Then

    attend(Q, K, V) = softmax(Q Pᵀ / √d) (softmax(P Kᵀ / √d) V)

with the landmarks as they are, not normalised. Which are picked has no gradient, their values have.
A window with fewer than R real tokens has all of them as landmarks.

Letters: B batch, L tokens, N heads, d width of a head, R landmarks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from ..rows import drawn_by_row
from ..typed import refuse
from .heads import HeadsMixer, HeadsOptions, key_mask


@dataclass(frozen=True, kw_only=True)
class OrthoformerOptions(HeadsOptions):
    """landmarks: R, of each head."""

    landmarks: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.landmarks < 1:
            raise refuse("landmarks", self.landmarks, "at least 1")


class OrthoformerMixer(HeadsMixer):
    """Attention through nearly orthogonal landmarks.

    In training the first landmark comes from torch's generator, for each window and head. At
    evaluation it is at a fixed share of the window's real tokens, drawn with the initial weights.
    """

    Options = OrthoformerOptions
    first: Tensor

    def __init__(
        self, width: int, *, length: int, dropout: float, options: OrthoformerOptions
    ) -> None:
        del length  # landmarks are taken of whatever is there
        super().__init__(width, dropout=dropout, options=options)
        self.num_landmarks = options.landmarks
        self.register_buffer("first", torch.rand(options.heads))  # N, in [0, 1)

    def attend(self, Q: Tensor, K: Tensor, V: Tensor, mask: Tensor | None) -> Tensor:
        B, _, L, d = Q.shape
        R = min(self.num_landmarks, L)
        first = drawn_by_row(self._draw_first, B) if self.training else self.first  # (B) N
        chosen = choose_landmarks(Q, mask, first.expand(B, -1), number=R)  # B N R
        P = Q.gather(2, chosen[..., None].expand(-1, -1, -1, d))  # B N R d
        gathered = scaled_dot_product_attention(P, K, V, attn_mask=key_mask(mask))  # B N R d
        exists = None if mask is None else _exists(mask, R)  # B R
        return scaled_dot_product_attention(Q, P, gathered, attn_mask=key_mask(exists))  # B N L d

    def _draw_first(self, num_rows: int) -> Tensor:
        return torch.rand(num_rows, *self.first.shape, device=self.first.device)  # B N


@torch.no_grad()
def choose_landmarks(Q: Tensor, mask: Tensor | None, first: Tensor, *, number: int) -> Tensor:
    """The places of R = `number` ≤ L landmarks, in the order in which they are picked.

    Q (B, N, L, d), mask (B, L) or None, first (B, N) in [0, 1): the share of the real tokens that
    come before the first landmark → int64 (B, N, R). Of a window with n < R real tokens only the
    first n are landmarks. Two candidates that agree to rounding may come in either order.
    """
    with torch.autocast(Q.device.type, enabled=False):
        unit = normalize(Q.to(torch.promote_types(Q.dtype, torch.float32)), dim=3)  # B N L d
        largest = unit.new_zeros(unit.shape[:3])  # B N L: |cos| to those picked, ∞ if not allowed
        if mask is not None:
            largest = largest.masked_fill(~mask[:, None, :], math.inf)
        chosen = [_place(first, mask, Q.shape[2])]  # B N
        while len(chosen) < number:
            at = chosen[-1][..., None]  # B N 1
            landmark = unit.gather(2, at[..., None].expand(-1, -1, -1, unit.shape[3]))  # B N 1 d
            cos = (unit @ landmark.mT)[..., 0]  # B N L
            largest = torch.maximum(largest, cos.abs()).scatter(2, at, math.inf)
            chosen.append(largest.argmin(dim=2))
    return torch.stack(chosen, dim=2)


def _place(share: Tensor, mask: Tensor | None, length: int) -> Tensor:
    """The place of the real token with ⌊share · n⌋ of the n real ones before it: int64 (B, N)."""
    share = share.nan_to_num(0.0).clamp(0, 1)  # at evaluation it comes from a file
    if mask is None:
        return (share * length).long().clamp(max=length - 1)
    rank = mask.cumsum(dim=1)  # B L: the real tokens up to each place
    before = (share * rank[:, -1:]).long().minimum(rank[:, -1:] - 1)  # B N
    return torch.searchsorted(rank, before, right=True)


def _exists(mask: Tensor, number: int) -> Tensor:
    """Which of R landmarks a window has: as many as it has real tokens. (B, L) → bool (B, R)."""
    return torch.arange(number, device=mask.device) < mask.sum(dim=1, keepdim=True)
