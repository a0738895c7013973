"""The skeleton of ViS4mer: blocks that mix tokens, halve their number and halve their width.

Islam and Bertasius, "Long Movie Clip Classification with State-Space Video Models" (ViS4mer,
arXiv 2204.01692), in two variants: `PaperBlock` is what the paper describes, `OfficialBlock` what
its released code computes. A mixer is all that lets tokens meet and can be exchanged; this file
knows nothing of what is inside one, nor of heads.

Averaging tokens is linear, and dropout here takes whole channels, so

    Pool(x + Dropout(W g + b)) = Pool(x) + Dropout(W Pool(g) + b)

and the wide matrix W works on half or a quarter of the tokens. Each block has this fast form as
`forward` and the definition as `forward_plain`; both give the same numbers.

Letters: B batch, L tokens, D width, T frames, h × w grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d, gelu, pad

from .mixers.base import CausalMixer, ChannelDropout, ChannelMixer, Mixer, PoolChannels

Grid = tuple[int, int]

MOST_AVERAGED = 400
"""Tokens of a frame up to which pooling by a product is cheap: its cost a token grows with them."""


@dataclass(frozen=True)
class Tokens:
    """A sequence inside the skeleton.

    x: (B, L, D), frame-major.   mask: bool (B, L), True where real; None when all are.
    grid: (h, w) when every frame is a full grid of h·w tokens, else None.
    """

    x: Tensor
    mask: Tensor | None
    grid: Grid | None

    def like(self, x: Tensor) -> Tokens:
        return Tokens(x=x, mask=self.mask, grid=self.grid)


# ---------------------------------------------------------------------------------------------
# Pooling


class Pool(nn.Module, ABC):
    """Averages over small groups of neighbouring tokens, counting only the real ones."""

    @abstractmethod
    def forward(self, tokens: Tokens) -> Tokens: ...

    @abstractmethod
    def in_hand(self, tokens: Tokens) -> PoolChannels:
        """The same averages, for channels of such tokens, all real, in another layout."""

    @abstractmethod
    def num_complete(self, num_tokens: int) -> int:
        """Of a stream's next `num_tokens`, how many lie in groups that are complete."""


class NoPool(Pool):
    """Every token by itself."""

    def forward(self, tokens: Tokens) -> Tokens:
        return tokens

    def in_hand(self, tokens: Tokens) -> PoolChannels:  # noqa: ARG002 - of any
        return lambda y, num_tokens: y[..., :num_tokens]

    def num_complete(self, num_tokens: int) -> int:
        return num_tokens


class GridPool(Pool):
    """2 × 2 patches of a frame's grid, 1 frame: 14 → 7 → 4 → 2, an odd edge averages what it has.

    Average pooling with kernel and stride 1×2×2, ceil_mode=True, count_include_pad=False. A frame
    is real or padding as a whole, hence so is every group.
    """

    def forward(self, tokens: Tokens) -> Tokens:
        assert tokens.grid is not None
        B, L, D = tokens.x.shape
        h, w = tokens.grid
        T = L // (h * w)
        frames = tokens.x.reshape(B * T, h, w, D).permute(0, 3, 1, 2)  # B·T D h w, channels last
        pooled = _grid_means(frames)  # B·T D h' w'
        grid = (pooled.shape[2], pooled.shape[3])
        x = pooled.permute(0, 2, 3, 1).reshape(B, T * grid[0] * grid[1], D)  # B L' D
        mask = tokens.mask
        if mask is not None:
            mask = mask[:, :: h * w].repeat_interleave(grid[0] * grid[1], dim=1)  # B L'
            x = x * mask[..., None]
        return Tokens(x=x, mask=mask, grid=grid)

    def in_hand(self, tokens: Tokens) -> PoolChannels:
        """By a product with the averaging matrix, where that is small: in bfloat16 a seventh of
        the time that the library's pooling takes in this layout, in float32 about the same."""
        assert tokens.grid is not None
        h, w = tokens.grid
        averaging = None
        if h * w <= MOST_AVERAGED:
            each = torch.eye(h * w, device=tokens.x.device).view(-1, 1, h, w)
            averaging = _grid_means(each).flatten(1)  # h·w h'·w'

        def pool(y: Tensor, num_tokens: int) -> Tensor:
            H, B, _ = y.shape
            frames = y[..., :num_tokens].reshape(-1, h * w)  # H·B·T h·w
            if averaging is None:
                return _grid_means(frames.view(H, -1, h, w)).reshape(H, B, -1)
            return (frames @ averaging.to(y.dtype)).view(H, B, -1)  # H B L'

        return pool

    def num_complete(self, num_tokens: int) -> int:
        return num_tokens  # a stream brings whole frames


def _grid_means(frames: Tensor) -> Tensor:
    """(N, C, h, w) → (N, C, ⌈h/2⌉, ⌈w/2⌉)."""
    return avg_pool2d(frames, 2, ceil_mode=True, count_include_pad=False)


