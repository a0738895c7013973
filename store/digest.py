"""One word for everything that a cache holds: equal digests, equal values.

    digest_cache(open_cache("lvu.zarr")).root        # 64 hex digits, the same for equal caches

Only values count: not when, where or in how many attempts they were made, nor how they lie on the
disk (shards, packs, catalogs). Computed from records alone, whose own hashes `verify --full` checks
against the bytes; reads no tokens.

    times  = SHA-256 of the timestamps, and last the duration, as little-endian float64
    line   = JSON [id, frames, times, {array: [Zarr type, shape, SHA-256 of its values]}] + newline
    root   = SHA-256 of the fingerprint, a newline, and the lines of all entries in order of id

with sorted keys and no spaces. The digest of one array is the same over the entries that have it,
with that array alone in each line: a copy of some arrays shares those digests with the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .cache import Cache
from .files import canonical_json
from .records import EntryRecord
from .spec import CacheSpec
from .tasks import TaskTable

SHOWN_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class CacheDigest:
    """Digests in 64 hex digits: of all values, of each array by its Zarr name (an int8 cache has
    its scales beside the tokens), and of each task table by its reference."""

    fingerprint: str
    num_videos: int
    root: str
    arrays: Mapping[str, str]
    tasks: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def digest_cache(cache: Cache) -> CacheDigest:
    """The digests of a cache. CacheFormatError when a record or a table does not check."""
    records = cache.records(otherwise="no digest can be of all that it holds")
    root, arrays = digest_records(cache.spec, records)
    return CacheDigest(
        fingerprint=cache.spec.fingerprint,
        num_videos=len(records),
        root=root,
        arrays=arrays,
        tasks={reference: digest_table(cache.task(reference)) for reference in cache.tasks()},
    )


def digest_records(spec: CacheSpec, records: Iterable[EntryRecord]) -> tuple[str, dict[str, str]]:
    """The root digest of entries, in whatever order they come, and the digest of each array."""
    begin = f"{spec.fingerprint}\n".encode()
    root = hashlib.sha256(begin)
    arrays: dict[str, Any] = {}
    for record in sorted(records, key=lambda record: record.id):
        held = {
            name: [array.dtype, array.shape, array.sha256] for name, array in record.arrays.items()
        }
        about = [record.id, record.num_frames, digest_times(record)]
        root.update(canonical_json([*about, held]) + b"\n")
        for name, values in held.items():
            one = arrays.setdefault(name, hashlib.sha256(begin))
            one.update(canonical_json([*about, {name: values}]) + b"\n")
    return root.hexdigest(), {name: one.hexdigest() for name, one in sorted(arrays.items())}


def digest_table(table: TaskTable) -> str:
    """SHA-256 of a task table's JSON, its rows in the order of their own JSON."""
    content = table.to_json()
    content["rows"].sort(key=canonical_json)
    return hashlib.sha256(canonical_json(content)).hexdigest()


def digest_times(record: EntryRecord) -> str:
    """SHA-256 of an entry's timestamps and duration. 0.0 and -0.0 are one time."""
    times = np.array([*record.pts_seconds, record.duration_seconds], dtype="<f8") + 0.0  # T + 1
    return hashlib.sha256(times.tobytes()).hexdigest()
