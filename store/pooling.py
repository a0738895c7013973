"""Pooled copies of the patch grid, added to a cache or taken away: `vis4mer cache pool`.

    pool_cache(open_cache("lvu.zarr"), (7, 4))    # views of 7 x 7 and 4 x 4 are cheap from now on

No video is touched and no stored token is changed. An entry gets a new attempt of hard links to its
files, with the new arrays beside them (see `replacement`):

    record ──> attempt A: patch, prefix           record ──> attempt B: patch, prefix   (linked)
                                         becomes                        grid7, grid4    (written)

A packed entry is copied out of its pack and is files of its own afterwards. Entries with and
without copies stand side by side: the cache's spec does not change, readers look at each record.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .cache import Cache
from .convert.arrays import block_bounds
from .errors import UsageError, Vis4merError, exit_code_of
from .files import StorageError
from .quantise import FIRST_FRAMES_INT8
from .records import EntryRecord, stored_arrays
from .replacement import OnEntry, current_record, rearranging, replace_attempt
from .spec import CacheSpec, require_writable
from .views import pool_grid
from .wording import first_line
from .writer import TokensWriter

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class PoolFailure:
    """A video whose copies could not be made, and why; it is as it was. id: `a record` of a damaged
    one, which does not say whose it is."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PoolSummary:
    """What a run of `pool_cache` did. unchanged: videos that were already as asked. num_bytes: of
    the copies added, or dropped (`gc` frees those). left: not looked at, because of a stop."""

    arrays: tuple[str, ...]
    dropped: bool
    changed: tuple[str, ...]
    unchanged: int
    failures: tuple[PoolFailure, ...]
    left: int
    num_bytes: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        return self.left > 0

    @property
    def exit_code(self) -> int:
        """0 when every video is as asked, 3 when some failed, 1 when all did or it was stopped."""
        done = bool(self.changed or self.unchanged)
        return exit_code_of(failed=self.failures, done=done, interrupted=self.interrupted)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "interrupted": self.interrupted, "exit_code": self.exit_code}


def pool_cache(
    cache: Cache,
    sides: Sequence[int],
    *,
    drop: bool = False,
    stop: threading.Event | None = None,
    progress: OnEntry | None = None,
) -> PoolSummary:
    """Give every entry average-pooled copies of these sides, or drop them. Again: goes on.

    A side that does not divide the grid gives the adaptive average of `pool_grid`. An entry that
    cannot be read, or that is replaced meanwhile, is a failure of its own. Raises UsageError for
    sides that this cache cannot have, StorageError when the file system refuses, Vis4merError while
    another process does this: of two at once, one would undo what the other committed.
    """
    arrays = _arrays_of(cache, sides, drop=drop)
    run = _Tally()
    started = time.monotonic()
    with rearranging(cache.path):
        ids, damaged = cache.readable_ids()
        run.failures += [PoolFailure(id="a record", reason=reason) for reason in damaged]
        for number, entry_id in enumerate(ids):
            if stop is not None and stop.is_set():
                run.left = len(ids) - number
                break
            if progress is not None:
                progress(number, len(ids), entry_id)
            run.take(cache, entry_id, arrays, drop=drop)
        if run.changed:
            cache.write_catalog()
    return PoolSummary(
        arrays=arrays,
        dropped=drop,
        changed=tuple(run.changed),
        unchanged=run.unchanged,
        failures=tuple(run.failures),
        left=run.left,
        num_bytes=run.num_bytes,
        seconds=time.monotonic() - started,
    )


