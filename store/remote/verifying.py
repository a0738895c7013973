"""Checking a cache at a place against its records: what lies there, not the copies of it here.

quick asks for the size of every object; full fetches each once, into a directory that is removed at
the end. Many videos at a time, since each mostly waits for an answer.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..cache import Cache
from ..errors import CacheFormatError, DamagedEntryError
from ..files import storage_errors
from ..records import PACKS, EntryRecord
from ..transfer.contents import Contents, read_contents, record_key, table_key
from ..verify import Problem, VerifyMode, VerifyReport, entry_problems
from .mirror import READERS, MirrorBacking, mirror_of
from .place import MissingObjectError, Place
from .shelf import Shelf

_FOLDER = "verify-"
_ABANDONED_SECONDS = 24 * 3600.0


def verify_remote(
    cache: Cache, mode: VerifyMode, *, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """`verify_cache` of a cache at a place. RemoteError when the place fails.

    Of a place that cannot list, what catalog.json names is checked.
    """
    backing = mirror_of(cache)
    with _own_folder(backing.shelf.folder) as folder:
        most = min(backing.shelf.limit_bytes, Shelf(folder).limit_bytes)
        shelf = Shelf(folder, limit_bytes=most)
        contents = read_contents(backing.place)
        check = _Check(contents, MirrorBacking(contents, shelf, fresh=True), mode)
        return check.run(progress)


@contextlib.contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A folder for this check alone, removed at the end; those of killed ones are removed too."""
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{_FOLDER}*"):
            with contextlib.suppress(OSError):
                if time.time() - old.lstat().st_mtime > _ABANDONED_SECONDS:
                    shutil.rmtree(old)  # which a check that still runs survives
        with tempfile.TemporaryDirectory(
            dir=parent, prefix=_FOLDER, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)


class _Check:
    def __init__(self, contents: Contents, backing: MirrorBacking, mode: VerifyMode) -> None:
        self._contents = contents
        self._place = contents.place
        self._backing = backing
        self._mode = mode
        self._sizes = _listed_sizes(contents.place) if mode == "quick" else {}

    def run(self, progress: Callable[[int, int], None] | None) -> VerifyReport:
        problems = [*self._table_problems()]
        problems += [Problem(id=None, reason=reason) for reason in self._contents.damaged]
        keys = sorted(self._contents.rows)
        num_entries = num_bytes = 0
        with ThreadPoolExecutor(READERS) as readers:
            checked = readers.map(self._check_entry, keys)
            for done, (record, found) in enumerate(checked, start=1):
                problems += found
                if record is not None:
                    num_entries += 1
                    num_bytes += record.num_bytes
                if progress is not None:
                    progress(done, len(keys))
        return VerifyReport(
            mode=self._mode, num_entries=num_entries, num_bytes=num_bytes, problems=tuple(problems)
        )

    def _check_entry(self, key: str) -> tuple[EntryRecord | None, list[Problem]]:
        """By the record that stands there; the catalog only repeats it."""
        try:
            record = self._contents.fresh_record(key)
        except MissingObjectError:
            if self._place.can_list:  # removed a moment ago
                return None, []
            entry_id = self._contents.rows[key].id
            reason = f"catalog.json lists video {entry_id!r}, which has no record there"
            return None, [Problem(id=entry_id, reason=reason, path=record_key(key))]
        except CacheFormatError as error:
            return None, [Problem(id=None, reason=str(error), path=record_key(key))]
        if self._mode == "full":
            return record, list(entry_problems(self._backing, record, "full"))
        return record, list(self._size_problems(record))

    def _size_problems(self, record: EntryRecord) -> Iterator[Problem]:
        for path in record.objects:
            try:
                self._require_size(record, path)
            except DamagedEntryError as error:
                yield Problem(id=record.id, reason=str(error), path=path)

    def _require_size(self, record: EntryRecord, path: str) -> None:
        key, start = self._backing.located(record, path)
        size = self._sizes[key] if key in self._sizes else self._place.size(key)
        end = start + record.objects[path].size
        name = self._backing.shown(record, path)
        if size is None:
            raise DamagedEntryError(f"{name}: not there, but its record lists it")
        if size < end or (size != end and record.pack is None):
            raise DamagedEntryError(
                f"{name}: {size} bytes there, but its record says that it ends at byte {end}"
            )

    def _table_problems(self) -> Iterator[Problem]:
        for reference in self._contents.tasks:
            try:
                self._contents.table(reference)
            except (CacheFormatError, MissingObjectError) as error:
                yield Problem(id=None, reason=str(error), path=table_key(reference))


def _listed_sizes(place: Place) -> Mapping[str, int]:
    """Sizes of all objects of entries, by key; none of a place that cannot list."""
    if not place.can_list:
        return {}
    return {found.key: found.size for room in ("videos", PACKS) for found in place.list(room)}
