"""`vis4mer cache push`: a cache from a directory here, whole or in part, to a place.

    push_cache("lvu.zarr", "s3://bucket/lvu.zarr", Selection(task="lvu/relationship"))

Objects first, each checked against its record while it is sent; then the records that name them;
task tables, a README and the catalog last. Stopped or killed at any moment, what is there is a
smaller cache and never a wrong one, and the same command goes on. Hosts, users and folders are
taken out of the records that leave.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..cache import Cache, open_cache
from ..catalog import CATALOG, catalog_bytes
from ..directory import parse_spec, spec_bytes
from ..errors import CacheFormatError, UsageError
from ..files import canonical_json, seal
from ..keys import fan
from ..layout import group_metadata
from ..packs import (
    DEFAULT_PACK_BYTES,
    UnsoundEntryError,
    lay_out,
    write_pack,
)
from ..provenance import without_private
from ..records import EntryRecord
from ..remote.local import LocalPlace
from ..remote.place import MissingObjectError, Place, open_place
from ..replacement import rearranging
from ..spec import CacheSpec, joined_spec, require_same, require_writable
from ..wording import first_line
from .card import CARD, card_for, is_generated
from .contents import find_contents, read_bounded, read_contents, record_key, table_key
from .leaving import SMALL_BYTES, object_to_send, scratch_file, sent_before
from .parcels import Parcel, parcels_of
from .plan import EntryCopy, plan_copy
from .running import OnTransfer, Tally, TransferFailure, TransferSummary, at_once
from .selection import Selection, lacks_some, narrowed

JOBS = 8
PACK_BYTES = DEFAULT_PACK_BYTES
_LOOKS = 3  # at the place, while others push there too
# What may stand at a place before a cache does.
_OTHERS = re.compile(r"\..*|README[^/]*|LICEN[CS]E[^/]*|NOTICE[^/]*", re.IGNORECASE)


def push_cache(
    source: str | Path,
    target: str | Place,
    selection: Selection | None = None,
    *,
    pack_bytes: int | None = None,
    card: bool = True,
    jobs: int = JOBS,
    dry_run: bool = False,
    stop: threading.Event | None = None,
    progress: OnTransfer | None = None,
) -> TransferSummary:
    """Copy what the place lacks of the cache at `source`.

    pack_bytes: put entries into objects of about that size; None: each object by itself.
    card: write a README there, unless somebody's own stands there. Raises UsageError for a place
    that cannot be written or a selection of what is not here, FingerprintError when another cache
    is there, RemoteError when the place fails. A damaged entry is a failure of its own.
    """
    place = open_place(target, writable=True) if isinstance(target, str) else target
    push = _Push(open_cache(source), place, selection or Selection(), pack_bytes)
    return push.run(card=card, jobs=jobs, dry_run=dry_run, stop=stop, progress=progress)


class _Push:
    def __init__(
        self, cache: Cache, place: Place, selection: Selection, pack_bytes: int | None
    ) -> None:
        self._cache = cache
        self._place = place
        self._selection = selection
        self._pack_bytes = pack_bytes
        self._failures: list[TransferFailure] = []
        self._num_packs = 0
        self._groups: set[str] = set()
        self._lock = threading.Lock()
        _require_here(cache, place)
        require_writable(cache.spec, cache.spec, name=str(cache.path))  # all of it is understood
        self._spec = selection.spec(cache.spec)
        self._there = find_contents(place)
        if self._there is not None:
            self._joined(self._there.spec)
        else:
            _require_no_others(place)

    def run(
        self,
        *,
        card: bool,
        jobs: int,
        dry_run: bool,
        stop: threading.Event | None,
        progress: OnTransfer | None,
    ) -> TransferSummary:
        began = time.monotonic()
        chosen, name = self._selection, str(self._cache.path)
        references = chosen.tables(self._cache.tasks(), name=name)
        table = None if chosen.task is None else self._cache.task(chosen.task)
        readable, damaged = self._cache.readable_ids()
        self._failures += [TransferFailure(id=None, reason=reason) for reason in damaged]
        ids, lacking = chosen.chosen(readable, table, name=name)
        copies, present, without = self._plan(ids)
        num_bytes = sum(copy.num_bytes for copy in copies)
        tally = Tally(num_videos=len(copies), num_bytes=num_bytes, progress=progress)
        copied: list[str] = []
        written: list[str] = []
        if not dry_run:
            self._begin(copies)
            with self._kept():
                copied = self._copy(copies, tally, jobs=jobs, stop=stop)
                written = self._copy_tables(references)
                self._finish(card=card)
        done, failed = set(copied), {failure.id for failure in self._failures}
        return TransferSummary(
            source=name,
            target=self._place.url,
            dry_run=dry_run,
            copied=tuple(copy.record.id for copy in copies) if dry_run else tuple(sorted(copied)),
            present=present,
            replaced=tuple(c.record.id for c in copies if c.replaces and c.record.id in done),
            lacking=tuple(lacking),
            without_arrays=tuple(without),
            failures=tuple(self._failures),
            tasks=tuple(written),
            num_packs=self._num_packs,
            num_bytes=num_bytes if dry_run else tally.moved_bytes,
            left=0 if dry_run else sum(c.record.id not in done | failed for c in copies),
            seconds=time.monotonic() - began,
        )

    def _kept(self) -> contextlib.AbstractContextManager[None]:
        """In a directory, `gc` takes nothing that an earlier push has left, and that this one is
        about to name, for garbage. Other pushes may go on there."""
        if isinstance(self._place, LocalPlace):
            return rearranging(self._place.root, shared=True)
        return contextlib.nullcontext()

    def _plan(self, ids: Sequence[str]) -> tuple[list[EntryCopy], int, list[str]]:
        """(what to copy, how many are there already, ids that lack some of what was asked)."""
        copies, without, present = [], [], 0
        for entry_id in ids:
            try:
                source = self._cache.record(entry_id)
            except CacheFormatError as error:
                self._failures.append(TransferFailure(id=entry_id, reason=first_line(error)))
                continue
            if lacks_some(source, self._selection, self._cache.spec):
                without.append(entry_id)
            wanted = narrowed(source, self._selection.arrays, self._cache.spec)
            if wanted is None:
                continue
            copy = plan_copy(source, without_private(wanted), self._standing(source.key))
            if copy is None:
                present += 1
            else:
                copies.append(copy)
        return copies, present, without

    def _standing(self, key: str) -> EntryRecord | None:
        """The entry's record there; None where there is none that checks."""
        if self._there is None or key not in self._there.rows:
            return None
        try:
            return self._there.record(key)
        except CacheFormatError:
            return None

    def _joined(self, there: CacheSpec) -> CacheSpec:
        """The spec that names the arrays there after this. Raises unless the caches fit."""
        require_same(there, self._spec, name=self._place.url, other=str(self._cache.path))
        require_writable(there, there, name=self._place.url)
        return joined_spec(there, self._spec, self._cache.spec)

    def _begin(self, copies: Sequence[EntryCopy]) -> None:
        """The cache itself, and a catalog that no longer says what is about to be replaced: whoever
        lists the place reads those records one by one until the catalog is whole again."""
        self._name_arrays()
        replaced = {copy.record.key for copy in copies if copy.replaces}
        if self._there is not None and replaced:
            rows = {key: row for key, row in self._there.rows.items() if key not in replaced}
            self._place.put(CATALOG, catalog_bytes(rows, self._there.tasks))

    def _name_arrays(self) -> None:
        """A spec there that names our arrays, whoever else is changing it at this moment."""
        name = f"{self._place.url}/zarr.json"
        for _ in range(_LOOKS):
            try:
                there = parse_spec(read_bounded(self._place, "zarr.json"), name=name)
            except MissingObjectError:
                new = joined_spec(None, self._spec, self._cache.spec)
                self._place.put("zarr.json", spec_bytes(new), only_new=True)
                continue
            wanted = self._joined(there)
            if wanted == there:
                return
            self._place.put("zarr.json", spec_bytes(wanted))

    def _copy(
        self,
        copies: Sequence[EntryCopy],
        tally: Tally,
        *,
        jobs: int,
        stop: threading.Event | None,
    ) -> list[str]:
        copied: list[str] = []
        jobs = 1 if self._place.commits else jobs  # commits at once would turn each other away
        parcels = list(
            parcels_of(
                copies,
                self._cache.backing,
                pack_bytes=self._pack_bytes,
                in_commits=self._place.commits,
            )
        )
        while parcels:
            again: list[Parcel] = []
            with contextlib.closing(
                at_once(lambda parcel: self._send(parcel, tally), parcels, jobs=jobs, stop=stop)
            ) as ended:
                for parcel, error in ended:
                    if error is None:
                        copied += [copy.record.id for copy in parcel.copies]
                    elif isinstance(error, UnsoundEntryError):
                        again += self._without(parcel, error)
                    else:
                        raise error
            parcels = again
        return copied

    def _without(self, parcel: Parcel, error: UnsoundEntryError) -> list[Parcel]:
        """What is left of a parcel that one of its entries has spoilt."""
        reason = first_line(error)
        self._failures.append(TransferFailure(id=error.entry_id, reason=reason))
        left = tuple(copy for copy in parcel.copies if copy.record.id != error.entry_id)
        return [replace(parcel, copies=left)] if left else []

    def _send(self, parcel: Parcel, tally: Tally) -> None:
        """All objects of a parcel, then its records."""
        with contextlib.ExitStack() as scratch:
            if parcel.packed:
                items, records = self._packed(parcel, scratch)
                found = 0 if items else parcel.num_bytes
            else:
                items, found = self._loose(parcel, scratch)
                records = [copy.record for copy in parcel.copies]
            self._place.put_many(items)
            self._place.put_many([(record_key(r.key), seal(r.to_json())) for r in records])
        moved = parcel.num_bytes - found
        tally.moved(found, found=True)
        tally.moved(moved, videos=len(parcel.copies))

    def _loose(
        self, parcel: Parcel, scratch: contextlib.ExitStack
    ) -> tuple[list[tuple[str, bytes | Path]], int]:
        """Objects to send, and the bytes of those that an earlier push has left there."""
        items: list[tuple[str, bytes | Path]] = []
        found = 0
        maybe_there = self._there is not None and not self._place.commits
        for copy in parcel.copies:
            items += self._new_groups(copy.record.key)
            for path in copy.paths:
                key, stored = f"{copy.record.folder}/{path}", copy.record.objects[path]
                large = stored.size > SMALL_BYTES
                if maybe_there and large and sent_before(self._place, key, stored):
                    found += stored.size
                else:
                    items.append((key, object_to_send(self._cache, copy.source, path, scratch)))
        return items, found

    def _packed(
        self, parcel: Parcel, scratch: contextlib.ExitStack
    ) -> tuple[list[tuple[str, bytes | Path]], list[EntryRecord]]:
        """One object of all entries. An earlier push may have left the very same one there."""
        by_id = {copy.record.id: copy.record for copy in parcel.copies}
        narrow = [
            replace(c.source, arrays=c.record.arrays, objects=c.record.objects)
            for c in parcel.copies
        ]
        records = [replace(by_id[record.id], pack=record.pack) for record in lay_out(narrow)]
        (key,) = {record.pack.path for record in records if record.pack is not None}
        if self._place.size(key) == sum(record.num_bytes for record in records):
            return [], records
        file, path = scratch.enter_context(scratch_file())
        write_pack(self._cache.backing, narrow, file)
        file.flush()
        with self._lock:
            self._num_packs += 1
        return [(key, path)], records

    def _new_groups(self, key: str) -> list[tuple[str, bytes | Path]]:
        """`zarr.json` of the folders above an entry, each once."""
        group = canonical_json(group_metadata({}))
        items: list[tuple[str, bytes | Path]] = []
        for folder in ("videos", f"videos/{fan(key)}"):
            with self._lock:
                new = folder not in self._groups
                self._groups.add(folder)
            if new:
                items.append((f"{folder}/zarr.json", group))
        return items

    def _copy_tables(self, references: Sequence[str]) -> list[str]:
        """Tables that are not there, or differ."""
        items: list[tuple[str, bytes | Path]] = []
        written = []
        for reference in references:
            try:
                data = seal(self._cache.task(reference).to_json())
            except CacheFormatError as error:
                self._failures.append(TransferFailure(id=None, reason=first_line(error)))
                continue
            try:
                same = read_bounded(self._place, table_key(reference)) == data
            except (MissingObjectError, CacheFormatError):
                same = False
            if not same:
                items.append((table_key(reference), data))
                written.append(reference)
        if items:
            self._place.put_many(items)
        return written

    def _finish(self, *, card: bool) -> None:
        """The README and the catalog of all that is there now, whoever has put it there."""
        self._name_arrays()
        there = read_contents(self._place)
        if card and self._may_write_card():
            self._place.put(CARD, card_for(there).encode())
        for _ in range(_LOOKS):
            self._place.put(CATALOG, catalog_bytes(there.rows, there.tasks))
            later = read_contents(self._place)
            if (later.rows, later.tasks) == (there.rows, there.tasks):
                return
            there = later  # another push has ended meanwhile, perhaps with an older catalog

    def _may_write_card(self) -> bool:
        try:
            return is_generated(read_bounded(self._place, CARD))
        except MissingObjectError:
            return True
        except CacheFormatError:
            return False


def _require_here(cache: Cache, place: Place) -> None:
    if isinstance(place, LocalPlace) and place.root.exists() and cache.path.samefile(place.root):
        raise UsageError(f"{cache.path} is the place itself; name another folder or URL")


def _require_no_others(place: Place) -> None:
    """UsageError where other things stand: a mistyped address must not be strewn with files."""
    if not place.can_list:
        return
    for found in place.list(""):
        if _OTHERS.fullmatch(found.key):
            continue
        if place.size("zarr.json") is None:  # else another push has begun at this moment
            raise UsageError(
                f"{place.url} holds other things ({found.key}) and no feature cache; name a new "
                "or empty folder"
            )
        return
