"""Reading frames of one array: parse the shard's index once, then `preadv` into a caller's buffer.

zarr-python costs several times a plain copy for a whole entry and far more for a strided subset; a
shard of uncompressed frames needs none of it. Arrays that some other tool wrote with other codecs
are read through zarr, after the record has said that every object is there and is whole.
No locks, no writes, no state: any number of threads may read.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backing import Backing, ObjectFile, shown
from .errors import DamagedEntryError
from .files import MAX_JSON_BYTES, canonical_json, parse_json
from .layout import (
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    NUMPY_DTYPES,
    ShardIndex,
    array_metadata,
    crc32c,
    decode_index,
    frame_bytes,
)
from .records import ArrayRecord, EntryRecord, shard_path
from .wording import describe_error, visible

_MAX_PARTS = 512  # of one preadv: half of Linux's IOV_MAX
_MAX_BYTES = 1 << 30  # of one preadv: Linux stops at 2 GiB


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """Frames of one shard and the rows of the output they go to."""

    shard: int
    frames: NDArray[np.int64]
    rows: NDArray[np.int64]


def read_frames(
    backing: Backing,
    record: EntryRecord,
    array: str,
    frames: NDArray[np.int64],
    out: NDArray[Any] | None = None,
    *,
    verify: bool = True,
) -> NDArray[Any]:
    """`frames` (t) of a stored array: (t, …) of the stored type.

    out: filled and returned when given, C-contiguous and of that shape and type.
    verify: check each frame's crc32c. DamagedEntryError when anything is missing or torn, before
    any memory is taken for what a record claims and its files do not hold.
    """
    layout = record.arrays[array]
    placements = list(_by_shard(frames, layout.frames_per_shard))
    shards = _prepared(backing, record, array, placements)
    if not _checked(shards, backing, record, array, verify=verify):
        return _read_through_zarr(backing.zarr_folder(record), record, array, frames, out)
    if out is None:
        out = _empty(layout, len(frames))
    rows = out.view(np.uint8).reshape(len(frames), frame_bytes(layout.shape, layout.dtype))
    for placement, shard in zip(placements, shards, strict=True):
        shard.read(placement.frames, rows, placement.rows, verify=verify)
    return out


def require_frames(
    backing: Backing, record: EntryRecord, array: str, frames: NDArray[np.int64]
) -> None:
    """DamagedEntryError unless the files of `frames` (t) are there and hold as much as the record
    says; for whoever takes memory before they are read."""
    placements = list(_by_shard(frames, record.arrays[array].frames_per_shard))
    _checked(_prepared(backing, record, array, placements), backing, record, array, verify=False)


def _prepared(
    backing: Backing, record: EntryRecord, array: str, placements: list[_Placement]
) -> list[_Shard]:
    dims = len(record.arrays[array].shape) - 1
    backing.prepare(record, [shard_path(array, each.shard, dims=dims) for each in placements])
    return [_Shard(backing, record, array, placement.shard) for placement in placements]


def _checked(
    shards: list[_Shard], backing: Backing, record: EntryRecord, array: str, *, verify: bool
) -> bool:
    """Whether the array is plain; DamagedEntryError where a shard is not what the record says."""
    plain = is_plain(backing, record, array)
    for shard in shards:
        if plain:
            shard.check_plain()
        else:
            shard.check_other(verify=verify)
    return plain


def _empty(layout: ArrayRecord, num_frames: int) -> NDArray[Any]:
    return np.empty((num_frames, *layout.shape[1:]), dtype=NUMPY_DTYPES[layout.dtype])


class _Shard:
    """One shard of an array, and how to get frames out of it."""

    def __init__(self, backing: Backing, record: EntryRecord, array: str, shard: int) -> None:
        layout = record.arrays[array]
        self._backing = backing
        self._record = record
        self._path = shard_path(array, shard, dims=len(layout.shape) - 1)
        self._stored = record.objects[self._path]
        self._frame_size = frame_bytes(layout.shape, layout.dtype)
        first = shard * layout.frames_per_shard
        self._num_frames = min(layout.frames_per_shard, layout.shape[0] - first)
        self._index_size = layout.frames_per_shard * INDEX_ENTRY_BYTES + CRC_BYTES

    def check_plain(self) -> None:
        """The object is there, of the recorded size, and has room for its frames."""
        self._backing.require(self._record, self._path)
        least = self._num_frames * (self._frame_size + CRC_BYTES) + self._index_size
        if self._stored.size < least:
            raise DamagedEntryError(
                f"{self._path} of video {self._record.id!r}: {self._stored.size} bytes, too few "
                f"for {self._num_frames} frames"
            )

    def check_other(self, *, verify: bool) -> None:
        """The object is there, of the recorded size; verify: and its bytes are those recorded."""
        self._backing.require(self._record, self._path)
        if verify:
            with self._backing.open(self._record, self._path) as stored:
                stored.require_crc32c(self._stored.crc32c)

    def read(
        self,
        frames: NDArray[np.int64],
        out: NDArray[np.uint8],
        rows: NDArray[np.int64],
        *,
        verify: bool,
    ) -> None:
        """Read `frames` of this shard into out[rows], each (bytes of a frame)."""
        checksums = np.empty((len(frames), CRC_BYTES), dtype=np.uint8)
        with self._backing.open(self._record, self._path) as stored:
            offsets = self._read_index(stored).offsets[frames].astype(np.int64)
            for run in _runs(offsets, self._frame_size + CRC_BYTES):
                parts: list[memoryview] = []
                for i in run:
                    parts += [out[rows[i]].data, checksums[i].data]
                stored.fill(parts, int(offsets[run[0]]))
        if verify:
            for i, row in enumerate(rows):
                if struct.pack("<I", crc32c(out[row])) != checksums[i].tobytes():
                    raise DamagedEntryError(
                        f"{stored.name}: frame {int(frames[i])} of the shard fails its checksum"
                    )

    def _read_index(self, stored: ObjectFile) -> ShardIndex:
        data = bytearray(self._index_size)
        stored.fill([memoryview(data)], self._stored.size - self._index_size)
        return decode_index(
            bytes(data),
            num_frames=self._num_frames,
            expected_size=self._frame_size + CRC_BYTES,
            shard_size=self._stored.size,
            name=stored.name,
        )


def _read_through_zarr(
    folder: Path,
    record: EntryRecord,
    array: str,
    frames: NDArray[np.int64],
    out: NDArray[Any] | None,
) -> NDArray[Any]:
    """The slow path: whatever codecs the array has, through zarr-python."""
    import zarr

    layout = record.arrays[array]
    name = shown(folder / array, record.id)
    try:
        # Version 2 of Zarr knows codecs that unpickle.
        opened = zarr.open_array(folder / array, mode="r", zarr_format=3)
        if (opened.shape, opened.dtype) != (layout.shape, np.dtype(NUMPY_DTYPES[layout.dtype])):
            raise DamagedEntryError(
                f"{name}: is {opened.dtype} {opened.shape}, but the record says "
                f"{layout.dtype} {layout.shape}"
            )
        out = _empty(layout, len(frames)) if out is None else out
        out[...] = opened.oindex[frames]
        return out
    except (DamagedEntryError, MemoryError):
        raise
    except Exception as error:  # each codec has exceptions of its own
        raise DamagedEntryError(
            f"{name}: zarr cannot read it ({visible(describe_error(error))})"
        ) from error


def is_plain(backing: Backing, record: EntryRecord, array: str) -> bool:
    """Is the array laid out as `layout.array_metadata` says, so that its bytes can be parsed?"""
    layout = record.arrays[array]
    path = f"{array}/zarr.json"
    stored = record.objects[path]
    if stored.size > MAX_JSON_BYTES:
        raise DamagedEntryError(
            f"{path} of video {record.id!r}: {stored.size} bytes of JSON, expected at most "
            f"{MAX_JSON_BYTES}"
        )
    with backing.open(record, path) as opened:
        data = opened.read()
    if data == _plain_metadata(layout.shape, layout.dtype, layout.frames_per_shard):
        return True
    if crc32c(data) != stored.crc32c:
        raise DamagedEntryError(f"{opened.name}: its bytes are not those recorded")
    found = parse_json(data, name=opened.name)
    plain = array_metadata(
        layout.shape, dtype=layout.dtype, frames_per_shard=layout.frames_per_shard, attributes={}
    )
    same = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "codecs")
    return all(found.get(field) == plain[field] for field in same)


@functools.lru_cache(maxsize=1024)
def _plain_metadata(shape: tuple[int, ...], dtype: str, frames_per_shard: int) -> bytes:
    """`zarr.json` as the writer writes it, for a comparison without parsing."""
    return canonical_json(
        array_metadata(shape, dtype=dtype, frames_per_shard=frames_per_shard, attributes={})
    )


def _by_shard(frames: NDArray[np.int64], frames_per_shard: int) -> Iterator[_Placement]:
    shards = frames // frames_per_shard
    for shard in np.unique(shards):
        rows = np.flatnonzero(shards == shard)
        yield _Placement(shard=int(shard), frames=frames[rows] % frames_per_shard, rows=rows)


def _runs(offsets: NDArray[np.int64], step: int) -> Iterator[range]:
    """Split positions into runs that lie one after another in the file and fit one preadv."""
    longest = max(1, min(_MAX_PARTS // 2, _MAX_BYTES // step))
    start = 0
    for i in range(1, len(offsets) + 1):
        broken = i == len(offsets) or offsets[i] != offsets[i - 1] + step
        if broken or i - start == longest:
            yield range(start, i)
            start = i
