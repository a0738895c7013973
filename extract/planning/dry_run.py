"""What an extraction would do and take: videos, hours, frames, bytes, files. Writes nothing.

Videos that a dataset names and that have no file are counted beside those that would be extracted,
by their annotated length, so that a disk can be chosen before anything is downloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...store.cache import Cache
from ...store.errors import CacheFormatError
from ...store.failures import FailureRecord
from ...store.records import frame_cost
from ...store.sizing import StoredSize, empty_cache_size, entries_size
from ...store.spec import CacheSpec, Sampling, StoredDtype
from ...store.tasks import TaskTable
from ...store.wording import first_line
from ..readers.base import Reader, VideoError
from ..sources import VideoSource
from .lengths import Length, Lengths
from .plan import Decision, SourceError, decide, failures_to_keep, look_at

if TYPE_CHECKING:
    from .probe import ProbeResult

_POOLED = 7  # side of the copy that stands for a cache without the full grid


@dataclass(frozen=True, kw_only=True)
class Amount:
    """Videos, how long they last together, and the frames of tokens they give."""

    videos: int
    seconds: float
    frames: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What one way of storing takes. chosen: the one that this request asks for.

    bytes_per_frame: of tokens and scales alone. to_extract, missing: of those videos' entries.
    """

    stored_dtype: StoredDtype
    arrays: tuple[str, ...]
    chosen: bool
    bytes_per_frame: int
    to_extract: StoredSize
    missing: StoredSize

    @property
    def all(self) -> StoredSize:
        """What it takes when the missing videos have come."""
        return self.to_extract + self.missing


@dataclass(frozen=True, kw_only=True)
class ExtractPlan:
    """What a run would do; every video asked for is in exactly one of the first seven.

    to_extract: ids in order. unreadable: id → reason. left: after the last that `limit` lets the
    run attempt, not looked at; some may be in the cache already. missing: ids without a file, of a
    dataset that is known by name.

    present, absent: of those to extract, and of the missing ones whose length is annotated.
    num_opened: files opened for their length; added_seconds: by how much annotated ones among them
    are longer than annotated (median), which is added to the others where frames are taken at a
    fixed rate. profiles: ways of storing, this request's first. free_bytes: on the disk the cache
    is, or would be, on. probe: None when nothing was tried.
    """

    to_extract: tuple[str, ...]
    already_there: int
    changed: tuple[str, ...]
    known_failures: tuple[FailureRecord, ...]
    unreadable: Mapping[str, str]
    left: int
    missing: tuple[str, ...]
    sampling: Sampling
    present: Amount
    absent: Amount
    num_opened: int
    added_seconds: float | None
    profiles: tuple[Profile, ...]
    free_bytes: int
    notes: tuple[str, ...] = ()
    probe: ProbeResult | None = None

    @property
    def frames(self) -> int:
        return self.present.frames

    @property
    def num_bytes(self) -> int:
        return self.profiles[0].to_extract.num_bytes

    @property
    def num_objects(self) -> int:
        return self.profiles[0].to_extract.num_objects

    @property
    def hours(self) -> float | None:
        """Of extraction, by the probe; None without one."""
        return None if self.probe is None else self.probe.hours(self.present.frames)

    @property
    def hours_with_missing(self) -> float | None:
        if self.probe is None:
            return None
        return self.probe.hours(self.present.frames + self.absent.frames)

    def to_json(self) -> dict[str, Any]:
        """All of it, with the figures that follow from it."""
        derived = {
            "frames": self.frames,
            "num_bytes": self.num_bytes,
            "num_objects": self.num_objects,
            "hours": self.hours,
            "hours_with_missing": self.hours_with_missing,
        }
        return {**asdict(self), **derived}


