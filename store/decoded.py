"""Frames of an entry as numbers: one array of it, or the parts that a token view needs.

    read_tokens(backing, record, spec, "patch", frames)      # float16 (t, h·w, D)

What `Cache.read` and `Cache.read_view` do once they know the record. `stored` gives the same frames
in the stored type. Letters: t frames, S tokens of a frame, h·w patch grid, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import quantise
from .backing import Backing
from .errors import UsageError
from .reader import read_frames
from .records import EntryRecord, frame_cost
from .spec import CacheSpec
from .views import TokenView, pool_grid

Frames = slice | range | Sequence[int] | NDArray[np.integer] | None
Tokens = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ViewTokens:
    """What a view of t frames reads: patch (t, h, w, D), or (t, k, 1, D) of a view that selects k
    patches of a frame, prefix (t, 1, D); either may be None.

    num_bytes: token bytes read from the store.
    """

    patch: Tokens | None
    prefix: Tokens | None
    num_bytes: int


def frame_indices(frames: Frames, record: EntryRecord, *, name: str) -> NDArray[np.int64]:
    """Indices of the frames asked for, each checked to be in [0, num_frames). name: the cache's."""
    every = range(record.num_frames)
    if frames is None or isinstance(frames, slice):
        return np.asarray(every[frames] if frames is not None else every, dtype=np.int64)
    given = np.asarray(frames)
    if given.size and given.dtype.kind not in "iu":  # a mask would be taken for frames 0 and 1
        raise UsageError(f"frames must be whole numbers, got {given.dtype}")
    chosen = given.astype(np.int64)
    if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(every)):
        raise UsageError(
            f"video {record.id!r} in {name} has frames 0 to {len(every) - 1}; "
            f"asked for {chosen.min()} to {chosen.max()}"
            if chosen.ndim == 1
            else f"frames must be one-dimensional, got shape {chosen.shape}"
        )
    return chosen


def read_tokens(
    backing: Backing,
    record: EntryRecord,
    spec: CacheSpec,
    array: str,
    frames: NDArray[np.int64],
    *,
    out: Tokens | None = None,
    verify: bool = True,
) -> Tokens:
    """Frames (t) of a token array: (t, S, D), float16, or float32 from bfloat16 and int8.

    out: filled and returned when given; of that shape and type, or any float type. verify: check
    the crc32c of every frame. UsageError for an array that is not there and for another shape;
    DamagedEntryError, never zeros for what cannot be read.
    """
    if array not in record.token_arrays:
        raise UsageError(
            f"video {record.id!r} in {backing.name} has no array {array!r}, only "
            f"{', '.join(record.token_arrays)}"
        )
    shape = (len(frames), *record.arrays[array].shape[1:])
    if out is not None and out.shape != shape:
        raise UsageError(f"out has shape {out.shape}, expected {shape}")
    stored_as_read = spec.stored_dtype == "float16"
    if out is not None and stored_as_read and out.dtype == np.float16 and out.flags.c_contiguous:
        return read_frames(backing, record, array, frames, out, verify=verify)
    values = _read_decoded(backing, record, spec, array, frames, verify=verify)
    if out is None:
        return values
    np.copyto(out, values, casting="same_kind")
    return out


def _read_decoded(
    backing: Backing,
    record: EntryRecord,
    spec: CacheSpec,
    array: str,
    frames: NDArray[np.int64],
    *,
    verify: bool,
) -> Tokens:
    values = read_frames(backing, record, array, frames, verify=verify)
    if spec.stored_dtype == "bfloat16":
        return quantise.decode_bfloat16(values)
    if spec.stored_dtype == "int8":
        scale = read_frames(backing, record, f"{array}_scale", frames, verify=verify)
        row = np.zeros(1, dtype=np.int64)
        channel = read_frames(backing, record, f"{array}_channel", row, verify=verify)[0]
        return quantise.decode_int8(values, scale, channel)
    return values


def read_view_tokens(
    backing: Backing,
    record: EntryRecord,
    spec: CacheSpec,
    view: TokenView,
    frames: NDArray[np.int64],
    *,
    pool: bool = True,
    verify: bool = True,
) -> ViewTokens:
    """The parts of some frames (t) that a view needs; see `Cache.read_view`."""

    def read(array: str) -> Tokens:
        return read_tokens(backing, record, spec, array, frames, verify=verify)

    prefix = patch = None
    num_bytes = 0
    if view.cls:
        prefix = read("prefix")[:, :1]  # t 1 D
        num_bytes += len(frames) * frame_cost(spec, "prefix")
    if view.grid is not None:
        array = view.stored_array(spec, record.token_arrays)
        tokens = read(array)  # t h·w D
        num_bytes += len(frames) * frame_cost(spec, array)
        grid = spec.array_grid(array) or view.grid
        if pool and grid != view.grid:
            tokens = _pooled(tokens, grid, view.grid)
            grid = view.grid
        if pool and view.selection is not None:
            tokens = _selected(tokens, view, record, frames)
            grid = view.given_grid or grid
        patch = tokens.reshape(len(frames), *grid, tokens.shape[-1])  # t h w D
    return ViewTokens(patch=patch, prefix=prefix, num_bytes=num_bytes)


def _pooled(tokens: Tokens, grid: tuple[int, int], pooled: tuple[int, int]) -> Tokens:
    """Averages of the type that is given: (t, h·w, D) to (t, h'·w', D)."""
    averages = pool_grid(tokens, grid, pooled)
    return averages.astype(np.float16) if tokens.dtype == np.float16 else averages


def _selected(
    tokens: Tokens, view: TokenView, record: EntryRecord, frames: NDArray[np.int64]
) -> Tokens:
    """The patches that a view with a selection keeps: (t, h·w, D) to (t, k, D)."""
    places = view.places(record.id, frames.tolist())
    return tokens if places is None else tokens[np.arange(len(frames))[:, None], places]
