"""Attentive probe: one learned query looks at every token, then an MLP block and a linear layer.

The probe of V-JEPA (Bardes et al., "Revisiting Feature Prediction for Learning Visual
Representations from Video", arXiv 2404.08471), written from its description:

    a = concat_h Σ_i softmax_i(Q_h · K_h,i / √d) V_h,i,   Q = W_Q q + b_Q,  [K V]_i = W [LN(x_i)]
    q ← q + a;   q ← q + MLP(LN(q));   outputs = W_out q + b_out

with a GELU inside the MLP of width 4 D. It has no notion of time.

Keys and values of the tokens are never formed. With one query for all tokens,

    Q_h · K_h,i = (W_K,hᵀ Q_h) · LN(x_i)        Σ_i w_i V_h,i = W_V,h (Σ_i w_i LN(x_i)) + b_V,h

so the work on each token is N dot products and N weighted sums of width D, not two matrices D × D.
A bias of the keys would add the same to every score; there is none. Weighted sums can be kept as
running ones, so a stream needs no memory of past tokens.

Letters: B batch, L tokens, D width, N heads, d = D/N width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..typed import refuse
from .base import Decoder, DecoderOptions, check_stream_frames
from .frames import require_real_frames

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class AttentiveProbeOptions(DecoderOptions):
    """heads: N, must divide the width of the tokens.   mlp_ratio: width of the MLP, over D."""

    heads: int = 8
    mlp_ratio: int = 4

    def __post_init__(self) -> None:
        for name in ("heads", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")


@dataclass(frozen=True)
class Gathered:
    """What the query has gathered of the tokens so far.

    top: float32 (B, N), the highest score.   total: (B, N), the sum of exp(score − top).
    weighted: (B, N, D), the sum of exp(score − top) LN(x).
    """

    top: Tensor
    total: Tensor
    weighted: Tensor

    def join(self, later: Gathered) -> Gathered:
        """Of the tokens of both."""
        top = torch.maximum(self.top, later.top)  # B N
        ours, theirs = (self.top - top).exp(), (later.top - top).exp()  # each B N
        return Gathered(
            top=top,
            total=ours * self.total + theirs * later.total,
            weighted=ours[..., None] * self.weighted + theirs[..., None] * later.weighted,
        )

    def mean(self) -> Tensor:
        """Σ_i softmax_i(score) LN(x_i): (B, N, D); NaN before the first token."""
        return self.weighted / self.total[..., None]


class AttentiveProbe(Decoder):
    """One learned query's cross-attention to all tokens, an MLP block, then Linear."""

    Options = AttentiveProbeOptions
    name = "attentive-probe"

    def __init__(
        self, *, shape: TokenShape, num_outputs: int, options: AttentiveProbeOptions
    ) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        D = shape.dim
        if D % options.heads:
            raise UsageError(
                f"decoder.heads is {options.heads}, which does not divide the width {D} of the "
                f"tokens; use --set decoder.heads={math.gcd(D, options.heads)}"
            )
        self.query = nn.Parameter(trunc_normal_(torch.empty(D), std=INIT_STD))
        self.norm = nn.LayerNorm(D)
        self.to_query = nn.Linear(D, D)
        self.to_key = nn.Linear(D, D, bias=False)
        self.to_value = nn.Linear(D, D)
        self.mlp_norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(
            nn.Linear(D, options.mlp_ratio * D), nn.GELU(), nn.Linear(options.mlp_ratio * D, D)
        )
        self.head = nn.Linear(D, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, batch: TokenBatch) -> Tensor:
        require_real_frames(batch, decoder=self.name)
        return self._outputs(self._gather(batch).mean())

    def _gather(self, batch: TokenBatch) -> Gathered:
        x, scores = self._compare(batch)  # B L D, B L N
        top = scores.detach().amax(dim=1)  # B N: shifts every score alike, so it needs no gradient
        weights = (scores - top[:, None]).exp()  # B L N
        weighted = (weights.mT @ x).to(weights.dtype)  # B N D
        return Gathered(top=top, total=weights.sum(dim=1), weighted=weighted)

    def _compare(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """LN(x) (B, L, D), and every head's scores of the tokens (B, L, N), −inf for padding."""
        x = batch.sequence(torch.promote_types(self.query.dtype, torch.float32))  # B L D
        mask = batch.token_mask() if batch.padded else None
        if mask is not None:
            x = torch.where(mask[..., None], x, 0)
        x = self.norm(x)  # B L D
        scores = (x @ self._keys().mT).to(self.query.dtype)  # B L N
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None], -math.inf)
        return x, scores

    @torch.no_grad()
    def patch_weights(self, batch: TokenBatch) -> Tensor:
        """The weight of every patch, the mean over the heads: float32 (B, T, h, w).

        Over a window they sum to 1, less what prefix tokens have. UsageError for a view without
        patches.
        """
        if batch.patch is None:
            raise UsageError(
                "weights can be drawn over frames only where tokens are patches, and this view has "
                "none; train on a grid such as --tokens 60x7x7"
            )
        require_real_frames(batch, decoder=self.name)
        _, scores = self._compare(batch)  # B L N
        weights = scores.float().softmax(dim=1).mean(dim=2)  # B L
        B, T, h, w = batch.patch.shape[:4]
        return weights.view(B, T, -1)[:, :, -h * w :].reshape(B, T, h, w)  # prefix comes first

    def _keys(self) -> Tensor:
        """W_K,hᵀ Q_h / √d: what the tokens are compared with: (N, D)."""
        N, D = self.options.heads, self.shape.dim
        Q = self.to_query(self.query).view(N, 1, -1)  # N 1 d
        keys: Tensor = Q @ self.to_key.weight.view(N, -1, D)  # N 1 D
        return keys[:, 0] / math.sqrt(D // N)

    def _outputs(self, mean: Tensor) -> Tensor:
        """From Σ_i softmax_i LN(x_i) (B, N, D)."""
        B, N, D = mean.shape
        W_V = self.to_value.weight.view(N, -1, D)  # N d D
        a = torch.einsum("bnD,ndD->bnd", mean, W_V).reshape(B, D) + self.to_value.bias  # B D
        q = self.query + a  # B D
        q = q + self.mlp(self.mlp_norm(q))
        outputs: Tensor = self.head(q)
        return outputs

    @property
    def streamable(self) -> bool:
        return True

    def start_stream(self, batch_size: int, device: torch.device | str) -> Gathered:
        heads = torch.zeros(batch_size, self.options.heads, device=device)  # B N
        weighted = heads[..., None].repeat(1, 1, self.shape.dim)  # B N D
        return Gathered(top=torch.full_like(heads, -math.inf), total=heads, weighted=weighted)

    @torch.no_grad()
    def stream_step(self, frames: TokenBatch, state: Gathered) -> tuple[Tensor, Gathered]:
        check_stream_frames(frames)
        state = state.join(self._gather(frames))
        return self._outputs(state.mean()), state
