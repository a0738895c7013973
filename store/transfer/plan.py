"""What a copy of an entry takes, given what already stands at the target: index work alone.

    source: attempt B, patch + grid7         at the target: attempt A, patch
    the same patch values?  yes              the record there becomes attempt A, patch + grid7
                            no               …                        attempt B, patch + grid7

An attempt's objects never change, so one that stands may get more arrays and never other ones;
values that are there, under whatever attempt, are not moved again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..files import canonical_json
from ..records import EntryRecord

_ATTEMPT_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class EntryCopy:
    """One entry to copy. source: its record there. record: as it will stand here, loose. paths: of
    objects to move, the small ones first. standing: the record that is here now, if any."""

    source: EntryRecord
    record: EntryRecord
    paths: tuple[str, ...]
    standing: EntryRecord | None = None

    @property
    def num_bytes(self) -> int:
        return sum(self.record.objects[path].size for path in self.paths)

    @property
    def extends(self) -> bool:
        """Whether arrays join those that stand here."""
        return self.standing is not None and self.record.attempt == self.standing.attempt

    @property
    def replaces(self) -> bool:
        """Whether other values of this video stand here now."""
        return self.standing is not None and not self.extends


def plan_copy(
    source: EntryRecord, wanted: EntryRecord, standing: EntryRecord | None
) -> EntryCopy | None:
    """How `wanted`, a part or all of `source`, comes to stand where `standing` does; None when its
    values are there already."""
    record = replace(wanted, pack=None)
    paths = set(record.objects)
    if standing is not None:
        if holds_values(standing, wanted):
            return None
        if standing.pack is None and _agree(standing, wanted):
            more = wanted.arrays.keys() - standing.arrays.keys()
            paths = {path for path in paths if path.partition("/")[0] in more}
            record = replace(
                standing,
                arrays={**standing.arrays, **{name: wanted.arrays[name] for name in more}},
                objects={**standing.objects, **{path: wanted.objects[path] for path in paths}},
            )
        elif standing.attempt == wanted.attempt:
            record = replace(record, attempt=_another_attempt(record))
    small_first = sorted(paths, key=lambda path: (record.objects[path].size, path))
    return EntryCopy(source=source, record=record, paths=tuple(small_first), standing=standing)


def holds_values(standing: EntryRecord, wanted: EntryRecord) -> bool:
    """Whether a record has all the values of another: frames, times and arrays."""
    return _same_times(standing, wanted) and _digests(wanted).items() <= _digests(standing).items()


def _agree(standing: EntryRecord, wanted: EntryRecord) -> bool:
    """Are both of the same video, with equal values wherever both have an array?"""
    shared = standing.arrays.keys() & wanted.arrays.keys()
    ours, theirs = _digests(standing), _digests(wanted)
    alike = all(ours[name] == theirs[name] for name in shared)
    same_file = bool(shared) or standing.source.sha256 == wanted.source.sha256
    return alike and same_file and _same_times(standing, wanted)


def _another_attempt(record: EntryRecord) -> str:
    """A name for objects that are not those of the attempt of that name here: two caches came to
    different objects under one. The same objects get the same name again."""
    objects = [[path, each.size, each.crc32c] for path, each in sorted(record.objects.items())]
    content = canonical_json([record.attempt, objects, sorted(_digests(record).items())])
    return hashlib.sha256(content).hexdigest()[:_ATTEMPT_DIGITS]


def _same_times(standing: EntryRecord, wanted: EntryRecord) -> bool:
    return (standing.pts_seconds, standing.duration_seconds) == (
        wanted.pts_seconds,
        wanted.duration_seconds,
    )


def _digests(record: EntryRecord) -> Mapping[str, str]:
    return {name: array.sha256 for name, array in record.arrays.items()}
