"""STAM: a temporal Transformer over one embedding a frame.

Sharir, Noy and Zelnik-Manor, "An Image is Worth 16x16 Words, What is a Video Worth?"
(arXiv 2103.13915), its temporal half on frozen features. Re-written from the description:

    x = [c; f_1; …; f_T] + P,   f_t the CLS embedding of frame t, c and P learned
    six times:  x ← LN(x + Dropout(Attention(x)));  x ← LN(x + Dropout(FFN(x)))
    outputs = W LN(x)_0 + b,    FFN(x) = W_2 Dropout(ReLU(W_1 x + b_1)) + b_2

Attention weights have dropout as well. Without the positions P it would not know the frames' order.
Linear layers (Q, K and V among them), positions and c begin as truncated normals of deviation 0.02,
biases as zero. The published accuracies are of a backbone trained along.

Letters: B batch, T frames, D width, F width of the FFN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.init import trunc_normal_, zeros_

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..mixers.base import Growth
from ..typed import refuse
from .base import Decoder, DecoderOptions
from .frames import cls_tokens, patch_means, require_cls, require_patches

Frame = Literal["cls", "mean"]

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class StamOptions(DecoderOptions):
    """frame: a frame's embedding, its CLS token or the mean of its patches.

    depth: number of layers.   heads: must divide the width of the tokens.
    feedforward: F.   dropout: of attention weights, of both sublayers and inside the FFN.
    """

    frame: Frame = "cls"
    depth: int = 6
    heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.frame not in ("cls", "mean"):
            raise refuse("frame", self.frame, "one of cls, mean")
        for name in ("depth", "heads", "feedforward"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")
        if not 0 <= self.dropout < 1:
            raise refuse("dropout", self.dropout, "at least 0 and less than 1")


class Stam(Decoder):
    """A post-norm Transformer over per-frame CLS tokens, its own CLS token, then Linear."""

    Options = StamOptions
    name = "stam"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: StamOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self._check_view()
        D = shape.dim
        self.cls = nn.Parameter(torch.empty(D))
        self.positions = nn.Parameter(torch.empty(shape.frames + 1, D))
        layer = nn.TransformerEncoderLayer(
            D,
            options.heads,
            dim_feedforward=options.feedforward,
            dropout=options.dropout,
            activation="relu",
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, options.depth, norm=nn.LayerNorm(D), enable_nested_tensor=False
        )
        self.head = nn.Linear(D, num_outputs)
        self._draw_weights()

    def _check_view(self) -> None:
        shape, heads = self.shape, self.options.heads
        if self.options.frame == "cls":
            other = ", or --set decoder.frame=mean for the mean of its patches"
            require_cls(shape, decoder=self.name, instead=other)
        else:
            require_patches(shape, decoder=self.name, instead=", or --set decoder.frame=cls")
        if shape.dim % heads:
            raise UsageError(
                f"decoder.heads is {heads}, which does not divide the width {shape.dim} of the "
                f"tokens; use --set decoder.heads={math.gcd(shape.dim, heads)}"
            )

    def _draw_weights(self) -> None:
        trunc_normal_(self.cls, std=INIT_STD)
        trunc_normal_(self.positions, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=INIT_STD)
                zeros_(module.bias)
            elif isinstance(module, nn.MultiheadAttention):  # Q, K and V are one matrix, no Linear
                trunc_normal_(module.in_proj_weight, std=INIT_STD)
                zeros_(module.in_proj_bias)

    def forward(self, batch: TokenBatch) -> Tensor:
        frames = cls_tokens(batch) if self.options.frame == "cls" else patch_means(batch)  # B T D
        T = max(batch.lengths)  # what follows is padding in every window
        self._check_frames(T)
        cls = self.cls.expand(frames.shape[0], 1, -1)  # B 1 D
        x = torch.cat([cls, frames[:, :T].to(cls.dtype)], dim=1)  # B 1+T D
        x = x + self.positions[: T + 1]
        ignored = ~pad(batch.mask[:, :T], (1, 0), value=True) if batch.padded else None  # B 1+T
        x = self.encoder(x, src_key_padding_mask=ignored)  # B 1+T D
        outputs: Tensor = self.head(x[:, 0])
        return outputs

    @property
    def draws_by_row(self) -> bool:
        return bool(self.options.dropout == 0)  # torch's own layers draw

    @property
    def memory_growth(self) -> Growth:
        return "quadratic in frames"  # dropout of attention weights needs all of them

    def _check_frames(self, num_frames: int) -> None:
        if num_frames > self.shape.frames:
            raise UsageError(
                f"decoder {self.name!r} has learned positions for {self.shape.frames} frames, got "
                f"a window of {num_frames}; use shorter windows, or train it on longer ones"
            )
