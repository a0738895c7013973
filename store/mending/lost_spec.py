"""The settings of a cache whose `zarr.json` is lost or torn, from a copy of the same values.

    cache = open_to_repair("lvu.zarr", mirrors=[open_cache("/mnt/copy/lvu.zarr")])

Records do not say what made their values. But they have the SHA-256 of them: where a mirror's
records promise the very same values of the same videos, its settings are those of this cache too.
Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..cache import Cache, open_cache
from ..diff import differing_values
from ..directory import is_sealed_spec, read_spec
from ..errors import CacheFormatError, EntryNotFoundError
from ..files import read_json_bytes
from ..records import RECORDS, EntryRecord
from ..spec import CacheSpec, joined_spec
from ..verify import read_record, record_files
from ..wording import first_line


def open_to_repair(path: str | Path, mirrors: Sequence[Cache]) -> Cache:
    """`open_cache`, also where `zarr.json` is damaged and a mirror shows what it said; `repair`
    writes it then. CacheFormatError where none does, UsageError for what is no directory."""
    try:
        return open_cache(path)
    except CacheFormatError as error:
        root = Path(path)
        if _is_sealed(root):  # of a newer version
            raise
        for mirror in mirrors:
            if (spec := _spec_of(root, mirror)) is not None:
                return Cache(root, spec)
        if mirrors and (root / RECORDS).is_dir():
            raise CacheFormatError(
                f"{first_line(error)} (no cache after --from holds the same values of its videos)"
            ) from error
        raise


def what_is_lost(cache: Cache) -> str | None:
    """What is wrong with `zarr.json` of a cache that is open all the same; None for nothing."""
    try:
        read_spec(cache.path)
    except CacheFormatError as error:
        return None if _is_sealed(cache.path) else first_line(error).partition("; `")[0]
    return None


def _is_sealed(root: Path) -> bool:
    try:
        return is_sealed_spec(read_json_bytes(root / "zarr.json"))
    except (CacheFormatError, OSError):
        return False


def _spec_of(root: Path, mirror: Cache) -> CacheSpec | None:
    """The mirror's spec, with the arrays that are here; None unless every video that both hold has
    the same values, and there is one."""
    ours = list(_readable(Cache(root, mirror.spec)))
    if not any(_agrees(record, mirror) for record in ours):
        return None
    if any(_agrees(record, mirror) is False for record in ours):
        return None
    held = {array for record in ours for array in record.token_arrays}
    known = [array for array in mirror.spec.arrays if array in held]
    listed = known if "patch" in known else sorted(held)
    return joined_spec(None, replace(mirror.spec, arrays=tuple(listed)), mirror.spec)


def _agrees(record: EntryRecord, mirror: Cache) -> bool | None:
    """Whether a mirror promises the values of a record; None where they have no array in common."""
    try:
        theirs = mirror.record(record.id)
    except (CacheFormatError, EntryNotFoundError):
        return None
    if not record.arrays.keys() & theirs.arrays.keys():
        return None
    return not differing_values(record, theirs)


def _readable(cache: Cache) -> Iterator[EntryRecord]:
    for path in record_files(cache):
        try:
            yield read_record(path, cache)
        except (CacheFormatError, FileNotFoundError):
            continue
