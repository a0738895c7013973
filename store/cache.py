"""The feature cache as one object: open it, ask what it holds, read tokens, add entries.

    cache = open_cache("lvu.zarr")                              # or "s3://bucket/lvu.zarr"
    cache.read("clip.mp4", "patch", frames=range(0, 60))        # float16 (60, 196, 1024)

Reading takes no lock and writes nothing, so a read-only mount works while others still write. A
cache at an address is only read, through a bounded directory here (`remote.mirror`). What is here
knows nothing of videos, backbones, training or torch. It is a face; the work is done beside it:
`directory` (where a cache may stand, its spec), `entries` (which there are), `decoded` and `stored`
(their tokens), `writer` and `commits` (new ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .backing import Backing, LocalBacking
from .catalog import load_snapshot, save_catalog
from .commits import put_record, read_committed, record_bytes
from .decoded import Frames, Tokens, ViewTokens, frame_indices, read_tokens, read_view_tokens
from .directory import ensure_groups, local_directory, make_root, read_spec, require_room
from .entries import Entries
from .errors import SEE_VERIFY, CacheFormatError, EntryNotFoundError, UsageError
from .failures import FailureRecord, failure_path
from .files import look_anew, read_sealed, seal, storage_errors, write_atomic
from .keys import entry_key
from .packs import rest_objects
from .records import EntryRecord, SourceRecord, record_path
from .remote.urls import scheme_of
from .spec import CacheSpec, require_writable
from .stored import StoredView, read_stored_view
from .tasks import Split, TaskTable, table_path
from .views import TokenView
from .wording import counted
from .writer import EntryWriter

if TYPE_CHECKING:
    from .dataset import WindowDataset


def open_cache(path: str | Path) -> Cache:
    """Open a cache: a directory (or its file:// address), or s3://, gs://, az://, http(s)://,
    ssh:// and hf://, from where it is only read.

    CacheFormatError when there is none, or one of a newer format; RemoteError when a place fails.
    """
    if isinstance(path, str) and scheme_of(path) not in ("", "file"):
        from .remote.mirror import open_remote

        return open_remote(path)
    root = local_directory(path)
    return Cache(root, read_spec(root))


def find_cache(path: str | Path) -> Cache | None:
    """The cache that `create_cache` would go on with, or None where it would make one.

    Writes nothing. Raises UsageError when something else stands at `path`.
    """
    root = local_directory(path)
    if (root / "zarr.json").exists():
        return open_cache(root)
    require_room(root)
    return None


def create_cache(path: str | Path, spec: CacheSpec) -> Cache:
    """Make a cache, or open one made with the same settings, for writing.

    Raises FingerprintError, field by field, when the cache there was made with other settings, and
    UsageError when something else stands at `path`.
    """
    root = local_directory(path)
    make_root(root, spec)
    stored = read_spec(root)
    require_writable(stored, spec, name=str(root))
    ensure_groups(root)
    return Cache(root, stored)


class Cache:
    """A cache at `address`: a path, or where it is only read from. Use `open_cache` or
    `create_cache`.

    The list of entries is a snapshot taken when it is first needed; `refresh` takes a new one.
    backing: what it is read from, where that is not a directory of its own.
    """

    def __init__(
        self, address: str | Path, spec: CacheSpec, *, backing: Backing | None = None
    ) -> None:
        self.address = str(address)
        self.backing: Backing = backing or LocalBacking(Path(address))
        self.spec = spec
        self._root = None if backing else Path(address)
        self._entries = Entries(self.backing, spec)

    def __reduce__(self) -> tuple[Any, ...]:
        """Worker processes open the cache for themselves."""
        return (open_cache, (self.address,))

    @property
    def name(self) -> str:
        """Of the cache, for people: its path, or its address without anything secret."""
        return self.backing.name

    @property
    def is_remote(self) -> bool:
        """Whether it is read from an address, and has no directory of its own."""
        return self._root is None

    @property
    def path(self) -> Path:
        """The cache's own directory. UsageError, read-only, when it is at an address: whatever
        writes asks for it."""
        if self._root is None:
            raise UsageError(
                f"{self.name} is remote and read-only: pull it first "
                f"(`vis4mer cache pull {self.name} DIR`)"
            )
        return self._root

    def __len__(self) -> int:
        return len(self.ids())

    def __contains__(self, entry_id: str) -> bool:
        try:
            self.record(entry_id)
        except EntryNotFoundError:
            return False
        return True

    def ids(self) -> list[str]:
        """Ids of all entries, sorted. CacheFormatError when a record does not say whose it is."""
        ids, damaged = self.readable_ids()
        self._require_none(damaged, "it is not known which videos it holds")
        return ids

    def readable_ids(self) -> tuple[list[str], tuple[str, ...]]:
        """Ids of the entries whose records say whose they are, sorted, and what is wrong with each
        of the other records: for what goes on without them."""
        return self._entries.ids()

    def records(self, ids: Iterable[str] | None = None, *, otherwise: str) -> list[EntryRecord]:
        """The records of all entries, sorted by id, or of those of `ids` that are there, in order.

        CacheFormatError when one cannot be read; otherwise: what is not to be done then, in words.
        """
        records, damaged = self.readable_records(ids)
        self._require_none(damaged, otherwise)
        return records

    def readable_records(
        self, ids: Iterable[str] | None = None
    ) -> tuple[list[EntryRecord], tuple[str, ...]]:
        """`records`, without those that do not check, and what is wrong with each of these."""
        return self._entries.readable(ids)

    def _require_none(self, damaged: Sequence[str], otherwise: str) -> None:
        if damaged:
            reason = damaged[0].removesuffix(f"; {SEE_VERIFY}")
            raise CacheFormatError(
                f"{self.name}: {counted(len(damaged), 'record')} cannot be read, so {otherwise}: "
                f"{reason}; to mend it: {self.to_mend}"
            )

    @property
    def to_mend(self) -> str:
        """What a person does about entries that are damaged, in words."""
        if self.is_remote:
            return "push a sound copy there again"
        return (
            f"`vis4mer cache repair {self.name}`, with --from ANOTHER of the same values if there "
            "is one; then the same `vis4mer extract` again"
        )

    def refresh(self) -> None:
        """Forget the snapshot, so that entries written by others since are seen."""
        self._entries.forget()

    def record(self, entry_id: str) -> EntryRecord:
        """The commit record of an entry. EntryNotFoundError when there is none."""
        return self._entries.record(entry_id)

    # Reading ---------------------------------------------------------------------------------

    def read(
        self,
        entry_id: str,
        array: str = "patch",
        frames: Frames = None,
        *,
        out: Tokens | None = None,
        verify: bool = True,
    ) -> Tokens:
        """Tokens of one array: (t, S, D), float16, or float32 from bfloat16 and int8 caches.

        frames: which ones (default all), half-open slices and ranges or indices in any order.
        out: filled and returned when given; of the shape and type above, or any float type.
        verify: check the crc32c of every frame. Raises DamagedEntryError, never gives zeros.
        """
        record = self.record(entry_id)
        chosen = frame_indices(frames, record, name=self.name)
        return read_tokens(self.backing, record, self.spec, array, chosen, out=out, verify=verify)

    def read_view(
        self,
        entry_id: str,
        view: TokenView,
        frames: Frames = None,
        *,
        pool: bool = True,
        verify: bool = True,
    ) -> ViewTokens:
        """The parts of some frames that a view needs, from the cheapest array that gives them.

        pool: average down to the view's grid and select from it here, at random by the video's id;
        otherwise the patch tokens keep the stored grid, for a caller that does so on its device.
        """
        record = self.record(entry_id)
        view.require(self.spec)
        chosen = frame_indices(frames, record, name=self.name)
        return read_view_tokens(
            self.backing, record, self.spec, view, chosen, pool=pool, verify=verify
        )

    def dataset(
        self,
        task: str,
        split: Split,
        *,
        tokens: str = "60x14x14",
        window_seconds: float = 60.0,
        stride_seconds: float | None = None,
    ) -> WindowDataset:
        """Windows of a task's videos as a dataset for `torch.utils.data.DataLoader`.

        tokens: a token view. stride_seconds: between the starts of windows; default a window. Rows
        without an entry are listed in `.missing`. Items are dicts; see WindowDataset.
        """
        from .dataset import WindowDataset

        return WindowDataset(
            self,
            task,
            split,
            tokens=tokens,
            window_seconds=window_seconds,
            stride_seconds=stride_seconds,
        )

    def read_stored(
        self,
        entry_id: str,
        view: TokenView,
        frames: Frames = None,
        *,
        out: NDArray[np.uint8],
        verify: bool = True,
    ) -> StoredView:
        """As `read_view` without pooling, but of the stored type and within the memory `out`, which
        has at least `stored.view_bytes` bytes."""
        record = self.record(entry_id)
        view.require(self.spec)
        chosen = frame_indices(frames, record, name=self.name)
        return read_stored_view(
            self.backing, record, self.spec, view, chosen, out=out, verify=verify
        )

    # Labels, failures ------------------------------------------------------------------------

    def tasks(self) -> list[str]:
        """References of the task tables, e.g. `lvu/relationship`, sorted."""
        return self.backing.tasks()

    def task(self, reference: str) -> TaskTable:
        """A task table. UsageError lists those present."""
        name = f"{self.name}/{table_path(reference)}"
        try:
            content = self.backing.table(reference)
        except FileNotFoundError as error:
            present = ", ".join(self.tasks()) or "none; add labels with `vis4mer label`"
            raise UsageError(f"{self.name} has no task {reference!r}; it has {present}") from error
        table = TaskTable.from_json(content, name=name)
        if table.reference != reference:
            raise CacheFormatError(
                f"{name}: is task {table.reference!r:.160}, expected {reference!r}"
            )
        return table

    def save_task(self, table: TaskTable) -> None:
        """Add a task table, or replace the one of its name."""
        write_atomic(self.path / table_path(table.reference), seal(table.to_json()))

    def failures(self) -> list[FailureRecord]:
        """What went wrong so far, sorted by id; none of a place that cannot list. A damaged record
        of a failure is left out: `verify` tells it, and the video's next extraction replaces it."""
        return sorted(self.backing.failures(), key=lambda record: record.id)

    def failure(self, entry_id: str) -> FailureRecord | None:
        """What went wrong with one video, as it stands now; None also for a damaged record."""
        path = failure_path(self.path, entry_id)
        look_anew(path.parent)
        try:
            return FailureRecord.from_json(read_sealed(path), name=str(path))
        except (FileNotFoundError, CacheFormatError):
            return None

    def record_failure(self, failure: FailureRecord) -> None:
        write_atomic(failure_path(self.path, failure.id), seal(failure.to_json()))

    def clear_failure(self, entry_id: str) -> None:
        path = failure_path(self.path, entry_id)
        with storage_errors(path):
            path.unlink(missing_ok=True)

    # Writing ---------------------------------------------------------------------------------

    def write_entry(
        self, entry_id: str, *, source: SourceRecord, overwrite: bool = False
    ) -> EntryWriter:
        """A context manager that takes an entry's frames; see EntryWriter.

        overwrite: the commit replaces an entry that is there; otherwise the first commit stands.
        """

        def publish(record: EntryRecord) -> EntryRecord:
            data = record_bytes(self.path, record, self.spec)
            if not put_record(self.path, record.key, data, self.spec, overwrite=overwrite):
                return read_committed(self.path, record.key, self.spec)
            self.clear_failure(record.id)
            self._entries.add(record, data)
            return record

        ensure_groups(self.path, entry_key(entry_id))
        return EntryWriter(self.path, entry_id, spec=self.spec, source=source, publish=publish)

    def look_again(self, entry_id: str) -> bool:
        """Has an entry been committed by somebody else since the snapshot? `record` gives it then.

        One whose record was damaged, and is, has not.
        """
        return self._entries.look_again(self.path, entry_id)

    def remove(self, entry_id: str) -> None:
        """Make an entry cease to exist; its bytes rest for the grace period of `gc`."""
        record = self.record(entry_id)
        with storage_errors(self.path):
            rest_objects(self.path, record)
            record_path(self.path, record.key).unlink(missing_ok=True)
        self.refresh()

    def write_catalog(self) -> None:
        """Bring `catalog.json` up to date with the records."""
        self.refresh()
        save_catalog(self.path, load_snapshot(self.path).rows, self.tasks())