class PairPool(Pool):
    """Consecutive pairs of the flattened sequence.

    The last token of an odd sequence is dropped (`drop_tail`) or stands alone. A real token beside
    a padding one is such a tail, so that padding changes nothing.
    """

    def __init__(self, *, drop_tail: bool) -> None:
        super().__init__()
        self.drop_tail = drop_tail

    def forward(self, tokens: Tokens) -> Tokens:
        if tokens.mask is None:
            return Tokens(x=self._all_real(tokens.x), mask=None, grid=None)
        x, mask = tokens.x, tokens.mask
        if x.shape[1] % 2:
            x, mask = pad(x, (0, 0, 0, 1)), pad(mask, (0, 1))
        real = mask.view(mask.shape[0], -1, 2)  # B L' 2
        mask = real.all(dim=2) if self.drop_tail else real.any(dim=2)  # B L'
        weight = real / real.sum(dim=2, keepdim=True).clamp(min=1) * mask[..., None]  # B L' 2
        weight = weight.to(x.dtype)
        pooled = x[:, 0::2] * weight[..., :1] + x[:, 1::2] * weight[..., 1:]  # B L' D
        return Tokens(x=pooled, mask=mask, grid=None)

    def _all_real(self, x: Tensor) -> Tensor:
        even = x.shape[1] // 2 * 2
        pooled: Tensor = _PairMeans.apply(x, 1, even)  # type: ignore[no-untyped-call]
        if self.drop_tail or even == x.shape[1]:
            return pooled
        return torch.cat([pooled, x[:, even:]], dim=1)  # B ⌈L/2⌉ D

    def in_hand(self, tokens: Tokens) -> PoolChannels:  # noqa: ARG002 - of any
        return self._in_hand

    def _in_hand(self, y: Tensor, num_tokens: int) -> Tensor:
        """(h, B, P) → (h, B, L')."""
        even = num_tokens // 2 * 2
        pooled: Tensor = _PairMeans.apply(y, 2, even)  # type: ignore[no-untyped-call]
        if self.drop_tail or even == num_tokens:
            return pooled
        return torch.cat([pooled, y[..., even:num_tokens]], dim=2)

    def num_complete(self, num_tokens: int) -> int:
        return num_tokens // 2 * 2


class _PairMeans(torch.autograd.Function):
    """Means of the pairs among the first `even` places of a dimension of three. The gradient is
    written once, where two slices would write two."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, even: int) -> Tensor:
        ctx.dim, ctx.even, ctx.shape = dim, even, x.shape
        first, second = _pairs(x, dim, even)
        return (first + second).div_(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        of_x = grad.new_empty(ctx.shape)
        half = grad / 2
        for of_each in _pairs(of_x, ctx.dim, ctx.even):
            of_each.copy_(half)
        of_x.narrow(ctx.dim, ctx.even, ctx.shape[ctx.dim] - ctx.even).zero_()
        return of_x, None, None


def _pairs(x: Tensor, dim: int, even: int) -> tuple[Tensor, Tensor]:
    """Views of the first and the second of each pair."""
    some = x.narrow(dim, 0, even)
    return (some[:, 0::2], some[:, 1::2]) if dim == 1 else (some[..., 0::2], some[..., 1::2])


def build_pool(*, pooling: bool, grid: bool, drop_tail: bool) -> Pool:
    """Grid pooling where there is a grid, else pairs; none when `pooling` is off."""
    if not pooling:
        return NoPool()
    return GridPool() if grid else PairPool(drop_tail=drop_tail)


# ---------------------------------------------------------------------------------------------
# Blocks


@dataclass(frozen=True)
class BlockStream:
    """A block's memory of a stream.

    mixer: its mixer's own memory.   x, g: inputs and core outputs (B, S, D) that wait for the
    rest of their pooling group; at most one token.
    """

    mixer: Any
    x: Tensor
    g: Tensor


class Block(nn.Module, ABC):
    """LayerNorm, mixer, pooling, change of width; the subclasses say in which order."""

    def __init__(self, width: int, *, mixer: Mixer, pool: Pool, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = mixer
        self.pool = pool
        self.dropout = ChannelDropout(dropout)

    @abstractmethod
    def combine(self, x: Tensor, z: Tensor) -> Tensor:
        """The output from the pooled input x and the pooled mixer output z, before dropout."""

    @abstractmethod
    def forward_plain(self, tokens: Tokens) -> Tokens:
        """The definition, every average taken where the variant's authors take it."""

    def forward(self, tokens: Tokens) -> Tokens:
        pooled: Tokens = self.pool(tokens)  # B L' D
        return pooled.like(self._project(pooled.x, self._pooled_core(tokens)))

    def _pooled_core(self, tokens: Tokens) -> Tensor:
        """Pool(g): (B, L', D)."""
        x = self.norm(tokens.x)  # B L D
        if tokens.mask is None and isinstance(self.mixer, ChannelMixer):
            return self.mixer.pooled_core(x, self.pool.in_hand(tokens))
        pooled: Tokens = self.pool(tokens.like(self.mixer.core(x, tokens.mask)))
        return pooled.x

    def _project(self, x: Tensor, g: Tensor) -> Tensor:
        return self.combine(x, self.mixer.output(g))

    def start_stream(self, batch_size: int, device: torch.device) -> BlockStream:
        """Before the first token. Only for blocks with a causal mixer."""
        assert isinstance(self.mixer, CausalMixer)
        empty = torch.zeros(batch_size, 0, self.norm.weight.shape[0], device=device)  # B 0 D
        return BlockStream(mixer=self.mixer.start_stream(batch_size, device), x=empty, g=empty)

    def stream(
        self, tokens: Tokens, state: BlockStream, *, last: bool
    ) -> tuple[Tokens, BlockStream]:
        """The outputs that the next tokens complete. `last` also ends unfinished groups."""
        assert isinstance(self.mixer, CausalMixer)
        x, g, mixer = tokens.x, tokens.x, state.mixer  # B S D
        if x.shape[1]:
            g, mixer = self.mixer.stream_core(self.norm(x), mixer)  # B S D
        x, g = torch.cat([state.x, x], dim=1), torch.cat([state.g, g], dim=1)  # B S+1 D
        ready = x.shape[1] if last else self.pool.num_complete(x.shape[1])
        pooled = self.pool(tokens.like(x[:, :ready]))  # B S' D
        y = self._project(pooled.x, self.pool(tokens.like(g[:, :ready])).x)
        out = Tokens(x=y, mask=None, grid=pooled.grid)
        return out, BlockStream(mixer=mixer, x=x[:, ready:], g=g[:, ready:])


