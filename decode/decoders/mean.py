"""The floor: the mean over all tokens of a window, then one linear layer.

What a frozen backbone alone knows, with no notion of time. Letters: B batch, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import TokenBatch, TokenShape
from ..skeleton import RunningMean, masked_mean
from .base import Decoder, DecoderOptions, check_stream_frames


@dataclass(frozen=True, kw_only=True)
class MeanOptions(DecoderOptions):
    """No options."""


class MeanDecoder(Decoder):
    """Mean of prefix and patch tokens of all real frames, then Linear."""

    Options = MeanOptions
    name = "mean"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: MeanOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self.head = nn.Linear(shape.dim, num_outputs)

    def forward(self, batch: TokenBatch) -> Tensor:
        mask = batch.token_mask() if batch.padded else None
        outputs: Tensor = self.head(masked_mean(batch.sequence(torch.float32), mask))
        return outputs

    @property
    def streamable(self) -> bool:
        return True

    def start_stream(self, batch_size: int, device: torch.device | str) -> RunningMean:
        return RunningMean.start(batch_size, self.shape.dim, device)

    @torch.no_grad()
    def stream_step(self, frames: TokenBatch, state: RunningMean) -> tuple[Tensor, RunningMean]:
        check_stream_frames(frames)
        state = state.add(frames.sequence(torch.float32))
        return self.head(state.mean()), state
