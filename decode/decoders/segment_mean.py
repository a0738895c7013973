"""Segment means: a window cut in order into K segments, their means side by side, one linear layer.

    m_k = mean of all tokens of frames ⌊k n/K⌋ to ⌊(k+1) n/K⌋,   k = 0 … K−1, half-open
    outputs = W [m_0; …; m_{K−1}] + b

The least that knows an order. n counts a window's real frames, so that padding changes nothing; a
window of fewer than K frames has segments of the one frame ⌊k n/K⌋, some of them alike. Where the
cuts lie depends on where the window ends, so it cannot be streamed. K·D·n_out + n_out parameters.

Letters: B batch, T frames, K segments, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import TokenBatch, TokenShape
from ..skeleton import masked_mean
from ..typed import refuse
from .base import Decoder, DecoderOptions
from .frames import frame_means


@dataclass(frozen=True, kw_only=True)
class SegmentMeanOptions(DecoderOptions):
    """segments: K, how many means a window is told by."""

    segments: int = 4

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise refuse("segments", self.segments, "at least 1")


class SegmentMeanDecoder(Decoder):
    """Means of consecutive segments of the real frames, concatenated, then Linear."""

    Options = SegmentMeanOptions
    name = "segment-mean"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: SegmentMeanOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self.head = nn.Linear(options.segments * shape.dim, num_outputs)

    def forward(self, batch: TokenBatch) -> Tensor:
        x = frame_means(batch)  # B T D
        inside = segment_masks(batch.mask, self.options.segments)  # K B T
        means = [masked_mean(x, mask) for mask in inside.unbind(0)]  # K of B D
        outputs: Tensor = self.head(torch.cat(means, dim=1))
        return outputs


def segment_masks(mask: Tensor, segments: int) -> Tensor:
    """Which frames lie in each segment of their window's real ones: bool (B, T) → (K, B, T)."""
    n = mask.sum(dim=1)  # B
    k = torch.arange(segments, device=mask.device)[:, None]  # K 1
    start, end = k * n // segments, (k + 1) * n // segments  # each K B
    end = torch.maximum(end, start + 1)  # K B
    place = torch.arange(mask.shape[1], device=mask.device)  # T
    inside = (start[..., None] <= place) & (place < end[..., None])  # K B T
    return inside & mask
