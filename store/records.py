"""Commit records: the presence of `records/<fan>/<key>.json` *is* the existence of an entry.

Zarr reads a missing chunk as zeros without a word; only the record says what must be there: every
object with its size and crc32c, every array with its shape, type and the SHA-256 of its values.
Records come from shared caches and are untrusted: each field is checked when it is read.

A record with a field that this version does not know is refused, not read without it: the field may
say where the bytes lie, as `pack` does. What only adds to the story has a room: `provenance`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from . import fields as f
from .errors import CacheFormatError, UsageError
from .keys import ATTEMPT_PATTERN, check_id, entry_key, fan
from .layout import frame_bytes
from .spec import CacheSpec
from .wording import some_names

RECORDS = "records"
_MOST_FRAMES_PER_SHARD = 1 << 24  # a year at one frame every two seconds
_OLDEST_NS = -(1 << 63)  # a file's time may lie before 1970
OBJECT_PATTERN = re.compile(r"(?:[a-z0-9_]{1,32}/)?(?:zarr\.json|c/\d{1,9}(?:/0){1,2})")
_ARRAY_PATTERN = re.compile(r"[a-z0-9_]{1,32}")
PACKS = "packs"
PACK_PATTERN = re.compile(r"[0-9a-f]{32}\.pack")
_LARGEST_PACK = 1 << 53  # bytes: every JSON parser holds it exactly
_SCALES = ("_scale", "_channel")  # endings of what int8 stores beside tokens


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """The video file an entry was made from. `name` is its path as given, for show only: bytes
    that are no Unicode are escaped in it."""

    name: str
    size: int
    mtime_ns: int
    sha256: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.encode(errors="backslashreplace").decode())


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One file of an entry: its size in bytes and the crc32c of all of them."""

    size: int
    crc32c: int


@dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """One array: Zarr shape (T, S, D) or (T, S), Zarr data type, frames in a shard, and the
    SHA-256 of all stored values in frame order, whatever the sharding."""

    shape: tuple[int, ...]
    dtype: str
    frames_per_shard: int
    sha256: str

    @property
    def num_shards(self) -> int:
        return -(-self.shape[0] // self.frames_per_shard)


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    """Where the objects of a packed entry lie: in the file `packs/<name>`, each from its offset in
    bytes on. `offsets` has a value for every object of the record."""

    name: str
    offsets: Mapping[str, int]

    @property
    def path(self) -> str:
        """The pack's file, relative to the cache."""
        return f"{PACKS}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class EntryRecord:
    """Everything that one entry is, apart from its tokens. pack: None while each object is a file
    of its own."""

    id: str
    attempt: str
    num_frames: int
    pts_seconds: tuple[float, ...]
    duration_seconds: float
    arrays: Mapping[str, ArrayRecord]
    objects: Mapping[str, StoredObject]
    source: SourceRecord
    damaged_frames: int
    provenance: Mapping[str, str]
    pack: PackRecord | None = None

    @cached_property
    def key(self) -> str:
        return entry_key(self.id)

    @cached_property
    def folder(self) -> str:
        """Directory of the committed attempt, relative to the cache; a packed one has none."""
        return f"videos/{fan(self.key)}/{self.key}.{self.attempt}"

    @cached_property
    def token_arrays(self) -> tuple[str, ...]:
        """The arrays that hold tokens, not the scales beside them: patch, prefix, pooled copies."""
        names = [array for array in self.arrays if not array.endswith(_SCALES)]
        return tuple(sorted(names, key=lambda name: (name.startswith("grid"), name)))

    @property
    def num_bytes(self) -> int:
        return sum(stored.size for stored in self.objects.values())

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        if self.pack is None:  # as every record was before there were packs
            del data["pack"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, spec: CacheSpec, name: str) -> EntryRecord:
        """Read an untrusted record and check it against the spec of its cache."""
        _refuse_unknown(data, name)
        record = cls(
            id=f.text(data, "id", name=name),
            attempt=f.text(data, "attempt", name=name),
            num_frames=f.integer(data, "num_frames", name=name, minimum=1),
            pts_seconds=f.numbers(data, "pts_seconds", name=name),
            duration_seconds=f.number(data, "duration_seconds", name=name),
            arrays={
                array: _array(values, array, name)
                for array, values in f.mapping(data, "arrays", name=name).items()
            },
            objects={
                path: _object(values, path, name)
                for path, values in f.mapping(data, "objects", name=name).items()
            },
            source=_source(f.mapping(data, "source", name=name), f"{name}: source"),
            damaged_frames=f.integer(data, "damaged_frames", name=name),
            provenance=_provenance(f.mapping(data, "provenance", name=name), name),
            pack=_pack(data, name),
        )
        _check(record, spec, name)
        return record


_KNOWN_FIELDS = {field.name for field in fields(EntryRecord)} | {"checksum"}


def _refuse_unknown(data: Mapping[str, Any], name: str) -> None:
    unknown = sorted(set(data) - _KNOWN_FIELDS)
    if unknown:
        raise CacheFormatError(
            f"{name}: written by a newer version (unknown fields {some_names(unknown)}), "
            "which may keep its bytes elsewhere; upgrade vis4mer"
        )


def stored_arrays(spec: CacheSpec, array: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """The Zarr arrays that hold one token array: name → (shape of a frame, Zarr data type).

    bfloat16 is stored as uint16. int8 values are q · token scale (S) · channel scale (D), the
    latter one row for the whole entry.
    """
    tokens = spec.tokens_per_frame(array)
    values = {"float16": "float16", "bfloat16": "uint16", "int8": "int8"}[spec.stored_dtype]
    stored: dict[str, tuple[tuple[int, ...], str]] = {array: ((tokens, spec.dim), values)}
    if spec.stored_dtype == "int8":
        stored[f"{array}_scale"] = ((tokens,), "float32")
        stored[f"{array}_channel"] = ((spec.dim,), "float32")
    return stored


def frame_cost(spec: CacheSpec, array: str) -> int:
    """Stored bytes of one frame of a token array, scales included, checksums not."""
    return sum(
        frame_bytes((1, *shape), dtype)
        for name, (shape, dtype) in stored_arrays(spec, array).items()
        if not name.endswith("_channel")
    )


def token_cost(spec: CacheSpec) -> int:
    """Stored bytes of one token, its scale included."""
    return frame_cost(spec, "patch") // spec.tokens_per_frame("patch")


def _check(record: EntryRecord, spec: CacheSpec, name: str) -> None:
    """Shapes follow from the spec; a record that claims others is refused before allocation."""
    try:
        check_id(record.id)
    except UsageError as error:
        raise CacheFormatError(f"{name}: {error}") from error
    if not ATTEMPT_PATTERN.fullmatch(record.attempt):
        raise CacheFormatError(f"{name}: attempt {record.attempt!r:.80}, expected 12 hex digits")
    if len(record.pts_seconds) != record.num_frames:
        raise CacheFormatError(
            f"{name}: {len(record.pts_seconds)} timestamps for {record.num_frames} frames"
        )
    expected = {
        stored: layout
        for array in record.token_arrays
        if array in spec.arrays or _is_pooled_copy(spec, array)
        for stored, layout in stored_arrays(spec, array).items()
    }
    if set(record.arrays) != set(expected) or not expected:
        raise CacheFormatError(
            f"{name}: arrays {sorted(record.arrays)!s:.200}, expected "
            f"{sorted(expected) or spec.arrays!s:.200}"
        )
    for array, (frame_shape, dtype) in expected.items():
        found = record.arrays[array]
        frames = 1 if array.endswith("_channel") else record.num_frames
        if (found.shape, found.dtype) != ((frames, *frame_shape), dtype):
            raise CacheFormatError(
                f"{name}: array {array} is {found.dtype!r:.80} {found.shape}, "
                f"expected {dtype} {(frames, *frame_shape)}"
            )
        for shard in range(found.num_shards):
            if shard_path(array, shard, dims=len(frame_shape)) not in record.objects:
                raise CacheFormatError(f"{name}: array {array} lists no object for shard {shard}")
    for path in ("zarr.json", *(f"{array}/zarr.json" for array in expected)):
        if path not in record.objects:
            raise CacheFormatError(f"{name}: lists no object {path}")
    if record.pack is not None:
        _check_offsets(record.pack.offsets, record.objects, name)


def _check_offsets(
    offsets: Mapping[str, int], objects: Mapping[str, StoredObject], name: str
) -> None:
    """Each object has bytes of its own."""
    if offsets.keys() != objects.keys():
        odd = sorted(offsets.keys() ^ objects.keys())[0]
        raise CacheFormatError(f"{name}: object {odd[:80]!r} is not both listed and packed")
    for path, after in pairwise(sorted(offsets, key=lambda path: (offsets[path], path))):
        if offsets[path] + objects[path].size > offsets[after]:
            raise CacheFormatError(
                f"{name}: objects {path[:80]!r} and {after[:80]!r} overlap in their pack"
            )


def _is_pooled_copy(spec: CacheSpec, array: str) -> bool:
    """Entries may hold pooled copies that the spec does not list: `pooling` adds them, one entry
    after another, to caches that others are reading."""
    try:
        return array.startswith("grid") and spec.array_grid(array) is not None
    except ValueError:
        return False


def record_path(root: Path, key: str) -> Path:
    """Where the record of a key stands in the cache at `root`."""
    return Path(record_name(root, key))


def record_name(root: Path | str, key: str) -> str:
    """`record_path` as text, ten times as quickly: every record that is read has a name."""
    return f"{root}/{RECORDS}/{fan(key)}/{key}.json"


def shard_path(array: str, shard: int, *, dims: int) -> str:
    """Zarr's default chunk key of one shard, relative to the entry's directory."""
    return f"{array}/c/{shard}" + "/0" * dims


def _array(data: object, array: str, record_name: str) -> ArrayRecord:
    name = f"{record_name}: array {array!r:.80}"
    if not _ARRAY_PATTERN.fullmatch(array):
        raise CacheFormatError(f"{name}: not a name of an array")
    fields = _object_fields(data, name)
    shape = f.integers(fields, "shape", name=name)
    if not 2 <= len(shape) <= 3 or min(shape) < 1:
        raise CacheFormatError(
            f"{name}: shape {reprlib.repr(shape)}, expected two or three sizes of at least 1"
        )
    frames_per_shard = f.integer(fields, "frames_per_shard", name=name, minimum=1)
    if frames_per_shard > _MOST_FRAMES_PER_SHARD:
        raise CacheFormatError(
            f"{name}: {frames_per_shard} frames in a shard, "
            f"expected at most {_MOST_FRAMES_PER_SHARD}"
        )
    return ArrayRecord(
        shape=shape,
        dtype=f.text(fields, "dtype", name=name),
        frames_per_shard=frames_per_shard,
        sha256=f.text(fields, "sha256", name=name),
    )


def _object(data: object, path: str, record_name: str) -> StoredObject:
    name = f"{record_name}: object {path!r:.80}"
    if not OBJECT_PATTERN.fullmatch(path):
        raise CacheFormatError(f"{name}: not a path inside an entry")
    fields = _object_fields(data, name)
    return StoredObject(
        size=f.integer(fields, "size", name=name), crc32c=f.integer(fields, "crc32c", name=name)
    )


def _source(data: Mapping[str, Any], name: str) -> SourceRecord:
    return SourceRecord(
        name=f.text(data, "name", name=name),
        size=f.integer(data, "size", name=name),
        mtime_ns=f.integer(data, "mtime_ns", name=name, minimum=_OLDEST_NS),
        sha256=f.text(data, "sha256", name=name),
    )


def _provenance(data: Mapping[str, Any], name: str) -> dict[str, str]:
    return {key: f.text(data, key, name=f"{name}: provenance") for key in data}


def _pack(data: Mapping[str, Any], record_name: str) -> PackRecord | None:
    if "pack" not in data:
        return None
    name = f"{record_name}: pack"
    about = f.mapping(data, "pack", name=record_name)
    pack = f.text(about, "name", name=name)
    if not PACK_PATTERN.fullmatch(pack):
        raise CacheFormatError(f"{name}: name {pack[:80]!r}, expected 32 hex digits and .pack")
    offsets = f.mapping(about, "offsets", name=name)
    for path in offsets:
        f.integer(offsets, path, name=name, maximum=_LARGEST_PACK)
    return PackRecord(name=pack, offsets=offsets)


def _object_fields(data: object, name: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CacheFormatError(f"{name}: expected an object")
    return data
