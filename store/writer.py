"""Writing one entry: frames in as they come, shards out whole, the record last.

Each attempt has a directory of its own that nothing refers to until its record is created, so a
process killed at any moment leaves an orphan and never a half-written entry. Knows nothing of
videos or backbones.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import quantise
from .errors import CacheFormatError, Vis4merError
from .files import (
    canonical_json,
    fsync_directory,
    make_directory,
    new_file,
    read_sealed,
    storage_errors,
)
from .keys import entry_key, fan
from .layout import (
    CRC_BYTES,
    MAX_SHARD_FRAMES,
    NUMPY_DTYPES,
    Bytes,
    array_metadata,
    crc32c,
    encode_index,
    group_metadata,
)
from .quantise import Floats
from .records import (
    ArrayRecord,
    EntryRecord,
    SourceRecord,
    StoredObject,
    record_path,
    shard_path,
    stored_arrays,
)
from .spec import CacheSpec
from .views import pool_grid


class ShardWriter:
    """One shard file, written beside its name and renamed when it is whole."""

    def __init__(self, path: Path) -> None:
        make_directory(path.parent, durable=False)  # made durable by the commit
        self._path = path
        self._beside = path.with_name(f".{path.name}.tmp")
        self._file: BinaryIO = new_file(self._beside)
        self._sizes: list[int] = []
        self._crc32c = 0

    @property
    def num_frames(self) -> int:
        return len(self._sizes)

    def append(self, frame: Bytes) -> None:
        self._write(frame)
        self._write(struct.pack("<I", crc32c(frame)))
        self._sizes.append(frame.size + CRC_BYTES)

    def close(self, *, capacity: int) -> StoredObject:
        """Write the index, flush to the disk, rename. The object's size and checksum."""
        self._write(encode_index(self._sizes, capacity=capacity))
        self._file.flush()
        os.fsync(self._file.fileno())
        stored = StoredObject(size=self._file.tell(), crc32c=self._crc32c)
        self._file.close()
        self._beside.replace(self._path)
        return stored

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # a full disk may refuse the last flush
            self._file.close()

    def _write(self, data: Bytes | bytes) -> None:
        self._file.write(data if isinstance(data, bytes) else data.data)
        self._crc32c = crc32c(data, self._crc32c)


class ArrayWriter:
    """One Zarr array of an entry, shard after shard."""

    def __init__(self, folder: Path, array: str, frame_shape: tuple[int, ...], dtype: str) -> None:
        self._folder = folder
        self._array = array
        self._frame_shape = frame_shape
        self._dtype = dtype
        self._shard: ShardWriter | None = None
        self._digest = hashlib.sha256()
        self._num_frames = 0
        self.objects: dict[str, StoredObject] = {}

    def append(self, values: NDArray[np.generic]) -> None:
        """Append frames: values (t, *frame_shape) of the stored type."""
        if values.shape[1:] != self._frame_shape:
            raise ValueError(
                f"array {self._array}: frames of shape {values.shape[1:]}, "
                f"expected {self._frame_shape}"
            )
        values = np.ascontiguousarray(values, dtype=NUMPY_DTYPES[self._dtype])
        frames = values.view(np.uint8).reshape(values.shape[0], -1)  # t bytes
        self._digest.update(frames.data)
        for frame in frames:
            self._open_shard().append(frame)
            self._num_frames += 1

    def close(self) -> ArrayRecord:
        """Finish the last shard and write `zarr.json`."""
        frames_per_shard = min(self._num_frames, MAX_SHARD_FRAMES)
        self._close_shard(frames_per_shard)
        shape = (self._num_frames, *self._frame_shape)
        metadata = array_metadata(
            shape, dtype=self._dtype, frames_per_shard=frames_per_shard, attributes={}
        )
        path = f"{self._array}/zarr.json"
        self.objects[path] = write_object(self._folder / path, canonical_json(metadata))
        return ArrayRecord(
            shape=shape,
            dtype=self._dtype,
            frames_per_shard=frames_per_shard,
            sha256=self._digest.hexdigest(),
        )

    def abandon(self) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def _open_shard(self) -> ShardWriter:
        if self._shard is not None and self._shard.num_frames == MAX_SHARD_FRAMES:
            self._close_shard(MAX_SHARD_FRAMES)
        if self._shard is None:
            self._shard = ShardWriter(self._folder / self._shard_path())
        return self._shard

    def _shard_path(self) -> str:
        shard = self._num_frames // MAX_SHARD_FRAMES
        return shard_path(self._array, shard, dims=len(self._frame_shape))

    def _close_shard(self, capacity: int) -> None:
        if self._shard is None:
            return
        number = (self._num_frames - 1) // MAX_SHARD_FRAMES
        path = shard_path(self._array, number, dims=len(self._frame_shape))
        self.objects[path] = self._shard.close(capacity=capacity)
        self._shard = None


