"""Mending one entry that is not as its record says: metadata, a mirror's copy, fewer copies, none.

Everything is looked at again right before it is touched: the check that has found it may be hours
old, and extraction goes on meanwhile. What only cannot be read at the moment is left as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache import Cache
from ..errors import CacheFormatError, EntryNotFoundError, Vis4merError
from ..pooling import without_copies
from ..records import EntryRecord, stored_arrays
from ..replacement import current_record
from ..standing import remove_standing, stands
from ..verify import Problem, entry_problems
from .lost import lost_metadata
from .steps import Mending, holds, raise_refusal


@dataclass
class EntryMender:
    """Mends entries, one after another."""

    run: Mending

    def mend(self, entry_id: str) -> None:
        """Mend an entry that was not sound, if it still is not."""
        try:
            record = current_record(self.run.cache, entry_id)
        except EntryNotFoundError:  # removed meanwhile
            return
        except CacheFormatError:
            self.run.say(entry_id, "left", "its record was damaged meanwhile; check again")
            return
        problems = list(entry_problems(self.run.cache.backing, record, "full"))
        if not problems:  # made anew meanwhile
            return
        unclear = [problem.reason for problem in problems if not problem.is_damage]
        if unclear:
            self.run.say(entry_id, "left", f"what cannot be read may be sound: {unclear[0]}")
            return
        self._mend(record, problems)

    def _mend(self, record: EntryRecord, problems: Sequence[Problem]) -> None:
        reason = problems[0].reason
        rest = self._mend_metadata(record, problems)
        if not rest:
            self.run.say(record.id, "mended", f"its metadata, written anew: {reason}")
        elif not (self._copy_values(record, reason) or self._drop_copies(record, rest, reason)):
            self._drop(record, reason)

    def _mend_metadata(self, record: EntryRecord, problems: Sequence[Problem]) -> list[Problem]:
        """Write metadata whose recorded bytes can be told without it; what is bad then."""
        known = {
            problem.path: data
            for problem in problems
            if problem.path is not None
            and (data := lost_metadata(self.run.cache, record, problem.path)) is not None
        }
        written = {
            p for p, data in known.items() if self.run.write(Path(record.folder, p or ""), data)
        }
        if self.run.dry_run or not written:
            return [problem for problem in problems if problem.path not in written]
        return list(entry_problems(self.run.cache.backing, record, "full"))

    def _copy_values(self, record: EntryRecord, reason: str) -> bool:
        """The same values, from the first mirror that has them all."""
        for mirror in self.run.mirrors:
            with contextlib.suppress(CacheFormatError, EntryNotFoundError):
                theirs = mirror.record(record.id)
                if not holds(theirs, record):
                    continue
                objects = {
                    path: stored
                    for path, stored in theirs.objects.items()
                    if path == "zarr.json" or path.partition("/")[0] in record.arrays
                }
                arrays = {name: theirs.arrays[name] for name in record.arrays}
                new = replace(record, arrays=arrays, objects=objects, pack=None)
                if self.run.copy(mirror, theirs, new, over=record, reason=reason):
                    return True
        return False

    def _drop_copies(self, record: EntryRecord, problems: Sequence[Problem], reason: str) -> bool:
        """Let pooled copies go where nothing else is bad; `pool` makes them again."""
        copies = _bad_copies(self.run.cache, record, problems)
        if not copies:
            return False
        try:
            if not self.run.dry_run:
                without_copies(self.run.cache, record, copies)
        except Vis4merError as error:
            raise_refusal(error)
            return False
        self.run.say(record.id, "dropped copies", f"{', '.join(copies)}: {reason}", copies=copies)
        return True

    def _drop(self, record: EntryRecord, reason: str) -> None:
        """Let an entry go, so that it is extracted again; its bytes go with a later `gc`."""
        cache = self.run.cache
        if not stands(cache, record):  # a mirror's copy may have taken its time
            self.run.say(record.id, "left", "it was removed or replaced meanwhile; check again")
            return
        self.run.record_failure(record.id, record.source, reason)
        if not self.run.dry_run and not remove_standing(cache, record):
            cache.clear_failure(record.id)
            self.run.say(record.id, "left", "it was removed or replaced meanwhile; check again")
            return
        copies = self.run.copies_of(record)
        self.run.say(record.id, "dropped", reason, source=record.source, copies=copies)


def _bad_copies(cache: Cache, record: EntryRecord, problems: Sequence[Problem]) -> tuple[str, ...]:
    """The pooled copies at fault; none when anything else is, for then the entry is not whole."""
    added = [array for array in record.token_arrays if array not in cache.spec.arrays]
    array_of = {name: array for array in added for name in stored_arrays(cache.spec, array)}
    bad = {array_of.get((problem.path or "").partition("/")[0]) for problem in problems}
    if None in bad or bad >= set(record.token_arrays):
        return ()
    return tuple(array for array in added if array in bad)
