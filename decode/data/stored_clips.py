"""Frames of one video as they are stored: read on a thread, and decoded where they are computed.

int8 stays int8, with its scales, until it lies on the device: a quarter of the memory, and of what
goes to a GPU. Knows which frames it is given, not why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...store.cache import Cache
from ...store.decoded import ViewTokens
from ...store.stored import StoredTokens, memory_needed
from .buffers import Memory, fresh, to_device
from .plan import WindowPlan

_TORCH_DTYPES = {
    "<f2": torch.float16,
    "<u2": torch.bfloat16,
    "|i1": torch.int8,
    "<f4": torch.float32,
}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Tokens of t frames as a cache holds them.

    values: (t, …, D) float16, bfloat16 or float32, or int8 with scale float32 (t, …) by token and
    channel float32 (D,).
    """

    values: Tensor
    scale: Tensor | None = None
    channel: Tensor | None = None

    def select(self, positions: slice | Tensor) -> Stored:
        """Some of the frames; a slice shares memory."""
        scale = None if self.scale is None else self.scale[positions]
        return Stored(values=self.values[positions], scale=scale, channel=self.channel)

    def to(self, device: torch.device) -> Stored:
        def move(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device, non_blocking=True)

        values = self.values.to(device, non_blocking=True)
        return Stored(values=values, scale=move(self.scale), channel=move(self.channel))

    def pinned(self) -> Stored:
        """The same in page-locked memory. A channel scale is small and goes as it is."""
        scale = None if self.scale is None else self.scale.pin_memory()
        return Stored(values=self.values.pin_memory(), scale=scale, channel=self.channel)

    def decoded(self) -> Tensor:
        """(t, …, D) of numbers: float32 of int8, to the last bit as `quantise.decode_int8`."""
        if self.scale is None or self.channel is None:
            return self.values
        return (self.values * self.scale[..., None]).mul_(self.channel)


@dataclass(frozen=True, kw_only=True)
class StoredClip:
    """A clip as it lies in the cache: of the stored type and grid, patch (t, H, W, D), prefix
    (t, 1, D), either None; on the host, unless it was put elsewhere."""

    patch: Stored | None
    prefix: Stored | None
    pts_seconds: Tensor  # float64 (t,)

    def select(self, positions: slice | Tensor) -> StoredClip:
        """Some of the frames; a slice shares memory."""
        return StoredClip(
            patch=None if self.patch is None else self.patch.select(positions),
            prefix=None if self.prefix is None else self.prefix.select(positions),
            pts_seconds=self.pts_seconds[positions],
        )

    def take(self, held: Sequence[int], frames: Sequence[int]) -> StoredClip:
        """As `Clip.take`."""
        return self.select(positions_among(held, frames, self.pts_seconds.device))

    def pinned(self) -> StoredClip:
        """The same in page-locked memory."""
        return StoredClip(
            patch=None if self.patch is None else self.patch.pinned(),
            prefix=None if self.prefix is None else self.prefix.pinned(),
            pts_seconds=self.pts_seconds.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True)
class HostClip:
    """A clip that was read. num_bytes: token bytes read from the store for it."""

    clip: StoredClip
    num_bytes: int


def read_clip(
    cache: Cache,
    entry_id: str,
    plan: WindowPlan,
    frames: Sequence[int],
    *,
    memory: Memory = fresh,
) -> HostClip:
    """Read frames of an entry into `memory`; any number of threads may. DamagedEntryError before
    much memory is taken for what a record claims and its files do not hold."""
    record = cache.record(entry_id)
    plan.view.require(cache.spec)
    chosen = np.asarray(frames, dtype=np.int64)
    buffer = memory(memory_needed(cache.backing, record, cache.spec, plan.view, chosen))
    read = cache.read_stored(entry_id, plan.view, as_range(frames), out=buffer.numpy())
    pts = torch.from_numpy(np.asarray(record.pts_seconds, dtype=np.float64)[list(frames)])
    patch, prefix = _stored(read.patch, buffer), _stored(read.prefix, buffer)
    if patch is not None and read.grid is not None:
        patch = _unflattened(patch, read.grid)
    clip = StoredClip(
        patch=patch,
        prefix=None if prefix is None else _first_token(prefix),
        pts_seconds=pts.pin_memory() if buffer.is_pinned() else pts,
    )
    return HostClip(clip=clip, num_bytes=read.num_bytes)


def host_clip(tokens: ViewTokens, pts: NDArray[np.float64]) -> HostClip:
    """Tokens as a cache gives them, as torch sees them; no copy."""

    def stored(values: NDArray[np.floating] | None) -> Stored | None:
        if values is None:
            return None
        return Stored(values=torch.from_numpy(np.ascontiguousarray(values)))

    clip = StoredClip(
        patch=stored(tokens.patch), prefix=stored(tokens.prefix), pts_seconds=torch.from_numpy(pts)
    )
    return HostClip(clip=clip, num_bytes=tokens.num_bytes)


def positions_among(
    held: Sequence[int], frames: Sequence[int], device: torch.device
) -> slice | Tensor:
    """Where `frames` are among `held`, both ascending."""
    positions = np.searchsorted(held, frames)
    first, last = int(positions[0]), int(positions[-1])
    if last - first + 1 == len(frames):
        return slice(first, last + 1)
    return to_device(torch.from_numpy(positions), device)


def as_range(frames: Sequence[int]) -> range | Sequence[int]:
    """A range where the frames are evenly spaced, which is cheaper to read than a list."""
    step = frames[1] - frames[0] if len(frames) > 1 else 1
    evenly = range(frames[0], frames[-1] + 1, step)
    return evenly if list(evenly) == list(frames) else frames


def _stored(read: StoredTokens | None, buffer: Tensor) -> Stored | None:
    """What was read into `buffer`, as views of that very tensor: a copy to a GPU then knows whose
    memory it is."""
    if read is None:
        return None
    return Stored(
        values=_within(buffer, read.values),
        scale=None if read.scale is None else _within(buffer, read.scale),
        channel=None if read.channel is None else torch.from_numpy(read.channel),
    )


def _within(buffer: Tensor, part: NDArray[Any]) -> Tensor:
    """The tensor of an array that lies in a buffer uint8 (n,); uint16 is bfloat16."""
    start = part.ctypes.data - buffer.data_ptr()
    own = buffer[start : start + part.nbytes].view(_TORCH_DTYPES[part.dtype.str])
    return own.view(part.shape)


def _unflattened(patch: Stored, grid: tuple[int, int]) -> Stored:
    """(t, H·W, D) as (t, H, W, D)."""
    frames, _, dim = patch.values.shape
    scale = None if patch.scale is None else patch.scale.view(frames, *grid)
    values = patch.values.view(frames, *grid, dim)
    return Stored(values=values, scale=scale, channel=patch.channel)


def _first_token(prefix: Stored) -> Stored:
    """CLS, which comes first: (t, p, D) to (t, 1, D)."""
    scale = None if prefix.scale is None else prefix.scale[:, :1]
    return Stored(values=prefix.values[:, :1], scale=scale, channel=prefix.channel)
