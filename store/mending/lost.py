"""What a damaged cache still knows of what it lost: records, ids, metadata.

Everything here is a guess that the caller must check against bytes before it is believed: a record
counts when all that it lists is sound, metadata when it has the recorded checksum. Writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from ..cache import Cache
from ..catalog import CATALOG, MAX_CATALOG_BYTES, parse_catalog
from ..errors import CacheFormatError
from ..files import canonical_json, link_above, parse_json, read_json_bytes, read_sealed, unseal
from ..keys import entry_key, fan
from ..layout import array_metadata, crc32c
from ..records import EntryRecord
from ..verify import record_files
from ..writer import entry_metadata


def known_records(cache: Cache) -> dict[str, list[EntryRecord]]:
    """By key, the records that stand under another's name, and those of the catalog."""
    found: dict[str, list[EntryRecord]] = {}
    for path in record_files(cache):
        if (record := stray_record(cache, path)) is not None:
            found.setdefault(record.key, []).append(record)
    path = cache.path / CATALOG
    try:
        rows, _ = parse_catalog(read_json_bytes(path, max_bytes=MAX_CATALOG_BYTES), name=str(path))
    except (CacheFormatError, OSError):
        return found
    for key, row in rows.items():
        record = _readable(cache, row.text, name=f"{path}: {key}")
        if record is not None and record.key == key:
            found.setdefault(key, []).append(record)
    return found


def stray_record(cache: Cache, path: Path) -> EntryRecord | None:
    """The sound record in a file that has another's name; None for anything else."""
    try:
        text = "" if link_above(path, cache.path) else read_json_bytes(path)
    except (CacheFormatError, OSError):
        return None
    record = _readable(cache, text, name=str(path))
    return record if record is not None and record.key != path.stem else None


def _readable(cache: Cache, text: str | bytes, *, name: str) -> EntryRecord | None:
    try:
        return EntryRecord.from_json(unseal(text, name=name), spec=cache.spec, name=name)
    except CacheFormatError:
        return None


def id_of_attempts(cache: Cache, key: str) -> str | None:
    """The id that the attempts under a key give themselves, if it is one of that key."""
    for path in sorted((cache.path / "videos" / fan(key)).glob(f"{key}.*/zarr.json")):
        if link_above(path, cache.path):
            continue
        try:
            attributes = parse_json(read_json_bytes(path), name=str(path)).get("attributes", {})
            entry_id = attributes["vis4mer"]["id"]
            if entry_key(entry_id) == key:
                return str(entry_id)
        except (CacheFormatError, OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return None


def is_sealed(path: Path) -> bool:
    """Whether a file is as somebody sealed it, whatever it says."""
    try:
        read_sealed(path)
    except (CacheFormatError, OSError):
        return False
    return True


def lost_metadata(cache: Cache, record: EntryRecord, path: str) -> bytes | None:
    """The `zarr.json` of an entry or of one of its arrays as its record says it was; None for other
    objects, for those of a pack, which is never written into, and where it is not to be told."""
    if record.pack is not None or path not in record.objects:
        return None
    array, _, rest = path.rpartition("/")
    if path == "zarr.json":
        data = entry_metadata(
            cache.spec, record.id, record.pts_seconds, duration_seconds=record.duration_seconds
        )
    elif rest == "zarr.json" and array in record.arrays:
        layout = record.arrays[array]
        data = canonical_json(
            array_metadata(
                layout.shape,
                dtype=layout.dtype,
                frames_per_shard=layout.frames_per_shard,
                attributes={},
            )
        )
    else:
        return None
    stored = record.objects[path]
    return data if (len(data), crc32c(data)) == (stored.size, stored.crc32c) else None
