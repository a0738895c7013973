"""The memory of MeMViT on cached tokens: chunks of frames in order, each reading those before it.

Wu et al., "MeMViT: Memory-Augmented Multiscale Vision Transformer" (arXiv 2201.08383). One layer is
described in `memory_attention`. Around it stands here:

    x = W_in tokens + b_in, a chunk of C frames after another, every layer with a memory of its own
    outputs = W LN(y) + b averaged over the real tokens of all chunks, or of the last one

A window is walked from an empty memory, so it trains, is judged and predicts like one of any other
decoder. `forward_from` goes on instead from a memory that earlier windows of the same video left:
batches are then lanes (see `lanes`), each of which walks whole videos. No gradient passes from one
chunk to another but through the compressor's one step.

Letters: B windows or lanes, T frames, S tokens of a chunk, D width of the tokens, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ...store.errors import UsageError
from ..data.batch import TokenBatch, TokenShape
from ..typed import refuse
from .base import Decoder, DecoderOptions, check_stream_frames
from .frames import require_real_frames
from .memory_attention import FrameLayout, MemoryBlock
from .memory_state import MemoryState

Readout = Literal["mean", "last"]


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(DecoderOptions):
    """chunk_frames: frames that are read at once.

    memory_length: chunks that a layer reads, the current one counted; 1 remembers nothing.
    compress: whether all but the newest chunk of the memory are compressed; only patches ever are.
    depth: number of layers.   width: W.   heads: must divide W.
    readout: the mean over the tokens of all chunks, or of the last chunk.
    dropout: of channels, after attention and after the MLP.
    """

    chunk_frames: int = 8
    memory_length: int = 3
    compress: bool = True
    depth: int = 2
    width: int = 256
    heads: int = 8
    readout: Readout = "mean"
    dropout: float = 0.2

    def __post_init__(self) -> None:
        for name in ("chunk_frames", "memory_length", "depth", "width", "heads"):
            if getattr(self, name) < 1:
                raise refuse(name, getattr(self, name), "at least 1")
        if self.readout not in ("mean", "last"):
            raise refuse("readout", self.readout, "one of mean, last")
        if not 0 <= self.dropout < 1:
            raise refuse("dropout", self.dropout, "at least 0 and less than 1")
        if self.width % self.heads:
            raise UsageError(
                f"decoder.heads is {self.heads}, which does not divide the width {self.width}; "
                f"use --set decoder.heads={math.gcd(self.width, self.heads)}"
            )


@dataclass(frozen=True)
class Chunk:
    """x: (B, S, W).   real: bool (B, S), None when all are."""

    x: Tensor
    real: Tensor | None


@dataclass(frozen=True)
class Pooled:
    """A running mean over real tokens. total: (B, W), in float32 at least; count: (B, 1)."""

    total: Tensor
    count: Tensor

    @classmethod
    def of(cls, y: Tensor, real: Tensor | None) -> Pooled:
        """Of one chunk y (B, S, W)."""
        dtype = torch.promote_types(y.dtype, torch.float32)
        if real is None:
            count = torch.full_like(y[:, 0, :1], y.shape[1], dtype=dtype)  # B 1
            return cls(total=y.sum(dim=1, dtype=dtype), count=count)
        total = (y * real[..., None]).sum(dim=1, dtype=dtype)  # B W
        return cls(total=total, count=real.sum(dim=1, keepdim=True).to(dtype))

    def then(self, chunk: Pooled, readout: Readout) -> Pooled:
        """With the next chunk, which takes the place of all before it where that is asked for."""
        if readout == "mean":
            return Pooled(total=self.total + chunk.total, count=self.count + chunk.count)
        real = chunk.count > 0  # B 1
        return Pooled(
            total=torch.where(real, chunk.total, self.total),
            count=torch.where(real, chunk.count, self.count),
        )

    def mean(self) -> Tensor:
        return self.total / self.count.clamp(min=1)  # B W


@dataclass(frozen=True)
class MemoryStream:
    """memory, pooled: after the last full chunk.   waiting: x of the frames since, (B, S, W)."""

    memory: MemoryState
    pooled: Pooled
    waiting: Tensor


class MemoryDecoder(Decoder):
    """Attention over chunks of frames with a compressed memory of earlier chunks, then Linear."""

    Options = MemoryOptions
    name = "memory"

    def __init__(self, *, shape: TokenShape, num_outputs: int, options: MemoryOptions) -> None:
        super().__init__(shape=shape, num_outputs=num_outputs, options=options)
        self.layout = FrameLayout(num_prefix=shape.num_prefix, grid=shape.grid)
        self.embed = nn.Linear(shape.dim, options.width)
        self.blocks = nn.ModuleList(
            MemoryBlock(
                options.width,
                heads=options.heads,
                layout=self.layout,
                chunk_frames=options.chunk_frames,
                memory_length=options.memory_length,
                compress=options.compress,
                dropout=options.dropout,
            )
            for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, num_outputs)

    @property
    def _blocks(self) -> Sequence[MemoryBlock]:
        return [block for block in self.blocks if isinstance(block, MemoryBlock)]

    def forward(self, batch: TokenBatch) -> Tensor:
        require_real_frames(batch, decoder=self.name)
        outputs, _ = self.forward_from(batch, self.start_memory())
        return outputs

    # Memory --------------------------------------------------------------------------------------

    @property
    def carries_memory(self) -> bool:
        return True

    @property
    def windows_to_fill(self) -> int:
        chosen: MemoryOptions = self.options
        chunks = -(-self.shape.frames // chosen.chunk_frames)  # of a window
        return -(-(chosen.memory_length - 1) // chunks)

    def start_memory(self) -> MemoryState:
        """The state before any chunk, for any number of lanes."""
        return MemoryState(layers=((),) * self.options.depth)

    def forward_from(
        self, batch: TokenBatch, state: MemoryState, starts: Tensor | None = None
    ) -> tuple[Tensor, MemoryState]:
        """Outputs (B, num_outputs) of windows that go on where `state` was left, and the state
        after them, without gradient.

        starts: bool (B,), True in the lanes where another video begins, of which nothing is
        remembered. Every lane goes on by as many chunks as the longest window has; one without real
        frames gets outputs that mean nothing, and its next window must start a video.
        """
        if starts is not None:
            state = state.cleared(starts)
        pooled = None
        for chunk in self._chunks(batch):
            y, state = self._read(chunk, state)
            found = Pooled.of(y, chunk.real)
            pooled = found if pooled is None else pooled.then(found, self.options.readout)
        if pooled is None:
            raise ValueError("no window of the batch has a real frame")
        return self._outputs(pooled), state

    def _read(self, chunk: Chunk, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """LN(y) of a chunk (B, S, W), and the state after it."""
        x, layers = chunk.x, []
        for block, memory in zip(self._blocks, state.layers, strict=True):
            x, memory = block(x, chunk.real, memory)
            layers.append(memory)
        y: Tensor = self.norm(x)
        return y, MemoryState(layers=tuple(layers))

    def _outputs(self, pooled: Pooled) -> Tensor:
        outputs: Tensor = self.head(pooled.mean().to(self.head.weight.dtype))
        return outputs

    # Tokens --------------------------------------------------------------------------------------

    def _chunks(self, batch: TokenBatch) -> Iterator[Chunk]:
        """The chunks of a batch in order, up to the last frame that is real in any window."""
        for start in range(0, max(batch.lengths), self.options.chunk_frames):
            stop = min(start + self.options.chunk_frames, batch.mask.shape[1])
            yield self._embedded(cut(batch, start, stop))

    def _embedded(self, frames: TokenBatch) -> Chunk:
        device = self.head.weight.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.head.weight.dtype
        tokens = frames.sequence(dtype)  # B S D
        real = frames.token_mask() if frames.padded else None  # B S
        if real is not None:  # padding may hold anything
            tokens = torch.where(real[..., None], tokens, 0)
        return Chunk(x=self.embed(tokens), real=real)

    # Streams -------------------------------------------------------------------------------------

    @property
    def streamable(self) -> bool:
        return True

    def start_stream(self, batch_size: int, device: torch.device | str) -> MemoryStream:
        none = torch.zeros(batch_size, 0, self.options.width, device=device)  # B 0 W
        return MemoryStream(
            memory=self.start_memory(),
            pooled=Pooled(total=none.sum(dim=1), count=none.sum(dim=(1, 2))[:, None]),
            waiting=none,
        )

    @torch.no_grad()
    def stream_step(self, frames: TokenBatch, state: MemoryStream) -> tuple[Tensor, MemoryStream]:
        """As in `Decoder`. A chunk is read again at each of its frames, with those it has so far;
        only a full one is remembered."""
        check_stream_frames(frames)
        full = self.options.chunk_frames * self.layout.tokens
        waiting = torch.cat([state.waiting, self._embedded(frames).x], dim=1)  # B S W
        memory, pooled = state.memory, state.pooled
        while waiting.shape[1] >= full:
            y, memory = self._read(Chunk(x=waiting[:, :full], real=None), memory)
            pooled = pooled.then(Pooled.of(y, None), self.options.readout)
            waiting = waiting[:, full:]
        so_far = pooled
        if waiting.shape[1]:
            y, _ = self._read(Chunk(x=waiting, real=None), memory)
            so_far = pooled.then(Pooled.of(y, None), self.options.readout)
        state = MemoryStream(memory=memory, pooled=pooled, waiting=waiting.clone())
        return self._outputs(so_far), state

    @torch.no_grad()
    def next_window(self, state: MemoryStream) -> MemoryStream:
        """As in `Decoder`. A chunk that the window cut short is remembered as it is."""
        memory = state.memory
        if state.waiting.shape[1]:
            _, memory = self._read(Chunk(x=state.waiting, real=None), memory)
        fresh = self.start_stream(len(state.waiting), state.waiting.device)
        return replace(fresh, memory=memory)


def cut(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    """Frames [start, stop) of a batch."""
    return TokenBatch(
        patch=None if batch.patch is None else batch.patch[:, start:stop],
        prefix=None if batch.prefix is None else batch.prefix[:, start:stop],
        mask=batch.mask[:, start:stop],
        pts_seconds=batch.pts_seconds[:, start:stop],
        lengths=tuple(min(max(n - start, 0), stop - start) for n in batch.lengths),
    )
