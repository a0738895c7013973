"""GRU: gated recurrence over the mean token of each frame, then one linear layer.

Cho et al. (arXiv 1406.1078), with the reset gate after the matrix, as cuDNN has it:

    r = σ(W_r x + b_r + U_r h + c_r)         z = σ(W_z x + b_z + U_z h + c_z)
    n = tanh(W_n x + b_n + r ∘ (U_n h + c_n))        h ← (1 − z) ∘ n + z ∘ h

x is the LayerNorm of a frame's mean token. The outputs are a linear layer on the mean of h over the
real frames, or on the last h. Of two directions, the reverse one begins at the last real frame and
its last h is that of the first frame. Everything recurrent is in float32: rounding a state at every
step is not, as elsewhere, rounding once.

Letters: B batch, T frames, D width of the tokens, H width of the state, G layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..data.batch import TokenBatch, TokenShape
from ..mixers.base import RowDropout
from ..skeleton import RunningMean, masked_mean
from ..typed import refuse
from .base import Decoder, DecoderOptions, check_stream_frames
from .frames import frame_means, require_real_frames

Readout = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class GruOptions(DecoderOptions):
    """width: H, of each direction.   depth: number of layers.

    bidirectional: a second recurrence from the end; without it a window can be streamed.
    readout: the mean of the states over the real frames, or the last state.
    dropout: between layers and before the head.
    """

    width: int = 512
    depth: int = 1
    bidirectional: bool = False
    readout: Readout = "mean"
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("width", "depth"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")
        if self.readout not in ("mean", "last"):
            raise refuse("readout", self.readout, "one of mean, last")
        if not 0 <= self.dropout < 1:
            raise refuse("dropout", self.dropout, "at least 0 and less than 1")


@dataclass(frozen=True)
class GruStream:
    """h: the states after the last frame (G, B, H).   mean: of the last layer's states so far."""

    h: Tensor
    mean: RunningMean


class GruDecoder(Decoder):
    """A GRU over the mean token of each frame, its states' mean or the last, then Linear."""

    Options = GruOptions
    name = "gru"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: GruOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self.norm = nn.LayerNorm(shape.dim)
        self.gru = nn.GRU(
            shape.dim,
            options.width,
            num_layers=options.depth,
            dropout=options.dropout if options.depth > 1 else 0.0,
            bidirectional=options.bidirectional,
            batch_first=True,
        )
        self.dropout = RowDropout(options.dropout)
        self.head = nn.Linear((1 + options.bidirectional) * options.width, num_outputs)

    def forward(self, batch: TokenBatch) -> Tensor:
        require_real_frames(batch, decoder=self.name)
        with torch.autocast(batch.mask.device.type, enabled=False):
            states, last = self._run(self._inputs(batch), batch)
            mask = batch.mask[:, : states.shape[1]] if batch.padded else None
            y = masked_mean(states, mask) if self.options.readout == "mean" else last  # B H
        outputs: Tensor = self.head(self.dropout(y))
        return outputs

    def _inputs(self, batch: TokenBatch) -> Tensor:
        x: Tensor = self.norm(frame_means(batch))  # B T D
        return x

    def _run(self, x: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """All states (B, T, H or 2H), zero at padding, and the last of each direction."""
        if not batch.padded:
            states, h = self.gru(x)  # B T H, G B H
        else:
            lengths = torch.tensor(batch.lengths)  # B, which packing wants on the host
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            states, h = self.gru(packed)
            states, _ = pad_packed_sequence(states, batch_first=True)  # B max(lengths) H
        directions = 1 + self.options.bidirectional
        return states, torch.cat(list(h[-directions:]), dim=1)

    @property
    def draws_by_row(self) -> bool:
        options = self.options
        return bool(options.depth == 1 or options.dropout == 0)  # torch drops between layers

    @property
    def streamable(self) -> bool:
        return not self.options.bidirectional

    def start_stream(self, batch_size: int, device: torch.device | str) -> GruStream:
        if not self.streamable:
            raise self._not_causal()
        depth, width = self.options.depth, self.options.width
        return GruStream(
            h=torch.zeros(depth, batch_size, width, device=device),
            mean=RunningMean.start(batch_size, width, device),
        )

    @torch.no_grad()
    def stream_step(self, frames: TokenBatch, state: GruStream) -> tuple[Tensor, GruStream]:
        check_stream_frames(frames)
        with torch.autocast(frames.mask.device.type, enabled=False):
            states, h = self.gru(self._inputs(frames), state.h)  # B T H, G B H
            state = GruStream(h=h, mean=state.mean.add(states))
            y = state.mean.mean() if self.options.readout == "mean" else h[-1]  # B H
        return self.head(y), state
