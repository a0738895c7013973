"""The floor for CLS tokens: the mean over the CLS tokens of a window, then one linear layer.

    outputs = W (1/n) Σ_t cls_t + b,   t over the n real frames

What a frozen backbone's summaries of single frames know, with no notion of time; D·n_out + n_out
parameters. Letters: B batch, T frames, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import TokenBatch, TokenShape
from ..skeleton import RunningMean, masked_mean
from .base import Decoder, DecoderOptions, check_stream_frames
from .frames import cls_tokens, require_cls


@dataclass(frozen=True, kw_only=True)
class ClsMeanOptions(DecoderOptions):
    """No options."""


class ClsMeanDecoder(Decoder):
    """Mean of the CLS tokens of all real frames, then Linear."""

    Options = ClsMeanOptions
    name = "cls-mean"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: ClsMeanOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        require_cls(shape, decoder=self.name, instead=", or --decoder mean")
        self.head = nn.Linear(shape.dim, num_outputs)

    def forward(self, batch: TokenBatch) -> Tensor:
        mask = batch.mask if batch.padded else None
        outputs: Tensor = self.head(masked_mean(cls_tokens(batch), mask))
        return outputs

    @property
    def streamable(self) -> bool:
        return True

    def start_stream(self, batch_size: int, device: torch.device | str) -> RunningMean:
        return RunningMean.start(batch_size, self.shape.dim, device)

    @torch.no_grad()
    def stream_step(self, frames: TokenBatch, state: RunningMean) -> tuple[Tensor, RunningMean]:
        check_stream_frames(frames)
        state = state.add(cls_tokens(frames))
        return self.head(state.mean()), state
