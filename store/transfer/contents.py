"""What a cache at a place holds, from as few requests as possible: spec, records, task tables.

`catalog.json` has all records in one object, which is enough for a place that cannot list. Where a
place can, its listing says which records came or changed since the catalog was written, and those
are read one by one. All of it is untrusted until it has been checked here; one record that does not
check spoils no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..catalog import CATALOG, MAX_CATALOG_BYTES, READERS, CatalogRow, parse_catalog, parse_row
from ..directory import parse_spec
from ..errors import CacheFormatError, UsageError
from ..files import MAX_JSON_BYTES, unseal
from ..keys import KEY_PATTERN, fan, is_task_path
from ..records import RECORDS, EntryRecord
from ..remote.place import MAX_WHOLE_BYTES, MissingObjectError, Place, PlacedObject
from ..spec import CacheSpec
from ..tasks import TaskTable
from ..wording import first_line

_TASKS = "tasks"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A cache at `place` at one moment. rows: its records by key, sealed. tasks: references.
    damaged: what is wrong with records that say no id."""

    place: Place
    spec: CacheSpec
    rows: Mapping[str, CatalogRow]
    tasks: tuple[str, ...]
    damaged: tuple[str, ...] = ()

    def record(self, key: str) -> EntryRecord:
        """CacheFormatError for a record that does not check."""
        return self._parsed(key, self.rows[key].text)

    def fresh_record(self, key: str) -> EntryRecord:
        """The record that stands there now, whatever the catalog says."""
        return self._parsed(key, read_bounded(self.place, record_key(key)))

    def _parsed(self, key: str, data: bytes | str) -> EntryRecord:
        name = f"{self.place.url}/{record_key(key)}"
        record = EntryRecord.from_json(unseal(data, name=name), spec=self.spec, name=name)
        if record.key != key:
            raise CacheFormatError(f"{name}: is the record of another video, {record.id!r}")
        return record

    def table(self, reference: str) -> TaskTable:
        """A task table; CacheFormatError when it is another's or does not check."""
        key = table_key(reference)
        name = f"{self.place.url}/{key}"
        table = TaskTable.from_json(unseal(read_bounded(self.place, key), name=name), name=name)
        if table.reference != reference:
            raise CacheFormatError(f"{name}: is task {table.reference!r}, expected {reference!r}")
        return table


def read_contents(place: Place) -> Contents:
    """What the cache at `place` holds. UsageError when no cache is there."""
    found = find_contents(place)
    if found is None:
        raise UsageError(
            f"{place.url} holds no feature cache (there is no zarr.json); check the URL and your "
            "credentials, or `vis4mer cache push` one there"
        )
    return found


def find_contents(place: Place) -> Contents | None:
    """`read_contents`, or None when no cache is there."""
    try:
        spec = parse_spec(read_bounded(place, "zarr.json"), name=f"{place.url}/zarr.json")
    except MissingObjectError:
        return None
    rows, tasks = _catalog(place)
    damaged: tuple[str, ...] = ()
    if place.can_list:
        rows, damaged = _current_rows(place, rows)
        tasks = tuple(sorted(_listed_tables(place)))
    return Contents(place=place, spec=spec, rows=rows, tasks=tasks, damaged=damaged)


def record_key(key: str) -> str:
    """Where the record of an entry stands in a cache."""
    return f"{RECORDS}/{fan(key)}/{key}.json"


def table_key(reference: str) -> str:
    """Where a task table stands in a cache."""
    return f"{_TASKS}/{reference}.json"


def read_bounded(place: Place, key: str, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """A JSON object; CacheFormatError when it is larger than any we write."""
    if max_bytes <= MAX_WHOLE_BYTES:  # which the place itself looks to, in one request
        return place.read(key)
    size = place.size(key)
    if size is None:
        raise MissingObjectError(f"{place.url}/{key}: not there")
    if size > max_bytes:
        raise CacheFormatError(
            f"{place.url}/{key}: {size} bytes of JSON, expected at most {max_bytes}"
        )
    return place.read(key, length=size)


def _catalog(place: Place) -> tuple[dict[str, CatalogRow], tuple[str, ...]]:
    """Rows and task references; none of either without a catalog that checks (it is derived)."""
    name = f"{place.url}/{CATALOG}"
    try:
        data = read_bounded(place, CATALOG, max_bytes=MAX_CATALOG_BYTES)
        return parse_catalog(data, name=name)
    except (MissingObjectError, CacheFormatError) as error:
        if place.can_list:
            return {}, ()
        raise CacheFormatError(
            f"{name}: needed, because this place cannot list what it holds, but "
            f"{'it is missing' if isinstance(error, MissingObjectError) else 'it does not check'}; "
            "`vis4mer cache push` and `extract` write one"
        ) from error


def _current_rows(
    place: Place, known: Mapping[str, CatalogRow]
) -> tuple[dict[str, CatalogRow], tuple[str, ...]]:
    """A row for every record that is listed, and what is wrong with those that give none; what the
    catalog lacks is read."""
    listed = dict(_listed_records(place))
    rows = {
        key: known[key]
        for key, found in listed.items()
        if key in known and _is_current(known[key], found)
    }
    damaged = []
    lacking = [key for key in listed if key not in rows]
    with ThreadPoolExecutor(READERS) as readers:
        for key, row in zip(
            lacking, readers.map(lambda key: _read_row(place, listed[key]), lacking), strict=True
        ):
            if isinstance(row, CatalogRow):
                rows[key] = replace(row, mtime_ns=listed[key].changed_ns or 0)
            elif row is not None:
                damaged.append(first_line(row))
    return rows, tuple(damaged)


def _is_current(row: CatalogRow, found: PlacedObject) -> bool:
    """A listing without times is believed: a push takes what it replaces out of the catalog
    first."""
    whole_seconds = row.mtime_ns // 10**9 * 10**9  # all that some file servers tell
    return row.size == found.size and found.changed_ns in (None, row.mtime_ns, whole_seconds)


def _read_row(place: Place, found: PlacedObject) -> CatalogRow | CacheFormatError | None:
    """A record's row; what is wrong with it; None for one that was removed a moment ago."""
    name, key = f"{place.url}/{found.key}", found.key.rpartition("/")[2].removesuffix(".json")
    if found.size > MAX_JSON_BYTES:
        return CacheFormatError(f"{name}: {found.size} bytes of JSON, at most {MAX_JSON_BYTES}")
    try:
        return parse_row(key, read_bounded(place, found.key), name=name)
    except MissingObjectError:
        return None
    except CacheFormatError as error:
        return error


def _listed_records(place: Place) -> Iterator[tuple[str, PlacedObject]]:
    """Every record by its key; foreign names are passed by."""
    for found in place.list(f"{RECORDS}/"):
        key = found.key.rpartition("/")[2].removesuffix(".json")
        if KEY_PATTERN.fullmatch(key) and found.key == record_key(key):
            yield key, found


def _listed_tables(place: Place) -> Iterator[str]:
    for found in place.list(f"{_TASKS}/"):
        reference = found.key.removeprefix(f"{_TASKS}/").removesuffix(".json")
        if found.key == table_key(reference) and is_task_path(reference):
            yield reference
