"""One layer of the memory decoder: attention from a chunk of frames to a memory and to itself.

Wu et al., "MeMViT" (arXiv 2201.08383), moved to cached tokens. With h_t = LN(x_t) the input of the
projections at chunk t, f_K and f_V the compressors and sg a copy without gradient, chunk t reads

    K_t = [sg f_K(h_{t−M+1}), …, sg f_K(h_{t−2}), f_K(sg h_{t−1}), h_t] W_K      V_t alike, f_V, W_V
    x ← x + Dropout(W_O softmax(h_t W_Q K_tᵀ / √d + b) V_t);   x ← x + Dropout(MLP(LN(x)))

so M = `memory_length` counts the chunk itself. What is kept of a past chunk are inputs of W_K and
W_V: projections run when they are used, and learn from stale features too. Compression is
pipelined: a chunk is kept whole, compressed once, when the next one reads it, and only that reading
teaches the compressor.

    f(h) = LN(conv(h)):  depthwise, kernel 7 × 3 × 3, stride 4 × 2 × 2, over (frames, h, w), no bias

Prefix tokens (CLS) pass by f as they are; a view without a grid has no f, and one that selects k
patches a frame is to f a grid of k × 1. b is one learned number a
head and a distance in frames, from the query's frame to the key's or to that in the middle of a
compressed key's kernel: the distance between slots, down to the frame, so that the order within a
chunk is known too. A choice: the paper's is a product with the query, and in space as well, which
the backbone's tokens know by themselves.

Nothing here knows how a window is cut into chunks, nor of heads' outputs and labels.

Letters: B windows or lanes, T frames of a chunk, C frames of a full one, h × w grid, p prefix
tokens, S tokens of a chunk, R tokens read (memory and chunk), W width, N heads, d = W/N, M chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.nn.init import trunc_normal_

from ..mixers.base import ChannelDropout

KERNEL = (7, 3, 3)  # frames, h, w
STRIDE = (4, 2, 2)
MLP_RATIO = 4
BIAS_STD = 0.02  # of b when drawn


@dataclass(frozen=True, kw_only=True)
class MemorySlot:
    """What a layer keeps of one chunk.

    keys, values: inputs (B, S, W) of W_K and W_V; the same tensor before compression.
    real: bool (B, S), False where nobody may look: padding, and what belongs to another video.
        None when all are real.
    frames: int64 (S,), the frame of each token, counted from the chunk's first.
    """

    keys: Tensor
    values: Tensor
    real: Tensor | None
    frames: Tensor

    def cleared(self, starts: Tensor) -> MemorySlot:
        """With all tokens hidden from the lanes where `starts`, bool (B,), is True."""
        stays = ~starts[:, None].expand(self.keys.shape[:2])  # B S
        real = stays if self.real is None else stays & self.real
        return MemorySlot(keys=self.keys, values=self.values, real=real, frames=self.frames)

    def rows(self, kept: Tensor) -> MemorySlot:
        """Of the lanes `kept`, int64 (B',), alone."""
        keys = self.keys[kept]  # B' S W
        values = keys if self.values is self.keys else self.values[kept]
        real = None if self.real is None else self.real[kept]  # B' S
        return MemorySlot(keys=keys, values=values, real=real, frames=self.frames)

    def detached(self) -> MemorySlot:
        """The same numbers; what is made of them teaches nothing that made them."""
        keys = self.keys.detach()
        values = keys if self.values is self.keys else self.values.detach()
        return MemorySlot(keys=keys, values=values, real=self.real, frames=self.frames)


Memory = tuple[MemorySlot, ...]
"""Of one layer, oldest first; the newest is whole, those before it are compressed."""


@dataclass(frozen=True, kw_only=True)
class FrameLayout:
    """A frame's tokens: p prefix tokens, then the patches of a grid (h, w) in raster order."""

    num_prefix: int
    grid: tuple[int, int] | None

    @property
    def tokens(self) -> int:
        patches = self.grid[0] * self.grid[1] if self.grid else 0
        return self.num_prefix + patches


class Compressor(nn.Module):
    """f: patches (B, T, h, w, W) → (B, ⌈T/4⌉, ⌈h/2⌉, ⌈w/2⌉, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        padding = (KERNEL[0] // 2, KERNEL[1] // 2, KERNEL[2] // 2)
        self.conv = nn.Conv3d(
            width, width, KERNEL, stride=STRIDE, padding=padding, groups=width, bias=False
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        y = self._convolved(patches.permute(0, 4, 1, 2, 3))  # B W T' h' w'
        compressed: Tensor = self.norm(y.permute(0, 2, 3, 4, 1))  # B T' h' w' W
        return compressed

    def _convolved(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            # oneDNN's bfloat16 weight gradient is garbage for grids of one row or one column.
            with torch.autocast("cpu", enabled=False):
                whole: Tensor = self.conv(x.to(self.conv.weight.dtype))
                return whole
        y: Tensor = self.conv(x)
        return y


class SlotCompressor(nn.Module):
    """f_K and f_V on whole slots of frames that have a grid."""

    def __init__(self, width: int, layout: FrameLayout) -> None:
        super().__init__()
        self.layout = layout
        self.keys = Compressor(width)
        self.values = Compressor(width)

    def forward(self, slot: MemorySlot) -> MemorySlot:
        """A compressed token is real when the frame in the middle of its kernel is."""
        per_frame = self.layout.tokens
        T = slot.keys.shape[1] // per_frame
        frames = compressed_frames(T, self.layout, device=slot.frames.device)  # S'
        real = None if slot.real is None else slot.real[:, ::per_frame][:, frames]  # B S'
        hidden = None if slot.real is None else ~slot.real[..., None]  # B S 1
        keys = self._compress(self.keys, slot.keys, hidden)  # B S' W
        values = self._compress(self.values, slot.values, hidden)  # B S' W
        return MemorySlot(keys=keys, values=values, real=real, frames=frames)

    def _compress(self, f: Compressor, tokens: Tensor, hidden: Tensor | None) -> Tensor:
        assert self.layout.grid is not None
        if hidden is not None:  # padding is to f what lies beyond the chunk: zeros
            tokens = tokens.masked_fill(hidden, 0)
        B, S, W = tokens.shape
        by_frame = tokens.reshape(B, S // self.layout.tokens, self.layout.tokens, W)  # B T p+h·w W
        prefix = by_frame[:, :, : self.layout.num_prefix].flatten(1, 2)  # B T·p W
        patches = by_frame[:, :, self.layout.num_prefix :]  # B T h·w W
        patches = patches.reshape(B, patches.shape[1], *self.layout.grid, W)  # B T h w W
        compressed = f(patches).flatten(1, 3)  # B T'·h'·w' W
        return torch.cat([prefix, compressed.to(prefix.dtype)], dim=1)  # B S' W


def frames_of_tokens(num_frames: int, layout: FrameLayout, *, device: torch.device) -> Tensor:
    """The frame of each token of a whole chunk: int64 (S,)."""
    return torch.arange(num_frames, device=device).repeat_interleave(layout.tokens)  # S


def compressed_frames(num_frames: int, layout: FrameLayout, *, device: torch.device) -> Tensor:
    """The frame of each token of a compressed chunk, prefix first: int64 (S',)."""
    assert layout.grid is not None
    cells = -(-layout.grid[0] // STRIDE[1]) * -(-layout.grid[1] // STRIDE[2])
    frames = torch.arange(num_frames, device=device)  # T
    prefix = frames.repeat_interleave(layout.num_prefix)  # T·p
    return torch.cat([prefix, frames[:: STRIDE[0]].repeat_interleave(cells)])  # S'


class MemoryAttention(nn.Module):
    """Multi-head attention of a chunk to slots, with b."""

    def __init__(self, width: int, *, heads: int, chunk_frames: int, memory_length: int) -> None:
        super().__init__()
        self.heads = heads
        self.chunk_frames = chunk_frames
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        # b at distances from −(C−1), a later frame of the same chunk, to MC−1
        num_distances = (memory_length + 1) * chunk_frames - 1
        self.bias = nn.Parameter(torch.empty(heads, num_distances))
        trunc_normal_(self.bias, std=BIAS_STD)

    def forward(self, h: Tensor, slots: Sequence[MemorySlot], *, num_frames: int) -> Tensor:
        """h: (B, S, W), of T = num_frames. slots: all that is read, h the last → (B, S, W).

        b is a product too, so that no (S, R) matrix of it is ever held and the fused kernel can be
        used: one-hot frames of the queries times √d b of the keys, as further channels of Q and K.
        """
        Q = self._by_head(self.query(h))  # B N S d
        K = self._by_head(self.key(torch.cat([slot.keys for slot in slots], dim=1)))  # B N R d
        V = self._by_head(self.value(torch.cat([slot.values for slot in slots], dim=1)))  # B N R d
        d = Q.shape[3]
        which = slots[-1].frames[:, None] == torch.arange(num_frames, device=h.device)  # S T
        b = math.sqrt(d) * self._biases(slots, num_frames)  # N R T
        Q = torch.cat([Q, which.to(Q.dtype).expand(*Q.shape[:2], -1, -1)], dim=3)  # B N S d+T
        K = torch.cat([K, b.to(K.dtype).expand(K.shape[0], -1, -1, -1)], dim=3)  # B N R d+T
        V = pad(V, (0, num_frames))  # B N R d+T: fused kernels want one width
        y = scaled_dot_product_attention(
            Q, K, V, attn_mask=read_mask(slots), scale=1 / math.sqrt(d)
        )[..., :d]  # B N S d
        mixed: Tensor = self.output(y.transpose(1, 2).flatten(2))  # B S W
        return mixed

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # B N S d

    def _biases(self, slots: Sequence[MemorySlot], num_frames: int) -> Tensor:
        """b of every key at every frame of the chunk: (N, R, T)."""
        C, device = self.chunk_frames, self.bias.device
        ages = range(len(slots) - 1, -1, -1)  # chunks passed since
        keys = torch.cat([slot.frames - age * C for slot, age in zip(slots, ages, strict=True)])
        distances = torch.arange(num_frames, device=device) - keys[:, None]  # R T
        return self.bias[:, distances + (C - 1)]  # N R T


def read_mask(slots: Sequence[MemorySlot]) -> Tensor | None:
    """Which of the slots' tokens may be read: bool (B, 1, 1, R); None when all may.

    A lane in which nothing is real reads everything: what it gets means nothing, but is finite.
    """
    if all(slot.real is None for slot in slots):
        return None
    parts = [
        slot.keys.new_ones(slot.keys.shape[:2], dtype=torch.bool)
        if slot.real is None
        else slot.real
        for slot in slots
    ]
    real = torch.cat(parts, dim=1)  # B R
    return (real | ~real.any(dim=1, keepdim=True))[:, None, None, :]  # B 1 1 R


class MemoryBlock(nn.Module):
    """A pre-norm layer with a memory of M − 1 chunks.

    compress: with f, where frames have a grid and a second chunk is remembered.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        layout: FrameLayout,
        chunk_frames: int,
        memory_length: int,
        compress: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.memory_length = memory_length
        self.layout = layout
        self.norm = nn.LayerNorm(width)
        self.attention = MemoryAttention(
            width, heads=heads, chunk_frames=chunk_frames, memory_length=memory_length
        )
        compresses = compress and layout.grid is not None and memory_length > 1
        self.compressor = SlotCompressor(width, layout) if compresses else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width), nn.GELU(), nn.Linear(MLP_RATIO * width, width)
        )
        self.dropout = ChannelDropout(dropout)

    def forward(self, x: Tensor, real: Tensor | None, memory: Memory) -> tuple[Tensor, Memory]:
        """A chunk x (B, S, W), its mask (B, S), and the memory before it → the same after it."""
        h = self.norm(x)  # B S W
        num_frames = x.shape[1] // self.layout.tokens
        frames = frames_of_tokens(num_frames, self.layout, device=x.device)  # S
        current = MemorySlot(keys=h, values=h, real=real, frames=frames)
        slots = (*self._compressed(memory), current)
        x = x + self.dropout(self.attention(h, slots, num_frames=num_frames))  # B S W
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))  # B S W
        return x, self._kept(slots)

    def _compressed(self, memory: Memory) -> Memory:
        """The newest slot through f, the only time that it is."""
        if self.compressor is None or not memory:
            return memory
        newest: MemorySlot = self.compressor(memory[-1])
        return (*memory[:-1], newest)

    def _kept(self, slots: Memory) -> Memory:
        """The last M − 1 slots, without gradient."""
        first = max(0, len(slots) - (self.memory_length - 1))
        return tuple(slot.detached() for slot in slots[first:])