def plan_extraction(
    sources: Sequence[VideoSource],
    *,
    spec: CacheSpec,
    cache: Cache | None,
    cache_path: Path,
    reader: Reader,
    limit: int | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    missing: Sequence[str] = (),
    durations: Mapping[str, float] | None = None,
    tables: Sequence[TaskTable] = (),
) -> ExtractPlan:
    """What `fill_cache` would do. Writes nothing and decodes nothing.

    cache: None when it does not exist yet. limit: as there, of videos attempted, which are those to
    extract and those that turn out to be unreadable. A video is `unreadable` when it has no file,
    when the reader refuses to open it, or when what the cache says of it is damaged. durations: id
    → annotated seconds of videos with and without a file. tables: that the run would write.
    """
    stated = durations or {}
    known = failures_to_keep(cache) if cache is not None and not retry_failed else {}
    num_annotated = sum(video.id in stated for video in sources)
    lengths = Lengths(spec.sampling, reader, durations=stated, num_annotated=num_annotated)
    found = _Sorting()
    for video in sources:
        if limit is not None and found.num_attempted >= limit:
            found.left += 1
            continue
        try:
            decision = _decide_or_new(video, cache, known_failures=known, overwrite=overwrite)
            if decision.action == "extract":
                lengths.look(video)
            found.put(video.id, decision)
        except SourceError as error:
            found.unreadable[video.id] = str(error)
        except CacheFormatError as error:
            found.unreadable[video.id] = first_line(error)
        except VideoError as error:
            found.unreadable[video.id] = error.reason
    present, absent = lengths.found(), lengths.of_missing(missing)
    return ExtractPlan(
        to_extract=tuple(found.to_extract),
        already_there=found.already_there,
        changed=tuple(found.changed),
        known_failures=tuple(found.failures),
        unreadable=found.unreadable,
        left=found.left,
        missing=tuple(missing),
        sampling=spec.sampling,
        present=_amount(present),
        absent=_amount(absent),
        num_opened=lengths.num_opened,
        added_seconds=lengths.added_seconds,
        profiles=_profiles(spec, present, absent, tables if cache is None else None),
        free_bytes=shutil.disk_usage(_existing(cache_path)).free,
    )


@dataclass(kw_only=True)
class _Sorting:
    """The videos looked at so far, each in one place; see `ExtractPlan`."""

    to_extract: list[str] = field(default_factory=list)
    already_there: int = 0
    changed: list[str] = field(default_factory=list)
    failures: list[FailureRecord] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    left: int = 0

    @property
    def num_attempted(self) -> int:
        return len(self.to_extract) + len(self.unreadable)

    def put(self, video_id: str, decision: Decision) -> None:
        if decision.action == "done":
            self.already_there += 1
        elif decision.action == "changed":
            self.changed.append(video_id)
        elif decision.failure is not None:
            self.failures.append(decision.failure)
        else:
            self.to_extract.append(video_id)


def _decide_or_new(
    video: VideoSource,
    cache: Cache | None,
    *,
    known_failures: Mapping[str, FailureRecord],
    overwrite: bool,
) -> Decision:
    if cache is None:
        return Decision(action="extract", file=look_at(video.path))
    return decide(video, cache, known_failures=known_failures, overwrite=overwrite)


def _amount(found: Mapping[str, Length]) -> Amount:
    return Amount(
        videos=len(found),
        seconds=sum(length.seconds for length in found.values()),
        frames=sum(length.frames for length in found.values()),
    )


def _profiles(
    spec: CacheSpec,
    present: Mapping[str, Length],
    absent: Mapping[str, Length],
    tables: Sequence[TaskTable] | None,
) -> tuple[Profile, ...]:
    """What each way of storing takes. tables: of a cache that is yet to be made, None for one that
    is there."""
    profiles = []
    for way in _ways(spec):
        own = StoredSize() if tables is None else empty_cache_size(way, tables)
        profiles.append(
            Profile(
                stored_dtype=way.stored_dtype,
                arrays=way.arrays,
                chosen=way == spec,
                bytes_per_frame=sum(frame_cost(way, array) for array in way.arrays),
                to_extract=entries_size(way, _frames(present)) + own,
                missing=entries_size(way, _frames(absent)),
            )
        )
    return tuple(profiles)


def _ways(spec: CacheSpec) -> list[CacheSpec]:
    """The spec itself, then the others of float16 and int8, with and without the full grid."""
    pooled = [array for array in spec.arrays if array not in ("patch", "prefix")]
    if not pooled and min(spec.grid) > _POOLED:
        pooled = [f"grid{_POOLED}"]
    copies = [array for array in spec.arrays if array != "patch"]
    kept = [("patch", *copies)] + ([("prefix", *pooled)] if pooled else [])
    dtypes: tuple[StoredDtype, ...] = ("float16", "int8")
    ways = [replace(spec, stored_dtype=dtype, arrays=arrays) for dtype in dtypes for arrays in kept]
    return [spec, *(way for way in ways if way != spec)]


def _frames(found: Mapping[str, Length]) -> dict[str, int]:
    return {video_id: length.frames for video_id, length in found.items()}


def _existing(path: Path) -> Path:
    """The nearest directory above (or at) `path` that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
