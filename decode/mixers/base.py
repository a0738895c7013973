"""What every token mixer is: a core that lets tokens meet, then a linear layer on each token.

The two halves are apart because averaging tokens commutes with the second: the skeleton pools
between them and the largest matrix product runs on half the tokens.

Letters: B batch, L tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from ..rows import drawn_by_row

Growth = Literal["linear", "quadratic", "quadratic in frames"]
"""With the tokens of a window, all else equal; or, where each frame is one token, with frames."""


@dataclass(frozen=True, kw_only=True)
class MixerOptions:
    """The options of a mixer: a frozen dataclass that refuses bad values when it is built."""


class Mixer(nn.Module, ABC):
    """(x (B, L, D), mask (B, L) or None) → (B, L, D).

    A mask is True where a token is real; None means that all are. Values at masked places are
    finite but mean nothing, and must not reach the real ones.

    length: tokens of a full window where this mixer stands. Most take any length and ignore it.
    """

    Options: ClassVar[type[MixerOptions]]
    output: nn.Linear

    @abstractmethod
    def __init__(self, width: int, *, length: int, dropout: float, options: Any) -> None: ...

    @abstractmethod
    def core(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """All of the mixer but its last linear layer: (B, L, D) → (B, L, D)."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.output(self.core(x, mask))
        return y

    @property
    def memory_growth(self) -> Growth:
        """How the memory of a forward pass grows."""
        return "linear"

    def dynamics(self) -> list[nn.Parameter]:
        """Parameters that learn slowly (lr ≤ 1e-3) and without weight decay."""
        return []


class CausalMixer(Mixer):
    """A mixer whose output at a token depends on that token and earlier ones alone."""

    @abstractmethod
    def start_stream(self, batch_size: int, device: torch.device) -> Any:
        """The state before the first token."""

    @abstractmethod
    def stream_core(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`core` of the next S tokens (B, S, D), S ≥ 1, all real, and the state after them."""


PoolChannels = Callable[[Tensor, int], Tensor]
"""(y (h, B, P), L ≤ P) → (h, B, M): averages over neighbours among the first L, whole groups."""


class ChannelMixer(CausalMixer):
    """A mixer that has a few channels in hand at a time, and can pool them before it lays them
    down: half or a quarter of what `core` returns is then ever written."""

    @abstractmethod
    def pooled_core(self, x: Tensor, pool: PoolChannels) -> Tensor:
        """`core` of real tokens alone, pooled: (B, L, D) → (B, M, D)."""


class ChannelDropout(nn.Module):
    """Dropout of whole channels: one draw per sample and channel, the same for all its tokens."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x)
        return x if scale is None else x * scale

    def added_to(self, x: Tensor, z: Tensor) -> Tensor:
        """x + Dropout(z), in one pass: (B, L, D)."""
        scale = self.scale(z)
        return x + z if scale is None else torch.addcmul(x, z, scale)

    def scale(self, x: Tensor) -> Tensor | None:
        """What x (B, L, D) is to be multiplied by, (B, 1, D); None where nothing is dropped."""
        if not self.training or self.probability == 0:
            return None
        keep = 1 - self.probability

        def draw(num_rows: int) -> Tensor:
            return torch.empty(num_rows, 1, x.shape[2], device=x.device).bernoulli_(keep)

        noise = drawn_by_row(draw, x.shape[0])  # B 1 D
        return (noise / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class RowDropout(nn.Dropout):
    """Dropout of single values, drawn by row."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x

        def draw(num_rows: int) -> Tensor:
            return dropout(x.new_ones(num_rows, *x.shape[1:]), self.p)

        return x * drawn_by_row(draw, x.shape[0])
