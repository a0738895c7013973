"""How an array lies on disk: Zarr v3 metadata, and the bytes of a shard.

A shard holds up to 256 frames; its inner chunk is one frame. Bytes of a shard of n frames:

    frame 0 | crc32c | frame 1 | crc32c | … | index: n × (offset u64, size u64) | crc32c of index

Any Zarr v3 reader understands it (`sharding_indexed`, inner codecs bytes + crc32c, index at the
end). Knows no files and no records.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from .errors import DamagedEntryError

MAX_SHARD_FRAMES = 256
CRC_BYTES = 4
INDEX_ENTRY_BYTES = 16
MISSING = 2**64 - 1
NUMPY_DTYPES = {"float16": "<f2", "uint16": "<u2", "int8": "|i1", "float32": "<f4"}
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the frames of one shard lie: offsets and sizes in bytes, uint64 (n,)."""

    offsets: NDArray[np.uint64]
    sizes: NDArray[np.uint64]


def crc32c(data: Bytes | bytes | memoryview, previous: int = 0) -> int:
    """CRC-32C of one-dimensional bytes, continuing from `previous`."""
    if isinstance(data, memoryview):  # which the library would have copied
        data = np.frombuffer(data, dtype=np.uint8)
    return int(google_crc32c.extend(previous, data))


def frame_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of one frame of an array of `shape` (T, …), without its checksum."""
    return int(np.prod(shape[1:], dtype=np.int64)) * np.dtype(NUMPY_DTYPES[dtype]).itemsize


def encode_index(sizes: list[int], *, capacity: int) -> bytes:
    """The index of a shard whose frames stand one after another; missing ones are all ones."""
    entries = np.full((capacity, 2), MISSING, dtype="<u8")
    entries[: len(sizes), 1] = sizes
    entries[: len(sizes), 0] = np.concatenate(([0], np.cumsum(sizes[:-1]))) if sizes else 0
    data = entries.tobytes()
    return data + struct.pack("<I", crc32c(data))


def decode_index(
    data: bytes, *, num_frames: int, expected_size: int, shard_size: int, name: str
) -> ShardIndex:
    """Parse an index and check it: sound, complete, and inside its file.

    num_frames: frames that must be there. expected_size: bytes of each, with its checksum.
    """
    body, checksum = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if struct.pack("<I", crc32c(body)) != checksum:
        raise DamagedEntryError(f"{name}: the shard's index fails its checksum")
    entries = np.frombuffer(body, dtype="<u8").reshape(-1, 2)[:num_frames]  # n 2
    offsets, sizes = entries[:, 0], entries[:, 1]
    limit = shard_size - len(data) - expected_size
    if (sizes != expected_size).any() or limit < 0 or (offsets > limit).any():
        bad = int(np.argmax((sizes != expected_size) | (offsets > max(limit, 0))))
        raise DamagedEntryError(f"{name}: frame {bad} of the shard is missing or outside its file")
    return ShardIndex(offsets=offsets, sizes=sizes)


def array_metadata(
    shape: tuple[int, ...], *, dtype: str, frames_per_shard: int, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """`zarr.json` of an array of shape (T, S, D) or (T, S)."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = {"name": "bytes"} if dtype == "int8" else little
    checksum = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [1, *shape[1:]],
        "codecs": [plain, checksum],
        "index_codecs": [little, checksum],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": [frames_per_shard, *shape[1:]]},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.startswith("float") else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
        "dimension_names": ["frame", "token", "channel"][: len(shape)],
    }


def group_metadata(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`zarr.json` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
