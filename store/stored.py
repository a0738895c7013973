"""Frames of an entry as they are stored, put one after another into memory that the caller brings.

Whoever multiplies int8 with its scales on a GPU, or keeps many windows in memory, wants the stored
bytes and not the values made of them: a quarter of float32. Knows nothing of windows and of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backing import Backing
from .layout import NUMPY_DTYPES, frame_bytes
from .quantise import decode_bfloat16, decode_int8
from .reader import read_frames, require_frames
from .records import EntryRecord, frame_cost, stored_arrays
from .spec import CacheSpec
from .views import TokenView

_ALIGNMENT = 64  # bytes: of every array within the memory
_UNSEEN = 1 << 28  # bytes that may be taken for a record's claim before its files are looked at


@dataclass(frozen=True, kw_only=True)
class StoredTokens:
    """values (t, S, D): float16, uint16 of bfloat16, or int8 with scale (t, S) and channel (D,),
    both float32; see `quantise`."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    channel: NDArray[np.float32] | None = None

    def decoded(self) -> NDArray[np.float16] | NDArray[np.float32]:
        """What `Cache.read` gives: float16 (t, S, D) as it is, else float32."""
        if self.scale is not None and self.channel is not None:
            return decode_int8(self.values, self.scale, self.channel)
        return decode_bfloat16(self.values) if self.values.dtype == np.uint16 else self.values


@dataclass(frozen=True, kw_only=True)
class StoredView:
    """What a view of t frames is made of: patch (t, H·W, D) of the stored `grid`, prefix (t, p, D)
    of all prefix tokens; either may be None. num_bytes: token bytes read from the store."""

    patch: StoredTokens | None
    prefix: StoredTokens | None
    grid: tuple[int, int] | None
    num_bytes: int


def view_bytes(record: EntryRecord, spec: CacheSpec, view: TokenView, num_frames: int) -> int:
    """The memory, in bytes, that `read_stored_view` fills for so many frames."""
    return sum(
        _aligned(num_frames * frame_bytes((1, *shape), dtype))
        for array in view.arrays_read(spec, record.token_arrays)
        for shape, dtype in _by_frame(spec, array).values()
    )


def memory_needed(
    backing: Backing,
    record: EntryRecord,
    spec: CacheSpec,
    view: TokenView,
    frames: NDArray[np.int64],
) -> int:
    """`view_bytes` of `frames`; where that is much, DamagedEntryError unless the files hold it."""
    num_bytes = view_bytes(record, spec, view, len(frames))
    if num_bytes > _UNSEEN:
        for array in view.arrays_read(spec, record.token_arrays):
            require_frames(backing, record, array, frames)
    return num_bytes


def read_stored_view(
    backing: Backing,
    record: EntryRecord,
    spec: CacheSpec,
    view: TokenView,
    frames: NDArray[np.int64],
    *,
    out: NDArray[np.uint8],
    verify: bool = True,
) -> StoredView:
    """The arrays of a view, all within `out`, which has at least `view_bytes` bytes.

    The channel scale of int8, one row for an entry, has memory of its own. verify: check every
    frame's crc32c. DamagedEntryError, never zeros for what cannot be read.
    """
    memory = _Memory(out)
    found: dict[str, StoredTokens] = {}
    arrays = view.arrays_read(spec, record.token_arrays)
    for array in arrays:
        parts = {}
        for name, (shape, dtype) in _by_frame(spec, array).items():
            place = memory.array((len(frames), *shape), dtype)
            parts[name] = read_frames(backing, record, name, frames, place, verify=verify)
        channel = None
        if spec.stored_dtype == "int8":
            row = np.zeros(1, dtype=np.int64)
            channel = read_frames(backing, record, f"{array}_channel", row, verify=verify)[0]
        found[array] = StoredTokens(
            values=parts[array], scale=parts.get(f"{array}_scale"), channel=channel
        )
    prefix = found.pop("prefix", None)
    [(array, patch)] = found.items() if found else [("", None)]
    return StoredView(
        patch=patch,
        prefix=prefix,
        grid=None if patch is None else spec.array_grid(array) or view.grid,
        num_bytes=len(frames) * sum(frame_cost(spec, each) for each in arrays),
    )


class _Memory:
    """Bytes that arrays are cut from, one after another."""

    def __init__(self, out: NDArray[np.uint8]) -> None:
        self._out = out
        self._used = 0

    def array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
        if self._used + size > len(self._out):
            raise ValueError(f"out holds {len(self._out)} bytes, which are too few for the view")
        part = self._out[self._used : self._used + size]
        self._used += _aligned(size)
        return part.view(NUMPY_DTYPES[dtype]).reshape(shape)


def _by_frame(spec: CacheSpec, array: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Those of `stored_arrays` that have a row for every frame."""
    stored = stored_arrays(spec, array)
    return {name: layout for name, layout in stored.items() if not name.endswith("_channel")}


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
