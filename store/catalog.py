"""The catalog: all records in one file, so that a cache of 10,000 entries opens in a moment.

Derived from `records/` and rebuildable at any time; never the truth. A row is used only while the
record file it was made from has the same size and modification time, and that time lies before the
catalog's own (a file written later within the same tick of the clock would look unchanged);
otherwise the file is read. Records stay sealed text until somebody asks for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import fields as f
from .errors import CacheFormatError, UsageError
from .files import parse_json, read_json_bytes, seal, unseal, write_atomic
from .keys import KEY_PATTERN, entry_key, fan
from .records import RECORDS

CATALOG = "catalog.json"
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
    snapshot = Snapshot()
    for key, path, stat in _scan(root):
        row = known.get(key)
        try:
            if row is None or (row.size, row.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
                row = _read_row(key, path, stat)
        except FileNotFoundError:  # removed a moment ago
            continue
        except CacheFormatError as error:
            snapshot.damaged.append(str(error))
            continue
        snapshot.rows[key] = row
    return snapshot


def save_catalog(root: Path, rows: dict[str, CatalogRow]) -> None:
    entries = [[key, r.id, r.size, r.mtime_ns, r.text] for key, r in sorted(rows.items())]
    write_atomic(root / CATALOG, seal({"entries": entries}))


def _scan(root: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Every record file: key, path and stat. Foreign names and temporary files are passed by."""
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
                    yield key, Path(entry.path), entry.stat(follow_symlinks=False)


def _read_row(key: str, path: Path, stat: os.stat_result) -> CatalogRow:
    data = read_json_bytes(path)
    entry_id = f.text(parse_json(data, name=str(path)), "id", name=str(path))
    return _checked(key, entry_id, len(data), stat.st_mtime_ns, data.decode(), name=str(path))


def _read_catalog(root: Path) -> dict[str, CatalogRow]:
    """The catalog's rows; none when there is no catalog or it does not check (it is derived)."""
    path = root / CATALOG
    try:
        written_ns = path.stat().st_mtime_ns
        data = read_json_bytes(path, max_bytes=MAX_CATALOG_BYTES)
        entries = f.sequence(unseal(data, name=str(path)), "entries", name=str(path))
        return {
            key: _checked(key, entry_id, size, mtime_ns, text, name=str(path))
            for key, entry_id, size, mtime_ns, text in entries
            if mtime_ns < written_ns
        }
    except (FileNotFoundError, CacheFormatError, ValueError, TypeError):
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
