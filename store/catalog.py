"""The catalog: all records in one file, so that a cache of 10,000 entries opens in a moment.

Derived from `records/` and rebuildable at any time; never the truth. A row is used only while the
record file it was made from has the same size and modification time, and that time lies before the
catalog's own (a file written later within the same tick of the clock would look unchanged);
otherwise the file is read. Records stay sealed text until somebody asks for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import fields as f
from .errors import CacheFormatError, UsageError
from .files import parse_json, read_json_bytes, seal, unseal, write_atomic
from .keys import KEY_PATTERN, entry_key, fan, is_task_path
from .records import RECORDS

CATALOG = "catalog.json"
READERS = 8  # threads that read record files
_PORTION = 64  # files that a thread takes at a time
MAX_CATALOG_BYTES = 1 << 30  # 10,000 videos of an hour at 1 fps are 0.4 GB


@dataclass(frozen=True, kw_only=True)
class CatalogRow:
    """A record before it is parsed: `text` is the sealed JSON of the file at that size and time."""

    id: str
    size: int
    mtime_ns: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All records of a moment, by key. `damaged`: what is wrong with those that say no id."""

    rows: dict[str, CatalogRow] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def load_snapshot(root: Path) -> Snapshot:
    """A row for every record under `root`; reads the files that the catalog lacks."""
    known = _read_catalog(root)
    found = list(_scan(root))
    lacking = [each for each in found if not _is_current(known.get(each.key), each.stat)]
    read = _read_rows(lacking)
    snapshot = Snapshot()
    for each in found:
        row = read[each.key] if each.key in read else known[each.key]
        if isinstance(row, CatalogRow):
            snapshot.rows[each.key] = row
        elif isinstance(row, CacheFormatError):
            snapshot.damaged.append(str(row))
    return snapshot


def _is_current(row: CatalogRow | None, stat: os.stat_result) -> bool:
    return row is not None and (row.size, row.mtime_ns) == (stat.st_size, stat.st_mtime_ns)


def save_catalog(root: Path, rows: Mapping[str, CatalogRow], tasks: Sequence[str]) -> None:
    """Write the catalog of the cache at `root`; `catalog_bytes` of it."""
    write_atomic(root / CATALOG, catalog_bytes(rows, tasks))


def catalog_bytes(rows: Mapping[str, CatalogRow], tasks: Sequence[str]) -> bytes:
    """A catalog of these records, and of the task tables, which a reader that cannot list a place
    finds nowhere else."""
    entries = [[key, r.id, r.size, r.mtime_ns, r.text] for key, r in sorted(rows.items())]
    return seal({"entries": entries, "tasks": sorted(tasks)})


def parse_catalog(data: bytes, *, name: str) -> tuple[dict[str, CatalogRow], tuple[str, ...]]:
    """Rows by key and references of task tables. CacheFormatError for anything else."""
    content = unseal(data, name=name)
    rows = {}
    for entry in f.sequence(content, "entries", name=name):
        if not isinstance(entry, list) or len(entry) != 5:
            raise CacheFormatError(f"{name}: an entry is no list of 5 values")
        key, entry_id, size, mtime_ns, text = entry
        rows[key] = _checked(key, entry_id, size, mtime_ns, text, name=name)
    tasks = f.texts(content, "tasks", name=name) if "tasks" in content else ()
    return rows, tuple(reference for reference in tasks if is_task_path(reference))


def parse_row(key: str, data: bytes, *, name: str) -> CatalogRow:
    """The row of a record that was read by itself."""
    entry_id = f.text(parse_json(data, name=name), "id", name=name)
    return _checked(key, entry_id, len(data), 0, data.decode(), name=name)


@dataclass(frozen=True)
class _RecordFile:
    key: str
    path: Path
    stat: os.stat_result


def _scan(root: Path) -> Iterator[_RecordFile]:
    """Every record file. Foreign names and temporary files are passed by."""
    try:
        folders = sorted(os.scandir(root / RECORDS), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for folder in folders:
        if not folder.is_dir(follow_symlinks=False):
            continue
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            key = entry.name.removesuffix(".json")
            if not KEY_PATTERN.fullmatch(key) or fan(key) != folder.name:
                continue
            with contextlib.suppress(FileNotFoundError):  # removed a moment ago
                if entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    yield _RecordFile(key, Path(entry.path), stat)


def list_keys(root: Path) -> set[str]:
    """Keys of all records that are there now, by their names alone: no file is looked at."""
    names = (path.stem for path in (root / RECORDS).glob("*/*.json"))
    return {name for name in names if KEY_PATTERN.fullmatch(name)}


def is_catalog_behind(root: Path) -> bool:
    """Has any folder of records changed since the catalog was written, by the file system's clock?

    What is committed while a catalog is being written may be missed: opening the cache reads it.
    """
    changed = []
    for folder in (root / RECORDS).glob("*/"):
        with contextlib.suppress(FileNotFoundError):  # removed a moment ago
            changed.append(folder.stat().st_mtime_ns)
    try:
        return bool(changed) and (root / CATALOG).stat().st_mtime_ns < max(changed)
    except FileNotFoundError:
        return True


def _read_rows(files: list[_RecordFile]) -> dict[str, CatalogRow | CacheFormatError | None]:
    """`_read_row` of each, by key. Many files at once: a network's delays are waited for once."""
    portions = [files[i : i + _PORTION] for i in range(0, len(files), _PORTION)]
    with ThreadPoolExecutor(READERS) as readers:
        read = readers.map(lambda portion: [_read_row(file) for file in portion], portions)
        rows = [row for portion in read for row in portion]
    return {file.key: row for file, row in zip(files, rows, strict=True)}


def _read_row(file: _RecordFile) -> CatalogRow | CacheFormatError | None:
    """A record's row; what is wrong with it; or None when it was removed a moment ago."""
    name = str(file.path)
    try:
        data = read_json_bytes(file.path)
        entry_id = f.text(parse_json(data, name=name), "id", name=name)
        time_ns = file.stat.st_mtime_ns
        return _checked(file.key, entry_id, len(data), time_ns, data.decode(), name=name)
    except FileNotFoundError:
        return None
    except CacheFormatError as error:
        return error


def _read_catalog(root: Path) -> dict[str, CatalogRow]:
    """The catalog's rows; none when there is no catalog or it does not check (it is derived)."""
    path = root / CATALOG
    try:
        written_ns = path.stat().st_mtime_ns
        data = read_json_bytes(path, max_bytes=MAX_CATALOG_BYTES)
        rows, _ = parse_catalog(data, name=str(path))
        return {key: row for key, row in rows.items() if row.mtime_ns < written_ns}
    except (OSError, CacheFormatError, ValueError, TypeError):
        return {}


def _checked(
    key: object, entry_id: object, size: object, mtime_ns: object, text: object, *, name: str
) -> CatalogRow:
    if (
        isinstance(entry_id, str)
        and isinstance(size, int)
        and isinstance(mtime_ns, int)
        and isinstance(text, str)
        and _belongs(entry_id, key)
    ):
        return CatalogRow(id=entry_id, size=size, mtime_ns=mtime_ns, text=text)
    raise CacheFormatError(f"{name}: id {entry_id!r:.80} does not belong to the key {key!r:.80}")


def _belongs(entry_id: str, key: object) -> bool:
    try:
        return entry_key(entry_id) == key
    except UsageError:  # an id that nothing is ever stored under
        return False
