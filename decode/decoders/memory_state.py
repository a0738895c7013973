"""What a memory decoder remembers between chunks. No checkpoint holds it: those are taken between
epochs, where every lane is about to start a video.

Letters as in `memory_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .memory_attention import Memory


@dataclass(frozen=True, kw_only=True)
class MemoryState:
    """The memories of all layers, each of as many chunks; none before the first chunk."""

    layers: tuple[Memory, ...]

    def cleared(self, starts: Tensor) -> MemoryState:
        """Nothing remembered in the lanes where `starts`, bool (B,), is True."""
        layers = tuple(tuple(slot.cleared(starts) for slot in memory) for memory in self.layers)
        return MemoryState(layers=layers)

    def rows(self, kept: Tensor) -> MemoryState:
        """Of the lanes `kept`, int64 (B',), alone, for a batch that goes on without the rest."""
        layers = tuple(tuple(slot.rows(kept) for slot in memory) for memory in self.layers)
        return MemoryState(layers=layers)
