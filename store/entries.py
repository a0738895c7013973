"""What entries a cache has, as far as this process knows: their records, by id.

All of them are a snapshot of the moment at which they are first asked for; each is parsed once,
when somebody asks for it. Any number of threads may ask.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from .backing import Backing
from .catalog import CatalogRow, Snapshot
from .errors import CacheFormatError, EntryNotFoundError
from .files import look_anew, read_json_bytes, unseal
from .keys import entry_key
from .records import EntryRecord, record_name, record_path
from .spec import CacheSpec


class Entries:
    """The records of one cache. Errors name it as its backing does."""

    def __init__(self, backing: Backing, spec: CacheSpec) -> None:
        self._backing = backing
        self._spec = spec
        self._snapshot: Snapshot | None = None
        self._records: dict[str, EntryRecord] = {}
        self._lock = threading.Lock()

    def ids(self) -> tuple[list[str], tuple[str, ...]]:
        """Ids of the entries whose records say whose they are, sorted, and what is wrong with each
        of the other records."""
        snapshot = self._taken()
        return sorted(row.id for row in list(snapshot.rows.values())), tuple(snapshot.damaged)

    def record(self, entry_id: str) -> EntryRecord:
        """The commit record of an entry. EntryNotFoundError when there is none, CacheFormatError
        for one that does not check."""
        if (known := self._records.get(entry_id)) is not None:
            return known
        key = entry_key(entry_id)
        name = record_name(self._backing.name, key)
        row = self._taken().rows.get(key)
        try:
            content = unseal(row.text, name=name) if row else self._backing.late_record(key)
        except FileNotFoundError as error:
            raise EntryNotFoundError(
                f"{self._backing.name} has no entry for video {entry_id!r}; `vis4mer cache ls` "
                "lists them"
            ) from error
        record = EntryRecord.from_json(content, spec=self._spec, name=name)
        if record.id != entry_id:
            raise CacheFormatError(f"{name}: says video {record.id!r}, expected {entry_id!r}")
        self._records[entry_id] = record
        return record

    def readable(
        self, ids: Iterable[str] | None = None
    ) -> tuple[list[EntryRecord], tuple[str, ...]]:
        """The records of all entries, sorted by id, or of those of `ids` that are there, in order,
        without those that do not check; and what is wrong with each of these."""
        held, damaged = self.ids() if ids is None else (ids, ())
        records, reasons = [], list(damaged)
        for entry_id in held:
            try:
                records.append(self.record(entry_id))
            except EntryNotFoundError:  # none of ours, or removed a moment ago
                continue
            except CacheFormatError as error:
                reasons.append(str(error))
        return records, tuple(reasons)

    def look_again(self, root: Path, entry_id: str) -> bool:
        """Has an entry been committed in the directory `root` by somebody else since the snapshot?
        `record` gives it then. One whose record was damaged, and is, has not."""
        known = self._taken().rows.get(entry_key(entry_id))
        path = record_path(root, entry_key(entry_id))
        look_anew(path.parent)
        try:
            text = read_json_bytes(path).decode()
            if known is not None and known.text == text:
                return False
            content = unseal(text, name=str(path))
            record = EntryRecord.from_json(content, spec=self._spec, name=str(path))
        except (FileNotFoundError, ValueError):  # as CacheFormatError is, and what is no UTF-8
            return False
        if record.id != entry_id:
            return False
        self._records[entry_id] = record
        return True

    def add(self, record: EntryRecord, data: bytes) -> None:
        """A record that was committed here a moment ago, and its bytes."""
        row = CatalogRow(id=record.id, size=len(data), mtime_ns=0, text=data.decode())
        with self._lock:
            self._records[record.id] = record
            if self._snapshot is not None:
                self._snapshot.rows[record.key] = row

    def forget(self) -> None:
        """The next question takes a new snapshot."""
        with self._lock:
            self._snapshot = None
            self._records = {}

    def _taken(self) -> Snapshot:
        with self._lock:
            if self._snapshot is None:
                self._snapshot = self._backing.snapshot()
            return self._snapshot
