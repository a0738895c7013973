"""What entries will take on disk, before there are any: bytes and files.

Arrays are counted exactly, with their checksums, indexes and scales, and so is their metadata.
Records, the catalog and the entries' own groups hold timestamps, names and checksums that nobody
knows yet; stand-ins of the usual length are written out and measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .catalog import catalog_bytes
from .files import canonical_json, parse_json, seal
from .keys import entry_key, fan
from .layout import (
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    MAX_SHARD_FRAMES,
    array_metadata,
    frame_bytes,
    group_metadata,
)
from .records import (
    ArrayRecord,
    EntryRecord,
    SourceRecord,
    StoredObject,
    shard_path,
    stored_arrays,
)
from .spec import CacheSpec
from .tasks import TaskTable

_GROUP = group_metadata({})  # of every folder above the entries
_STEP_FRAMES = 16 * MAX_SHARD_FRAMES
_WRITTEN_OUT_FRAMES = 4 * _STEP_FRAMES  # whole shards; a stated length may be any number
_USUAL_ID = "0IWdfqsImMU"  # as long as YouTube's
_SHA256 = "0" * 64
_CRC32C = 4_000_000_000
_DURATION_SECONDS = 123.456789
_MTIME_NS = 1_700_000_000_123_456_789


@dataclass(frozen=True, kw_only=True)
class StoredSize:
    """Bytes and files. The bytes are those that the files hold, not the blocks a disk gives them.

    array_bytes: of them, those of arrays and their metadata, which are exact.
    """

    num_bytes: int = 0
    array_bytes: int = 0
    num_objects: int = 0

    def __add__(self, other: StoredSize) -> StoredSize:
        return StoredSize(
            num_bytes=self.num_bytes + other.num_bytes,
            array_bytes=self.array_bytes + other.array_bytes,
            num_objects=self.num_objects + other.num_objects,
        )

    def __sub__(self, other: StoredSize) -> StoredSize:
        return self + other.times(-1)

    def times(self, count: int) -> StoredSize:
        """So many of these."""
        return StoredSize(
            num_bytes=self.num_bytes * count,
            array_bytes=self.array_bytes * count,
            num_objects=self.num_objects * count,
        )


def empty_cache_size(spec: CacheSpec, tables: Iterable[TaskTable] = ()) -> StoredSize:
    """A cache without entries: its two groups, an empty catalog, and its task tables."""
    about = parse_json(seal(spec.to_json()), name="spec")
    written = [canonical_json(group_metadata({"vis4mer": about})), canonical_json(_GROUP)]
    written.append(catalog_bytes({}, ()))
    written += [seal(table.to_json()) for table in tables]
    return StoredSize(num_bytes=sum(map(len, written)), num_objects=len(written))


def entries_size(spec: CacheSpec, frames: Mapping[str, int]) -> StoredSize:
    """What entries of these lengths (id → frames) take in a cache of `spec`.

    With their records, their rows in the catalog and the groups of their folders; without the
    cache's own few files, its task tables and failures.
    """
    total = StoredSize()
    for num_frames, count in Counter(frames.values()).items():
        total += entry_size(spec, num_frames).times(count)
    fans = len({fan(entry_key(entry_id)) for entry_id in frames})
    group = len(canonical_json(_GROUP))
    return total + StoredSize(num_bytes=group, num_objects=1).times(fans)


@lru_cache(maxsize=4096)
def entry_size(spec: CacheSpec, num_frames: int) -> StoredSize:
    """One entry: its shards and metadata, its record, and its row in the catalog."""
    if num_frames < 1:
        raise ValueError(f"an entry has at least 1 frame, got {num_frames}")
    steps, rest = divmod(num_frames - _WRITTEN_OUT_FRAMES, _STEP_FRAMES)
    if steps > 0:  # of a longer one every step takes as much as the one before
        longest = entry_size(spec, _WRITTEN_OUT_FRAMES)
        step = longest - entry_size(spec, _WRITTEN_OUT_FRAMES - _STEP_FRAMES)
        return entry_size(spec, _WRITTEN_OUT_FRAMES + rest) + step.times(steps)
    arrays: dict[str, ArrayRecord] = {}
    objects: dict[str, StoredObject] = {}
    for array in spec.arrays:
        for name, (frame_shape, dtype) in stored_arrays(spec, array).items():
            frames = 1 if name.endswith("_channel") else num_frames
            record = ArrayRecord(
                shape=(frames, *frame_shape),
                dtype=dtype,
                frames_per_shard=min(frames, MAX_SHARD_FRAMES),
                sha256=_SHA256,
            )
            arrays[name] = record
            objects |= _array_objects(name, record)
    pts_seconds = _usual_times(spec, num_frames)
    array_bytes = sum(stored.size for stored in objects.values())
    objects["zarr.json"] = _stored(len(_usual_group(spec, pts_seconds)))
    sealed = seal(_usual_record(pts_seconds, arrays, objects).to_json())
    row = [entry_key(_USUAL_ID), _USUAL_ID, len(sealed), _MTIME_NS, sealed.decode()]
    in_catalog = len(canonical_json(row)) + 1
    return StoredSize(
        num_bytes=array_bytes + objects["zarr.json"].size + len(sealed) + in_catalog,
        array_bytes=array_bytes,
        num_objects=len(objects) + 1,
    )


def _array_objects(name: str, record: ArrayRecord) -> dict[str, StoredObject]:
    """The files of one Zarr array, each with its exact size."""
    frames, *frame_shape = record.shape
    bytes_per_frame = frame_bytes(record.shape, record.dtype) + CRC_BYTES
    index_bytes = record.frames_per_shard * INDEX_ENTRY_BYTES + CRC_BYTES
    metadata = array_metadata(
        record.shape, dtype=record.dtype, frames_per_shard=record.frames_per_shard, attributes={}
    )
    objects = {f"{name}/zarr.json": _stored(len(canonical_json(metadata)))}
    for shard in range(record.num_shards):
        held = min(record.frames_per_shard, frames - shard * record.frames_per_shard)
        path = shard_path(name, shard, dims=len(frame_shape))
        objects[path] = _stored(held * bytes_per_frame + index_bytes)
    return objects


def _stored(size: int) -> StoredObject:
    return StoredObject(size=size, crc32c=_CRC32C)


def _usual_times(spec: CacheSpec, num_frames: int) -> list[float]:
    """Timestamps as long in print as those of NTSC video, whose frames fall between the targets."""
    return [round(k / spec.sampling.fps * 1.001, 6) for k in range(num_frames)]


def _usual_group(spec: CacheSpec, pts_seconds: list[float]) -> bytes:
    """As the writer writes it; `test_sizing` compares the two."""
    about = {
        "id": _USUAL_ID,
        "pts_seconds": pts_seconds,
        "duration_seconds": _DURATION_SECONDS,
        "sampling": spec.sampling.to_json(),
        "stored_dtype": spec.stored_dtype,
        "grid": list(spec.grid),
    }
    return canonical_json(group_metadata({"vis4mer": about}))


def _usual_record(
    pts_seconds: list[float],
    arrays: Mapping[str, ArrayRecord],
    objects: Mapping[str, StoredObject],
) -> EntryRecord:
    source = SourceRecord(
        name=f"/data/videos/{_USUAL_ID}.mp4",
        size=20_000_000,
        mtime_ns=_MTIME_NS,
        sha256=_SHA256,
    )
    provenance = {
        "vis4mer": "0.1.0",
        "reader": "pyav 16.0.1",
        "decoder": "libavcodec 62.28.102",
        "torch": "2.9.0+cu128",
        "timm": "1.0.22",
        "weights_sha256": _SHA256,
        "device": "cuda NVIDIA H100 80GB HBM3",
        "cuda": "12.8, cudnn 91002, driver 570.124.06",
        "compute_dtype": "bfloat16",
        "host": "node-001",
        "time": "2026-01-01T00:00:00+00:00",
    }
    return EntryRecord(
        id=_USUAL_ID,
        attempt="0" * 12,
        num_frames=len(pts_seconds),
        pts_seconds=tuple(pts_seconds),
        duration_seconds=_DURATION_SECONDS,
        arrays=arrays,
        objects=objects,
        source=source,
        damaged_frames=0,
        provenance=provenance,
    )