class TokensWriter:
    """The token arrays of an entry in the stored type, each with its scales. Frames of an array are
    appended in pieces; int8 takes the first piece for its channel scale. quantising: entered while
    values are brought to the stored type, for whoever times that."""

    quantising: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext

    def __init__(self, folder: Path, spec: CacheSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._arrays: dict[str, ArrayWriter] = {}
        self._channels: dict[str, NDArray[np.float32]] = {}

    def append(self, array: str, values: Floats) -> None:
        """values: (t, S, D). Vis4merError for what the stored type cannot hold."""
        dtype = self._spec.stored_dtype
        if dtype == "float16":
            with self.quantising():
                halves = quantise.encode_float16(values)
            self._array(array).append(halves)
        elif dtype == "bfloat16":
            with self.quantising():
                bits = quantise.encode_bfloat16(values)
            self._array(array).append(bits)
        else:
            if array not in self._channels:
                self._channels[array] = quantise.channel_scale(values)
                self._array(array, "_channel").append(self._channels[array][None])
            with self.quantising():
                q, scale = quantise.encode_int8(values, self._channels[array])
            self._array(array).append(q)
            self._array(array, "_scale").append(scale)

    def close(self) -> tuple[dict[str, ArrayRecord], dict[str, StoredObject]]:
        """Finish all arrays: their records, and their objects by path."""
        records = {name: array.close() for name, array in self._arrays.items()}
        objects: dict[str, StoredObject] = {}
        for array in self._arrays.values():
            objects.update(array.objects)
        return records, objects

    def abandon(self) -> None:
        for array in self._arrays.values():
            array.abandon()

    def _array(self, array: str, suffix: str = "") -> ArrayWriter:
        name = array + suffix
        if name not in self._arrays:
            frame_shape, dtype = stored_arrays(self._spec, array)[name]
            self._arrays[name] = ArrayWriter(self._folder, name, frame_shape, dtype)
        return self._arrays[name]


class EntryWriter:
    """One attempt at one entry. A context manager: leaving it without `commit` removes the attempt.

    `append` any number of times, then `commit` once. `publish` makes the record visible and gives
    back the one that stands, which is another writer's when that was faster.
    """

    def __init__(
        self,
        root: Path,
        entry_id: str,
        *,
        spec: CacheSpec,
        source: SourceRecord,
        publish: Callable[[EntryRecord], EntryRecord],
    ) -> None:
        self._spec = spec
        self._id = entry_id
        self._source = source
        self._publish = publish
        self._attempt = secrets.token_hex(6)
        key = entry_key(entry_id)
        self._folder = root / "videos" / fan(key) / f"{key}.{self._attempt}"
        self._record_path = record_path(root, key)
        self._tokens = TokensWriter(self._folder, spec)
        self._pts: list[float] = []

    def __enter__(self) -> EntryWriter:
        with storage_errors(self._folder):
            make_directory(self._folder.parent)
            make_directory(self._folder, durable=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tokens.abandon()
        if not is_committed(self._record_path, self._attempt):
            shutil.rmtree(self._folder, ignore_errors=True)

    def time_quantising(
        self, entered: Callable[[], contextlib.AbstractContextManager[object]]
    ) -> None:
        """Enter this while values are brought to the stored type."""
        self._tokens.quantising = entered

    @property
    def attempt(self) -> str:
        """Of the record that `commit` makes."""
        return self._attempt

    @property
    def num_frames(self) -> int:
        return len(self._pts)

    def append(self, tokens: Mapping[str, Floats], pts_seconds: Sequence[float]) -> None:
        """Append t frames: tokens["patch"] (t, h·w, D) and ["prefix"] (t, p, D) of float16 or
        float32, pts_seconds (t). Pooled copies are made here."""
        if not np.isfinite(pts_seconds).all():
            raise Vis4merError(f"video {self._id!r}: a frame's time is not a finite number")
        if not len(pts_seconds):
            return
        native = {name: tokens[name] for name in self._spec.arrays if not name.startswith("grid")}
        for array in self._spec.arrays:
            values = native.get(array)
            if values is None:
                pooled = self._spec.array_grid(array) or (1, 1)
                values = pool_grid(tokens["patch"], self._spec.grid, pooled)
            if len(values) != len(pts_seconds):
                raise ValueError(f"{array}: {len(values)} frames, {len(pts_seconds)} timestamps")
            with storage_errors(self._folder):
                self._tokens.append(array, values)
        self._pts.extend(round(float(pts), 6) for pts in pts_seconds)

    def commit(
        self,
        *,
        duration_seconds: float,
        damaged_frames: int = 0,
        provenance: Mapping[str, str] | None = None,
    ) -> EntryRecord:
        """Make the entry exist. The record that stands afterwards: ours, or a faster writer's."""
        if not self._pts:
            raise ValueError(f"entry {self._id!r} has no frames")
        if not math.isfinite(duration_seconds):
            raise Vis4merError(f"video {self._id!r}: duration {duration_seconds} is no time")
        with storage_errors(self._folder):
            arrays, objects = self._tokens.close()
            objects["zarr.json"] = self._write_group(duration_seconds)
            sync_directories(self._folder)
        record = EntryRecord(
            id=self._id,
            attempt=self._attempt,
            num_frames=len(self._pts),
            pts_seconds=tuple(self._pts),
            duration_seconds=round(duration_seconds, 6),
            arrays=arrays,
            objects=objects,
            source=self._source,
            damaged_frames=damaged_frames,
            provenance=dict(provenance or {}),
        )
        return self._publish(record)

    def _write_group(self, duration_seconds: float) -> StoredObject:
        """The entry's group, so that a plain Zarr reader finds the id and the timestamps."""
        data = entry_metadata(
            self._spec, self._id, self._pts, duration_seconds=round(duration_seconds, 6)
        )
        return write_object(self._folder / "zarr.json", data)


def entry_metadata(
    spec: CacheSpec, entry_id: str, pts_seconds: Sequence[float], *, duration_seconds: float
) -> bytes:
    """`zarr.json` of an entry's group."""
    about = {
        "id": entry_id,
        "pts_seconds": list(pts_seconds),
        "duration_seconds": duration_seconds,
        "sampling": spec.sampling.to_json(),
        "stored_dtype": spec.stored_dtype,
        "grid": list(spec.grid),
    }
    return canonical_json(group_metadata({"vis4mer": about}))


def write_object(path: Path, data: bytes) -> StoredObject:
    """Write and flush a small object of an attempt (nobody refers to it yet)."""
    make_directory(path.parent, durable=False)
    with new_file(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return StoredObject(size=len(data), crc32c=crc32c(data))


def sync_directories(attempt: Path) -> None:
    """Make every name in an attempt durable, and its own."""
    for folder, _, _ in os.walk(attempt):
        fsync_directory(Path(folder))
    fsync_directory(attempt.parent)


def is_committed(record: Path, attempt: str) -> bool:
    """Does the record name this attempt? The disk is asked, for a commit may have been interrupted
    on either side of the moment at which the record appeared."""
    try:
        return bool(read_sealed(record).get("attempt") == attempt)
    except FileNotFoundError:
        return False
    except (CacheFormatError, OSError):  # unclear: `gc` removes it later if nothing names it
        return True