@dataclass
class _Tally:
    changed: list[str] = field(default_factory=list)
    unchanged: int = 0
    failures: list[PoolFailure] = field(default_factory=list)
    left: int = 0
    num_bytes: int = 0

    def take(self, cache: Cache, entry_id: str, arrays: Sequence[str], *, drop: bool) -> None:
        """Bring one entry to what was asked."""
        try:
            old = current_record(cache, entry_id)
            wanted = [array for array in arrays if (array in old.token_arrays) == drop]
            if not wanted:
                self.unchanged += 1
                return
            new = without_copies(cache, old, wanted) if drop else with_copies(cache, old, wanted)
        except StorageError:  # the cache refuses, for every video
            raise
        except Vis4merError as error:
            self.failures.append(PoolFailure(id=entry_id, reason=first_line(error)))
        else:
            self.changed.append(entry_id)
            self.num_bytes += abs(new.num_bytes - old.num_bytes)


def with_copies(cache: Cache, old: EntryRecord, arrays: Sequence[str]) -> EntryRecord:
    """Add pooled copies to one entry: the record that stands afterwards."""
    spec = cache.spec
    if "patch" not in old.token_arrays:
        raise Vis4merError(
            f"video {old.id!r} in {cache.path} has no full grid to average; it holds "
            f"{', '.join(old.token_arrays)}"
        )

    def write(folder: Path) -> EntryRecord:
        tokens = TokensWriter(folder, spec)
        try:
            for frames in _pieces(old.num_frames, spec):
                patch = cache.read(old.id, "patch", frames)  # t h·w D
                for array in arrays:
                    pooled = spec.array_grid(array) or spec.grid
                    tokens.append(array, pool_grid(patch, spec.grid, pooled))
            records, objects = tokens.close()
        finally:
            tokens.abandon()
        return replace(old, arrays={**old.arrays, **records}, objects={**old.objects, **objects})

    return replace_attempt(cache, old, kept=old.objects, write=write)


def without_copies(cache: Cache, old: EntryRecord, arrays: Sequence[str]) -> EntryRecord:
    """Drop pooled copies of one entry: the record that stands afterwards."""
    gone = {name for array in arrays for name in stored_arrays(cache.spec, array)}
    objects = {
        path: stored for path, stored in old.objects.items() if path.partition("/")[0] not in gone
    }
    new = replace(
        old,
        arrays={name: array for name, array in old.arrays.items() if name not in gone},
        objects=objects,
    )
    return replace_attempt(cache, old, kept=objects, write=lambda _: new)


def _pieces(num_frames: int, spec: CacheSpec) -> Iterator[range]:
    """All frames in pieces that fit into memory; int8 begins as an extraction does."""
    frame_bytes = 4 * spec.tokens_per_frame("patch") * spec.dim
    first = FIRST_FRAMES_INT8 if spec.stored_dtype == "int8" else None
    bounds = block_bounds(num_frames, frames=max(1, _BLOCK_BYTES // frame_bytes), first=first)
    return (range(start, stop) for start, stop in bounds)


def _arrays_of(cache: Cache, sides: Sequence[int], *, drop: bool) -> tuple[str, ...]:
    """`gridN` for each side; UsageError unless this cache may have them, or lose them."""
    spec = cache.spec
    require_writable(spec, spec, name=str(cache.path))
    if not sides:
        raise UsageError("no side of a pooled grid is given; expected such as 7 or 7,4")
    arrays = tuple(dict.fromkeys(f"grid{side}" for side in sides))
    for side, array in zip(dict.fromkeys(sides), arrays, strict=True):
        if not 1 <= side <= min(spec.grid) or (side, side) == spec.grid:
            height, width = spec.grid
            raise UsageError(
                f"a pooled grid of {side}x{side}: the full grid of {cache.path} is "
                f"{height}x{width}; expected sides from 1 to {min(height, width)} that are smaller"
            )
        if drop and array in spec.arrays:
            raise UsageError(
                f"{array} is one of the arrays that {cache.path} was extracted with, not a copy "
                "that was added; it cannot be dropped"
            )
    if not drop and "patch" not in spec.arrays:
        raise UsageError(
            f"{cache.path} holds {', '.join(spec.arrays)} and no full grid to average; extract the "
            "videos again with these --grids"
        )
    return arrays
