"""Reading frames of one array: parse the shard's index once, then `preadv` into a caller's buffer.

zarr-python costs several times a plain copy for a whole entry and far more for a strided subset; a
shard of uncompressed frames needs none of it. Arrays that some other tool wrote with other codecs
are read through zarr (`read_through_zarr`), after the record has said that every object is there.
No locks, no writes, no state: any number of threads may read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import DamagedEntryError
from .files import parse_json, read_json_bytes
from .layout import (
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    ShardIndex,
    array_metadata,
    crc32c,
    decode_index,
    frame_bytes,
)
from .records import ArrayRecord, EntryRecord, shard_path

_MAX_PARTS = 512  # of one preadv: half of Linux's IOV_MAX
_MAX_BYTES = 1 << 30  # of one preadv: Linux stops at 2 GiB


@dataclass(frozen=True, kw_only=True)
class _Placement:
    """Frames of one shard and the rows of the output they go to."""

    shard: int
    frames: NDArray[np.int64]
    rows: NDArray[np.int64]


def read_frames(
    root: Path,
    record: EntryRecord,
    array: str,
    frames: NDArray[np.int64],
    out: NDArray[np.generic],
    *,
    verify: bool = True,
) -> None:
    """Fill out (t, …), C-contiguous and of the stored type, with `frames` (t) of a stored array.

    verify: check each frame's crc32c. DamagedEntryError when anything is missing or torn.
    """
    layout = record.arrays[array]
    folder = root / record.folder
    if not _is_plain(folder, record, array, layout):
        read_through_zarr(folder, record, array, frames, out)
        return
    rows = out.view(np.uint8).reshape(len(frames), -1)  # t bytes
    for placement in _by_shard(frames, layout.frames_per_shard):
        path = shard_path(array, placement.shard, dims=len(layout.shape) - 1)
        with _Shard(folder, path, record, layout, placement.shard) as shard:
            shard.read(placement.frames, rows, placement.rows, verify=verify)


class _Shard:
    """One open shard file and its checked index."""

    def __init__(
        self, folder: Path, path: str, record: EntryRecord, layout: ArrayRecord, shard: int
    ) -> None:
        self._path = folder / path
        self._name = f"{self._path} (video {record.id!r})"
        self._expected_size = record.objects[path].size
        self._frame_size = frame_bytes(layout.shape, layout.dtype)
        first = shard * layout.frames_per_shard
        self._num_frames = min(layout.frames_per_shard, layout.shape[0] - first)
        self._capacity = layout.frames_per_shard

    def __enter__(self) -> _Shard:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise DamagedEntryError(
                f"{self._name}: cannot be opened ({error.strerror}); "
                "`vis4mer cache verify` lists what is damaged"
            ) from error
        try:
            self._index = self._read_index()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

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
        offsets = self._index.offsets[frames].astype(np.int64)
        for run in _runs(offsets, self._frame_size + CRC_BYTES):
            parts: list[memoryview] = []
            for i in run:
                parts += [out[rows[i]].data, checksums[i].data]
            self._preadv(parts, int(offsets[run[0]]), len(run))
        if verify:
            for i, row in enumerate(rows):
                if struct.pack("<I", crc32c(out[row])) != checksums[i].tobytes():
                    raise DamagedEntryError(
                        f"{self._name}: frame {int(frames[i])} of the shard fails its checksum"
                    )

    def _preadv(self, parts: list[memoryview], offset: int, num_frames: int) -> None:
        wanted = num_frames * (self._frame_size + CRC_BYTES)
        if os.preadv(self._fd, parts, offset) != wanted:
            raise DamagedEntryError(f"{self._name}: file ends within its frames")

    def _read_index(self) -> ShardIndex:
        size = os.fstat(self._fd).st_size
        index_size = self._capacity * INDEX_ENTRY_BYTES + CRC_BYTES
        if size != self._expected_size or size < index_size:
            raise DamagedEntryError(
                f"{self._name}: {size} bytes, but the record says {self._expected_size}; "
                "the file is torn"
            )
        data = os.pread(self._fd, index_size, size - index_size)
        return decode_index(
            data,
            num_frames=self._num_frames,
            expected_size=self._frame_size + CRC_BYTES,
            shard_size=size,
            name=self._name,
        )


def read_through_zarr(
    folder: Path,
    record: EntryRecord,
    array: str,
    frames: NDArray[np.int64],
    out: NDArray[np.generic],
) -> None:
    """The plain path: whatever codecs the array has, through zarr-python. Slow and always right."""
    import zarr

    check_objects(folder, record, array)
    name = f"{folder / array} (video {record.id!r})"
    try:
        opened = zarr.open_array(folder / array, mode="r")
        if opened.shape != record.arrays[array].shape:
            raise DamagedEntryError(
                f"{name}: shape {opened.shape}, but the record says {record.arrays[array].shape}"
            )
        out[...] = opened.oindex[frames]
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise DamagedEntryError(f"{name}: zarr cannot read it ({error})") from error


def check_objects(folder: Path, record: EntryRecord, array: str | None = None) -> None:
    """Every object of an entry (or of one array) is a plain file of the recorded size."""
    for path, stored in record.objects.items():
        if array is None or path.startswith(f"{array}/"):
            check_object(folder / path, stored.size, record.id)


def check_object(path: Path, expected_size: int, entry_id: str) -> None:
    """Raise DamagedEntryError unless `path` is a plain file of `expected_size` bytes."""
    if path.is_symlink() or not path.is_file():
        raise DamagedEntryError(f"{path} (video {entry_id!r}): missing, or not a plain file")
    if (size := path.stat().st_size) != expected_size:
        raise DamagedEntryError(
            f"{path} (video {entry_id!r}): {size} bytes, but the record says {expected_size}; "
            "the file is torn"
        )


def _is_plain(folder: Path, record: EntryRecord, array: str, layout: ArrayRecord) -> bool:
    """Is the array laid out as `layout.array_metadata` says, so that its bytes can be parsed?"""
    path = folder / array / "zarr.json"
    try:
        found = parse_json(read_json_bytes(path), name=str(path))
    except OSError as error:
        raise DamagedEntryError(
            f"{path} (video {record.id!r}): cannot be opened ({error.strerror})"
        ) from error
    plain = array_metadata(
        layout.shape, dtype=layout.dtype, frames_per_shard=layout.frames_per_shard, attributes={}
    )
    same = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "codecs")
    return all(found.get(field) == plain[field] for field in same)


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
