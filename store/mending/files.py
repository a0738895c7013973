"""Mending files that are no entry's objects: records, groups, task tables, notes of failures.

Each is read again right before it is touched: the check that has found it may be hours old. What is
sound by then, or gone, is passed by; what only cannot be read at the moment is left as it is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..directory import spec_bytes
from ..errors import CacheFormatError, EntryNotFoundError, UsageError
from ..failures import FailureRecord
from ..files import canonical_json, read_sealed_in
from ..keys import KEY_PATTERN, entry_key, fan
from ..layout import group_metadata
from ..records import RECORDS, EntryRecord, record_path
from ..standing import replace_damaged
from ..verify import entry_problems, is_refusal, read_record, require_group
from .lost import id_of_attempts, is_sealed, known_records, stray_record
from .steps import Mending, holds

State = Literal["sound", "damaged", "missing", "unclear"]


@dataclass
class FileMender:
    """Mends files, one after another. known: records that the cache once had, by key."""

    run: Mending
    known: dict[str, list[EntryRecord]] = field(init=False)

    def __post_init__(self) -> None:
        self.known = known_records(self.run.cache)

    def mend(self, path: Path, reason: str) -> None:
        """Mend a file, named relative to the cache, that was not sound, if it still is not."""
        state, room = self._state(path), path.parts[0] if path.parts else ""
        is_group = path == Path("zarr.json") or room == "videos"
        if state == "sound" or (state == "missing" and not is_group):
            return
        if state == "unclear":
            self.run.say(None, "left", f"what cannot be read may be sound: {reason}")
        elif room == RECORDS:
            self._mend_record(self.run.cache.path / path, reason)
        elif room == "tasks":
            self._mend_table(path, reason)
        elif path == Path("zarr.json") and self.run.write(path, spec_bytes(self.run.cache.spec)):
            self.run.say(None, "rebuilt", f"the cache's own group: {reason}")
        elif room == "videos" and self.run.write(path, canonical_json(group_metadata({}))):
            self.run.say(None, "rebuilt", f"the group {path}: {reason}")
        elif room == "failures" and self.run.remove(path):
            self.run.say(None, "removed", f"{path}, which told of a failure: {reason}")
        else:
            self.run.say(None, "left", reason)

    def _state(self, path: Path) -> State:
        """What is the case with a file now."""
        try:
            self._require_sound(path)
        except FileNotFoundError:
            return "missing"
        except (CacheFormatError, UsageError):
            return "damaged"
        except OSError as error:
            return "unclear" if is_refusal(error) else "damaged"
        return "sound"

    def _require_sound(self, path: Path) -> None:
        cache, file = self.run.cache, self.run.cache.path / path
        room = path.parts[0] if path.parts else ""
        if room == RECORDS:
            read_record(file, cache)
        elif room == "tasks":
            read_sealed_in(cache.path, file)
            cache.task(_reference(path))
        elif room == "failures":
            FailureRecord.from_json(read_sealed_in(cache.path, file), name=str(file))
        else:
            require_group(cache.path, file)

    def _mend_table(self, path: Path, reason: str) -> None:
        """A task table from a mirror, or none; `label` writes it again."""
        reference = _reference(path)
        for mirror in self.run.mirrors:
            with contextlib.suppress(UsageError, CacheFormatError):  # it has none, or a bad one
                table = mirror.task(reference)
                if not self.run.dry_run:
                    self.run.cache.save_task(table)
                self.run.say(None, "copied", f"task {reference} from {mirror.name}: {reason}")
                return
        if is_sealed(self.run.cache.path / path) or not self.run.remove(path):
            self.run.say(None, "left", f"{reason}; `vis4mer label` makes it again")
            return
        self.run.say(None, "removed", f"task {reference}; `vis4mer label` makes it again: {reason}")

    # Records ------------------------------------------------------------------------------------

    def _mend_record(self, path: Path, reason: str) -> None:
        """A file that is not the record of its name: put that one in its place, or let it go."""
        key = path.stem
        if not KEY_PATTERN.fullmatch(key) or fan(key) != path.parent.name or path.is_dir():
            self.run.say(None, "left", f"{reason}; no record of this cache has such a name")
            return
        stray = stray_record(self.run.cache, path)
        if stray is not None and not record_path(self.run.cache.path, stray.key).exists():
            self._restore(stray, reason)
        known = self.known.get(key, [])
        lost = known[0] if known else None
        if any(self._restore(record, reason) for record in known):
            return
        if self._copy_lost(key, lost, reason):
            return
        if self._state(path.relative_to(self.run.cache.path)) != "damaged":  # made anew meanwhile
            return
        if any(self._is_unclear(record) for record in known):
            self.run.say(None, "left", f"{reason}; what it listed cannot be read at the moment")
        elif stray is None and is_sealed(path):
            self.run.say(
                None,
                "left",
                f"{reason}; its checksum is right, so a newer version may have written it (delete "
                "the file to have its video extracted again)",
            )
        else:
            self._drop(path, lost, reason)

    def _drop(self, path: Path, lost: EntryRecord | None, reason: str) -> None:
        """Let a damaged record go, so that its video is extracted again."""
        cache, place = self.run.cache, path.relative_to(self.run.cache.path)
        source = lost.source if lost else None
        lost_id = lost.id if lost else id_of_attempts(cache, path.stem)
        if lost_id is not None:
            self.run.record_failure(lost_id, source, reason)
        if self._state(place) == "sound":  # made anew in this moment
            if lost_id is not None:
                cache.clear_failure(lost_id)
            return
        self.run.remove(place)
        copies = self.run.copies_of(lost)
        self.run.say(lost_id, "dropped", reason, source=source, copies=copies)

    def _restore(self, record: EntryRecord, reason: str) -> bool:
        """Put a record back if everything that it lists is sound."""
        cache = self.run.cache
        if any(entry_problems(cache.backing, record, "full")):
            return False
        if record_path(cache.path, record.key).is_dir():
            return False
        if not self.run.dry_run and replace_damaged(cache, record) is not record:
            return True  # made anew meanwhile
        self.run.say(record.id, "restored", f"its record; all that it lists is sound: {reason}")
        return True

    def _is_unclear(self, record: EntryRecord) -> bool:
        problems = entry_problems(self.run.cache.backing, record, "full")
        return any(not problem.is_damage for problem in problems)

    def _copy_lost(self, key: str, lost: EntryRecord | None, reason: str) -> bool:
        """An entry without a record, from a mirror; lost: what that record said, if it is known."""
        for mirror in self.run.mirrors:
            with contextlib.suppress(CacheFormatError, EntryNotFoundError):
                ids, _ = mirror.readable_ids()
                entry_id = next((i for i in ids if entry_key(i) == key), None)
                theirs = mirror.record(entry_id) if entry_id is not None else None
                if theirs is None or (lost is not None and not holds(theirs, lost)):
                    continue
                new = replace(theirs, pack=None)
                if self.run.copy(mirror, theirs, new, over=None, reason=reason):
                    return True
        return False


def _reference(path: Path) -> str:
    """The task whose table a file is."""
    return "/".join(path.with_suffix("").parts[1:])