class OfficialBlock(Block):
    """The released code: z = S4(LN(x)); x ← GELU(Linear(Pool(x + Dropout(z))))."""

    def __init__(
        self, width: int, out_width: int, *, mixer: Mixer, pool: Pool, dropout: float
    ) -> None:
        super().__init__(width, mixer=mixer, pool=pool, dropout=dropout)
        self.linear = nn.Linear(width, out_width)

    def combine(self, x: Tensor, z: Tensor) -> Tensor:
        return gelu(self.linear(self.dropout.added_to(x, z)))

    def forward_plain(self, tokens: Tokens) -> Tokens:
        z = self.mixer(self.norm(tokens.x), tokens.mask)
        pooled: Tokens = self.pool(tokens.like(tokens.x + self.dropout(z)))
        return pooled.like(gelu(self.linear(pooled.x)))


class PaperBlock(Block):
    """The paper, section 3.3: x_out = MLP(Pool(x_s4)) + Pool(Linear(x_in)), x_s4 = S4(LN(x_in)).

    The paper does not give the MLP's inner shape. This is a choice: two linear layers with a GELU
    between them, the first of which changes the width.
    """

    def __init__(
        self, width: int, out_width: int, *, mixer: Mixer, pool: Pool, dropout: float
    ) -> None:
        super().__init__(width, mixer=mixer, pool=pool, dropout=dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )
        self.skip = nn.Linear(width, out_width)

    def combine(self, x: Tensor, z: Tensor) -> Tensor:
        x_mlp: Tensor = self.mlp(self.dropout(z))
        x_skip: Tensor = self.skip(x)
        return x_mlp + x_skip

    def forward_plain(self, tokens: Tokens) -> Tokens:
        x_s4 = self.dropout(self.mixer(self.norm(tokens.x), tokens.mask))
        x_mlp = self.mlp(self.pool(tokens.like(x_s4)).x)
        pooled: Tokens = self.pool(tokens.like(self.skip(tokens.x)))
        return pooled.like(x_mlp + pooled.x)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over real tokens, in float32 at least: x (B, L, D), mask (B, L) → (B, D)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if mask is None:
        return x.mean(dim=1, dtype=dtype)
    total = (x * mask[..., None]).sum(dim=1, dtype=dtype)  # B D
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class RunningMean:
    """The mean over the tokens of a stream so far. total: float32 (B, D); count: tokens."""

    total: Tensor
    count: int

    @classmethod
    def start(cls, batch_size: int, width: int, device: torch.device | str) -> RunningMean:
        return cls(total=torch.zeros(batch_size, width, device=device), count=0)

    def add(self, x: Tensor) -> RunningMean:
        """With the next tokens x (B, S, D), S ≥ 0."""
        total = self.total + x.sum(dim=1, dtype=torch.float32)  # B D
        return RunningMean(total=total, count=self.count + x.shape[1])

    def mean(self) -> Tensor:
        """(B, D); NaN before the first token."""
        return self.total / self.count if self.count else torch.full_like(self.total, torch.nan)
