"""What a memory decoder remembers between chunks, and its way into a checkpoint and back.

The tensors of a checkpoint are untrusted: names, shapes and types are compared with the decoder
that is to go on from them before any is used. Letters as in `memory_attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...store.errors import CacheFormatError
from .memory_attention import FrameLayout, Memory, MemorySlot, compressed_frames, frames_of_tokens


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

    def tensors(self) -> dict[str, Tensor]:
        """By name, `<layer>.<slot>.<field>`, for a checkpoint."""
        found = {}
        for i, memory in enumerate(self.layers):
            for j, slot in enumerate(memory):
                found[f"{i}.{j}.keys"] = slot.keys
                if slot.values is not slot.keys:
                    found[f"{i}.{j}.values"] = slot.values
                if slot.real is not None:
                    found[f"{i}.{j}.real"] = slot.real
        return found


@dataclass(frozen=True, kw_only=True)
class MemoryShape:
    """What the memory of one decoder can be.

    slots: the most that a layer keeps.   compresses: whether all but the newest are compressed.
    """

    depth: int
    slots: int
    width: int
    chunk_frames: int
    layout: FrameLayout
    compresses: bool

    def read(self, tensors: Mapping[str, Tensor], *, name: str) -> MemoryState:
        """The state that `MemoryState.tensors` gave; CacheFormatError, naming the file `name`."""
        found = max((_slot_number(key, name) for key in tensors), default=-1) + 1
        if found > self.slots:
            raise _refuse(name, f"it is of {found} chunks, expected at most {self.slots}")
        known = {
            f"{i}.{j}.{field}"
            for i in range(self.depth)
            for j in range(found)
            for field in ("keys", "values", "real")
        }
        if unknown := sorted(tensors.keys() - known):
            raise _refuse(name, f"{unknown[0]!r} is unknown; expected {self.depth} layers")
        layers = tuple(
            tuple(self._slot(tensors, i, j, newest=j == found - 1, name=name) for j in range(found))
            for i in range(self.depth)
        )
        lanes = {slot.keys.shape[0] for memory in layers for slot in memory}
        if len(lanes) > 1:
            raise _refuse(name, f"its tensors are of {sorted(lanes)} lanes, expected one number")
        return MemoryState(layers=layers)

    def _slot(
        self, tensors: Mapping[str, Tensor], layer: int, slot: int, *, newest: bool, name: str
    ) -> MemorySlot:
        prefix = f"{layer}.{slot}."
        keys = tensors.get(f"{prefix}keys")
        if keys is None:
            raise _refuse(name, f"{prefix}keys is missing")
        values, real = tensors.get(f"{prefix}values", keys), tensors.get(f"{prefix}real")
        fits = keys.dim() == 3 and keys.shape[2] == self.width and keys.is_floating_point()
        frames = self._frames(keys.shape[1], keys.device, whole=newest) if fits else None
        if frames is None:
            raise _refuse(
                name,
                f"{prefix}keys is {keys.dtype} {tuple(keys.shape)}, expected floating point "
                f"(lanes, tokens of at most {self.chunk_frames} frames, {self.width})",
            )
        if values.shape != keys.shape or values.dtype != keys.dtype:
            raise _refuse(name, f"{prefix}values is not as {prefix}keys")
        if real is not None and (real.dtype != torch.bool or real.shape != keys.shape[:2]):
            raise _refuse(name, f"{prefix}real is {real.dtype} {tuple(real.shape)}, expected bool")
        return MemorySlot(keys=keys, values=values, real=real, frames=frames)

    def _frames(self, num_tokens: int, device: torch.device, *, whole: bool) -> Tensor | None:
        """The frames of a slot's tokens; None where no chunk has so many."""
        make = frames_of_tokens if whole or not self.compresses else compressed_frames
        for num_frames in range(1, self.chunk_frames + 1):
            frames = make(num_frames, self.layout, device=device)
            if len(frames) == num_tokens:
                return frames
        return None


def _slot_number(key: str, name: str) -> int:
    parts = key.split(".")
    if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit()) or len(parts[1]) > 6:
        raise _refuse(name, f"{key!r} is unknown")
    return int(parts[1])


def _refuse(name: str, what: str) -> CacheFormatError:
    return CacheFormatError(f"{name}: not the memory of this decoder ({what})")
