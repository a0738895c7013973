"""The feature cache as one object: open it, ask what it holds, read tokens, add entries.

    cache = open_cache("lvu.zarr")                              # or "s3://bucket/lvu.zarr"
    cache.read("clip.mp4", "patch", frames=range(0, 60))        # float16 (60, 196, 1024)

Reading takes no lock and writes nothing, so a read-only mount works while others still write. A
cache at an address is only read, through a bounded directory here (`remote.mirror`). What is here
knows nothing of videos, backbones, training or torch.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import fields as f
from . import quantise
from .backing import FAILURES, TASKS, Backing, LocalBacking
from .catalog import CatalogRow, Snapshot, load_snapshot, save_catalog
from .errors import (
    SEE_VERIFY,
    CacheFormatError,
    EntryNotFoundError,
    UsageError,
    Vis4merError,
)
from .failures import FailureRecord
from .files import (
    JSON,
    canonical_json,
    create_exclusive,
    is_temporary,
    look_anew,
    parse_json,
    read_json_bytes,
    read_sealed,
    require_checksum,
    seal,
    storage_errors,
    unseal,
    write_atomic,
)
from .keys import entry_key, fan, task_path
from .layout import group_metadata
from .packs import rest_objects
from .reader import read_frames
from .records import (
    RECORDS,
    EntryRecord,
    SourceRecord,
    frame_cost,
    record_name,
    record_path,
)
from .remote.local import path_of
from .remote.urls import require_named, scheme_of, shown_url
from .spec import CacheSpec, require_writable
from .stored import StoredView, read_stored_view
from .tasks import Split, TaskTable
from .views import TokenView, pool_grid
from .wording import counted
from .writer import EntryWriter

if TYPE_CHECKING:
    from .dataset import WindowDataset

Frames = slice | range | Sequence[int] | NDArray[np.integer] | None
Tokens = NDArray[np.float16] | NDArray[np.float32]
_ADDRESS = re.compile(r"(s3a?|gs|az|abfss?|https?|ssh|sftp|hf|file):/{1,2}")  # as Path spells it


@dataclass(frozen=True, kw_only=True)
class ViewTokens:
    """What a view of t frames reads: patch (t, h, w, D), or (t, k, 1, D) of a view that selects k
    patches of a frame, prefix (t, 1, D); either may be None.

    num_bytes: token bytes read from the store.
    """

    patch: Tokens | None
    prefix: Tokens | None
    num_bytes: int


def open_cache(path: str | Path) -> Cache:
    """Open a cache: a directory (or its file:// address), or s3://, gs://, az://, http(s)://,
    ssh:// and hf://, from where it is only read.

    CacheFormatError when there is none, or one of a newer format; RemoteError when a place fails.
    """
    if isinstance(path, str) and scheme_of(path) not in ("", "file"):
        from .remote.mirror import open_remote

        return open_remote(path)
    root = _directory(path)
    return Cache(root, read_spec(root))


def find_cache(path: str | Path) -> Cache | None:
    """The cache that `create_cache` would go on with, or None where it would make one.

    Writes nothing. Raises UsageError when something else stands at `path`.
    """
    root = _directory(path)
    if (root / "zarr.json").exists():
        return open_cache(root)
    _require_room(root)
    return None


def create_cache(path: str | Path, spec: CacheSpec) -> Cache:
    """Make a cache, or open one made with the same settings, for writing.

    Raises FingerprintError, field by field, when the cache there was made with other settings, and
    UsageError when something else stands at `path`.
    """
    root = _directory(path)
    with storage_errors(root):
        if not (root / "zarr.json").exists():
            _make(root, spec)
    stored = read_spec(root)
    require_writable(stored, spec, name=str(root))
    _ensure_group(root / "videos")
    return Cache(root, stored)


def _directory(path: str | Path) -> Path:
    """The directory of a cache that may be written to. UsageError for an address, also one that a
    `Path` has taken a slash from."""
    text = str(path)
    if scheme_of(text) == "file":
        return path_of(text)
    if isinstance(path, str):
        require_named(text)
    address = _ADDRESS.match(text)
    if address is not None and not Path(path).exists():
        if address[1] == "file":
            raise UsageError(f"{text}: expected the path itself, {text[address.end() - 1 :]}")
        url = shown_url(f"{address[1]}://{text[address.end() :]}")
        raise UsageError(
            f"{url} is an address, expected a directory here: a cache elsewhere is read-only; "
            f"`vis4mer cache pull {url} DIR` brings it here, `vis4mer cache push` sends it back"
        )
    return Path(path)


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
        self._entries: Snapshot | None = None
        self._records: dict[str, EntryRecord] = {}
        self._lock = threading.Lock()

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
        snapshot = self._snapshot()
        return sorted(row.id for row in list(snapshot.rows.values())), tuple(snapshot.damaged)

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
        held, damaged = self.readable_ids() if ids is None else (ids, ())
        records, reasons = [], list(damaged)
        for entry_id in held:
            try:
                records.append(self.record(entry_id))
            except EntryNotFoundError:  # none of ours, or removed a moment ago
                continue
            except CacheFormatError as error:
                reasons.append(str(error))
        return records, tuple(reasons)

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
        with self._lock:
            self._entries = None
            self._records = {}

    def record(self, entry_id: str) -> EntryRecord:
        """The commit record of an entry. EntryNotFoundError when there is none."""
        if (known := self._records.get(entry_id)) is not None:
            return known
        key = entry_key(entry_id)
        name = record_name(self.name, key)
        row = self._snapshot().rows.get(key)
        try:
            content = unseal(row.text, name=name) if row else self.backing.late_record(key)
        except FileNotFoundError as error:
            raise EntryNotFoundError(
                f"{self.name} has no entry for video {entry_id!r}; `vis4mer cache ls` lists them"
            ) from error
        record = EntryRecord.from_json(content, spec=self.spec, name=name)
        if record.id != entry_id:
            raise CacheFormatError(f"{name}: says video {record.id!r}, expected {entry_id!r}")
        self._records[entry_id] = record
        return record

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
        chosen = _frame_indices(frames, record, self.name)
        present = record.token_arrays
        if array not in present:
            raise UsageError(
                f"video {entry_id!r} in {self.name} has no array {array!r}, only "
                f"{', '.join(present)}"
            )
        shape = (len(chosen), *record.arrays[array].shape[1:])
        dtype = quantise.decoded_dtype(self.spec.stored_dtype)
        if out is not None and out.shape != shape:
            raise UsageError(f"out has shape {out.shape}, expected {shape}")
        stored_as_read = self.spec.stored_dtype == "float16"
        if out is not None and stored_as_read and out.dtype == dtype and out.flags.c_contiguous:
            return read_frames(self.backing, record, array, chosen, out, verify=verify)
        values = self._read_decoded(record, array, chosen, verify=verify)
        if out is None:
            return values
        np.copyto(out, values, casting="same_kind")
        return out

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
        prefix = patch = None
        num_bytes = 0
        if view.cls:
            prefix = self.read(entry_id, "prefix", frames, verify=verify)[:, :1]  # t 1 D
            num_bytes += prefix.shape[0] * frame_cost(self.spec, "prefix")
        if view.grid is not None:
            array = view.stored_array(self.spec, record.token_arrays)
            tokens = self.read(entry_id, array, frames, verify=verify)  # t h·w D
            num_bytes += tokens.shape[0] * frame_cost(self.spec, array)
            grid = self.spec.array_grid(array) or view.grid
            if pool and grid != view.grid:
                tokens = _pooled(tokens, grid, view.grid)
                grid = view.grid
            if pool and view.selection is not None:
                tokens = _selected(tokens, view, record, _frame_indices(frames, record, self.name))
                grid = view.given_grid or grid
            patch = tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])  # t h w D
        return ViewTokens(patch=patch, prefix=prefix, num_bytes=num_bytes)

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
        chosen = _frame_indices(frames, record, self.name)
        return read_stored_view(
            self.backing, record, self.spec, view, chosen, out=out, verify=verify
        )

    # Labels, failures ------------------------------------------------------------------------

    def tasks(self) -> list[str]:
        """References of the task tables, e.g. `lvu/relationship`, sorted."""
        return self.backing.tasks()

    def task(self, reference: str) -> TaskTable:
        """A task table. UsageError lists those present."""
        name = f"{self.name}/{TASKS}/{'/'.join(task_path(reference))}.json"
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
        write_atomic(self._task_path(table.reference), seal(table.to_json()))

    def failures(self) -> list[FailureRecord]:
        """What went wrong so far, sorted by id; none of a place that cannot list. A damaged record
        of a failure is left out: `verify` tells it, and the video's next extraction replaces it."""
        return sorted(self.backing.failures(), key=lambda record: record.id)

    def failure(self, entry_id: str) -> FailureRecord | None:
        """What went wrong with one video, as it stands now; None also for a damaged record."""
        path = self._failure_path(entry_id)
        look_anew(path.parent)
        try:
            return FailureRecord.from_json(read_sealed(path), name=str(path))
        except (FileNotFoundError, CacheFormatError):
            return None

    def record_failure(self, failure: FailureRecord) -> None:
        write_atomic(self._failure_path(failure.id), seal(failure.to_json()))

    def clear_failure(self, entry_id: str) -> None:
        path = self._failure_path(entry_id)
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
            return self._publish(record, overwrite=overwrite)

        ensure_groups(self.path, entry_key(entry_id))
        return EntryWriter(self.path, entry_id, spec=self.spec, source=source, publish=publish)

    def look_again(self, entry_id: str) -> bool:
        """Has an entry been committed by somebody else since the snapshot? `record` gives it then.

        One whose record was damaged, and is, has not.
        """
        known = self._snapshot().rows.get(entry_key(entry_id))
        path = record_path(self.path, entry_key(entry_id))
        look_anew(path.parent)
        try:
            text = read_json_bytes(path).decode()
            if known is not None and known.text == text:
                return False
            content = unseal(text, name=str(path))
            record = EntryRecord.from_json(content, spec=self.spec, name=str(path))
        except (FileNotFoundError, ValueError):  # as CacheFormatError is, and what is no UTF-8
            return False
        if record.id != entry_id:
            return False
        self._records[entry_id] = record
        return True

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

    # -----------------------------------------------------------------------------------------

    def _publish(self, record: EntryRecord, *, overwrite: bool) -> EntryRecord:
        path = record_path(self.path, record.key)
        data = seal(record.to_json())
        # What could not be read back is never committed.
        EntryRecord.from_json(unseal(data, name=str(path)), spec=self.spec, name=str(path))
        if overwrite:
            self._rest_overwritten(path)
            write_atomic(path, data)
        elif not create_exclusive(path, data):
            return EntryRecord.from_json(read_sealed(path), spec=self.spec, name=str(path))
        self.clear_failure(record.id)
        row = CatalogRow(id=record.id, size=len(data), mtime_ns=0, text=data.decode())
        with self._lock:
            self._records[record.id] = record
            if self._entries is not None:
                self._entries.rows[record.key] = row
        return record

    def _rest_overwritten(self, path: Path) -> None:
        """A damaged record names nothing that could be told."""
        with contextlib.suppress(OSError, CacheFormatError):
            name = str(path)
            rest_objects(
                self.path, EntryRecord.from_json(read_sealed(path), spec=self.spec, name=name)
            )

    def _snapshot(self) -> Snapshot:
        with self._lock:
            if self._entries is None:
                self._entries = self.backing.snapshot()
            return self._entries

    def _read_decoded(
        self, record: EntryRecord, array: str, frames: NDArray[np.int64], *, verify: bool
    ) -> Tokens:
        values = read_frames(self.backing, record, array, frames, verify=verify)
        if self.spec.stored_dtype == "bfloat16":
            return quantise.decode_bfloat16(values)
        if self.spec.stored_dtype == "int8":
            scale = read_frames(self.backing, record, f"{array}_scale", frames, verify=verify)
            row = np.zeros(1, dtype=np.int64)
            channel = read_frames(self.backing, record, f"{array}_channel", row, verify=verify)[0]
            return quantise.decode_int8(values, scale, channel)
        return values

    def _failure_path(self, entry_id: str) -> Path:
        key = entry_key(entry_id)
        return self.path / FAILURES / fan(key) / f"{key}.json"

    def _task_path(self, reference: str) -> Path:
        dataset, task = task_path(reference)
        return self.path / TASKS / dataset / f"{task}.json"


def _frame_indices(frames: Frames, record: EntryRecord, name: str) -> NDArray[np.int64]:
    """Indices of the frames asked for, each checked to be in [0, num_frames)."""
    every = range(record.num_frames)
    if frames is None or isinstance(frames, slice):
        return np.asarray(every[frames] if frames is not None else every, dtype=np.int64)
    given = np.asarray(frames)
    if given.size and given.dtype.kind not in "iu":  # a mask would be taken for frames 0 and 1
        raise UsageError(f"frames must be whole numbers, got {given.dtype}")
    chosen = given.astype(np.int64)
    if chosen.ndim != 1 or (chosen.size and not 0 <= chosen.min() <= chosen.max() < len(every)):
        raise UsageError(
            f"video {record.id!r} in {name} has frames 0 to {len(every) - 1}; "
            f"asked for {chosen.min()} to {chosen.max()}"
            if chosen.ndim == 1
            else f"frames must be one-dimensional, got shape {chosen.shape}"
        )
    return chosen


def _pooled(tokens: Tokens, grid: tuple[int, int], pooled: tuple[int, int]) -> Tokens:
    averages = pool_grid(tokens, grid, pooled)
    return averages.astype(np.float16) if tokens.dtype == np.float16 else averages


def _selected(
    tokens: Tokens, view: TokenView, record: EntryRecord, frames: NDArray[np.int64]
) -> Tokens:
    """The patches that a view with a selection keeps: (t, h·w, D) to (t, k, D)."""
    places = view.places(record.id, frames.tolist())
    return tokens if places is None else tokens[np.arange(len(frames))[:, None], places]


def _make(root: Path, spec: CacheSpec) -> None:
    _require_room(root)
    # A loser of the race opens the winner's cache.
    create_exclusive(root / "zarr.json", spec_bytes(spec))


def spec_bytes(spec: CacheSpec) -> bytes:
    """`zarr.json` of a cache: a Zarr group whose attributes hold the sealed spec."""
    about: JSON = parse_json(seal(spec.to_json()), name="spec")
    return canonical_json(group_metadata({"vis4mer": about}))


def _require_room(root: Path) -> None:
    """UsageError when something else than a cache stands where one is to be made."""
    # Half-written files of a process that was killed while it made this cache do not count.
    if not root.exists() or (root.is_dir() and all(is_temporary(p.name) for p in root.iterdir())):
        return
    if not (root / "zarr.json").exists():  # somebody else may just have made it
        raise UsageError(
            f"{root} exists and is no feature cache; give --cache a new or empty directory"
        )


def ensure_groups(root: Path, key: str) -> None:
    """The groups above the entry of `key`."""
    with storage_errors(root):
        _ensure_group(root / "videos")
        _ensure_group(root / "videos" / fan(key))


def _ensure_group(folder: Path) -> None:
    """A `zarr.json` at every level, or whole groups vanish from plain Zarr readers."""
    path = folder / "zarr.json"
    if not path.exists():
        create_exclusive(path, canonical_json(group_metadata({})))


def read_spec(root: Path) -> CacheSpec:
    """The spec of the cache in a directory; errors as `open_cache`."""
    path = root / "zarr.json"
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory; expected a feature cache")
    try:
        data = read_json_bytes(path)
    except FileNotFoundError as error:
        lost = (root / RECORDS).is_dir()
        made = _where_from(root) if lost else "; `vis4mer extract --cache` makes one"
        has = "has lost its" if lost else "has no"
        raise CacheFormatError(f"{root} is no feature cache (it {has} zarr.json){made}") from error
    except OSError as error:
        raise Vis4merError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return parse_spec(data, name=str(path))
    except CacheFormatError as error:
        if not (root / RECORDS).is_dir() or is_sealed_spec(data):  # no cache, or a newer one
            raise
        raise CacheFormatError(f"{error}{_where_from(root)}") from error


def _where_from(root: Path) -> str:
    """Where a lost spec is to be had: nothing in the cache itself repeats it."""
    return (
        f"; `vis4mer cache repair {root} --from COPY` takes it from a cache that holds the same "
        "values"
    )


def is_sealed_spec(data: bytes) -> bool:
    """Whether `zarr.json` of a cache is as some version wrote it, whatever it says."""
    name = "zarr.json"
    try:
        attributes = f.mapping(parse_json(data, name=name), "attributes", name=name)
        require_checksum(f.mapping(attributes, "vis4mer", name=name), name=name)
    except CacheFormatError:
        return False
    return True


def parse_spec(data: bytes, *, name: str) -> CacheSpec:
    """The spec in `zarr.json` of a cache; CacheFormatError when it is none, or does not check."""
    attributes = f.mapping(parse_json(data, name=name), "attributes", name=name)
    if "vis4mer" not in attributes:
        raise CacheFormatError(f"{name}: a Zarr group but no vis4mer feature cache")
    about = f.mapping(attributes, "vis4mer", name=name)
    spec = CacheSpec.from_json(about, name=name)
    require_checksum(about, name=name)
    return spec
