"""What travels together on a push: entries whose objects make one pack, or go one after another.

Reads which entries may lie in packs, and nothing of the place but whether it takes many objects at
once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..backing import Backing
from ..errors import DamagedEntryError
from ..packs import is_packable, plan_packs
from .plan import EntryCopy

_MANY = 256  # loose entries in one commit
_MANY_BYTES = 2_000_000_000


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """Entries that travel together: their objects, then their records. packed: in one object."""

    copies: tuple[EntryCopy, ...]
    packed: bool = False

    @property
    def num_bytes(self) -> int:
        return sum(copy.num_bytes for copy in self.copies)


def parcels_of(
    copies: Sequence[EntryCopy], backing: Backing, *, pack_bytes: int | None, in_commits: bool
) -> Iterator[Parcel]:
    """All copies: packs of about `pack_bytes` first, if any are made; loose is what cannot be
    packed or widens a loose entry there. in_commits: many loose entries together, for a place that
    takes many objects in one commit."""
    packable = set() if pack_bytes is None else _packable(copies, backing)
    if pack_bytes is not None:
        by_key = {copy.record.key: copy for copy in copies if copy.record.key in packable}
        for records in plan_packs([c.record for c in by_key.values()], pack_bytes):
            yield Parcel(copies=tuple(by_key[record.key] for record in records), packed=True)
    large_first = sorted(copies, key=lambda copy: -copy.num_bytes)  # so that none is waited for
    loose = [copy for copy in large_first if copy.record.key not in packable]
    yield from _loose(loose, in_commits=in_commits)


def _loose(copies: Sequence[EntryCopy], *, in_commits: bool) -> Iterator[Parcel]:
    most, most_bytes = (_MANY, _MANY_BYTES) if in_commits else (1, 0)
    parcel = Parcel(copies=())
    for copy in copies:
        if parcel.copies and (len(parcel.copies) == most or parcel.num_bytes > most_bytes):
            yield parcel
            parcel = Parcel(copies=())
        parcel = Parcel(copies=(*parcel.copies, copy))
    if parcel.copies:
        yield parcel


def _packable(copies: Sequence[EntryCopy], backing: Backing) -> set[str]:
    """The keys of what may lie in packs; also of damaged entries, which fail on the way."""
    keys: set[str] = set()
    for copy in copies:
        with contextlib.suppress(DamagedEntryError):
            if copy.extends or not is_packable(backing, copy.source):
                continue
        keys.add(copy.record.key)
    return keys
