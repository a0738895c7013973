"""What several processes have done together, as one snapshot and one summary.

Knows nothing of how they were started, nor of videos beyond their ids.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ...store.cache import Cache
from ...store.errors import CacheFormatError, EntryNotFoundError
from ...store.failures import FailureRecord
from ..stages.progress import ExtractProgress, ExtractSummary, HeldVideos
from ..stages.steps import STAGES, StageName

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is known of one process. summary: None when it ended without one; progress: the last."""

    pid: int | None
    progress: ExtractProgress | None = None
    summary: ExtractSummary | None = None


@dataclass(frozen=True, kw_only=True)
class Outset:
    """The work as it was before. ids: all that were asked for. attempts: of the videos among them
    that the cache had, by id. overwrite: whether these are to be extracted again."""

    ids: tuple[str, ...]
    attempts: Mapping[str, str]
    overwrite: bool

    @property
    def num_skipped(self) -> int:
        return 0 if self.overwrite else len(self.attempts)

    def is_settled(self, video_id: str, attempt: str | None) -> bool:
        """Is there nothing left to do for a video that the cache has in this attempt, or not?"""
        return attempt is not None and (
            not self.overwrite or attempt != self.attempts.get(video_id)
        )


def attempts_of(cache: Cache | None, ids: Iterable[str]) -> dict[str, str]:
    """The attempt that the cache has of each video, without those that it has not. What is damaged
    is met again by the process that comes to it."""
    found = {}
    if cache is not None:
        for video_id in ids:
            try:
                found[video_id] = cache.record(video_id).attempt
            except (EntryNotFoundError, CacheFormatError):
                continue
    return found


def progress_together(parts: Sequence[Part], outset: Outset) -> ExtractProgress | None:
    """One snapshot of all; None before any process has said something."""
    known = [part.progress for part in parts if part.progress is not None]
    if not known:
        return None
    extracted, failed = sum(each.extracted for each in known), sum(each.failed for each in known)
    left = len(outset.ids) - extracted - failed
    return ExtractProgress(
        num_videos=len(outset.ids),
        extracted=extracted,
        skipped=max(0, min(outset.num_skipped, left)),
        failed=failed,
        frames=sum(each.frames for each in known),
        seconds=max(each.seconds for each in known),
        busy_share={
            stage: sum(each.busy_share[stage] for each in known) / len(known) for stage in STAGES
        },
        reading=tuple(sorted(name for each in known for name in each.reading)),
    )


def summary_together(
    parts: Sequence[Part], outset: Outset, attempts: Mapping[str, str], *, stopped: bool
) -> ExtractSummary:
    """One summary of all: every video in exactly one of its counts.

    attempts: what the cache has in the end. stopped: was any process told to stop, or did it die?
    Of one that died, extracted videos and frames are what it had told last.
    """
    known = [part.summary for part in parts if part.summary is not None]
    told = [part.summary or part.progress for part in parts]
    settled = {each for each in outset.ids if outset.is_settled(each, attempts.get(each))}
    failures = _by_id(f for each in known for f in each.failures if f.id not in settled)
    known_failures = _by_id(
        f for each in known for f in each.known_failures if f.id not in {*settled, *failures}
    )
    changed = {name for each in known for name in each.changed}
    held = _held_by_others(parts, without={*settled, *failures, *known_failures})
    extracted = min(len(settled - changed), sum(each.extracted for each in told if each))
    done = settled | changed | failures.keys() | known_failures.keys()
    left = len(outset.ids) - len(done) - sum(len(each.ids) for each in held)
    return ExtractSummary(
        num_videos=len(outset.ids),
        extracted=extracted,
        already_there=len(settled - changed) - extracted,
        changed=tuple(sorted(changed)),
        failures=tuple(failures.values()),
        known_failures=tuple(known_failures.values()),
        damaged=_each_once(video for each in known for video in each.damaged),
        left=left,
        frames=sum(each.frames for each in told if each),
        seconds=max((each.seconds for each in told if each), default=0.0),
        busy_seconds=_added({s: each.busy_seconds[s] for s in STAGES} for each in known),
        threads={s: sum(each.threads[s] for each in known) for s in STAGES},
        interrupted=any(each.interrupted for each in known) or (stopped and left > 0),
        held=held,
        missing=_each_once(name for each in known for name in each.missing),
        beyond=_each_once(label for each in known for label in each.beyond),
        notes=_each_once(note for each in known for note in each.notes),
    )


def _held_by_others(parts: Sequence[Part], *, without: Collection[str]) -> tuple[HeldVideos, ...]:
    """What processes that are none of these had in hand, as it was last seen."""
    ours = {(platform.node(), part.pid) for part in parts}
    last = {
        video_id: held
        for part in parts
        if part.summary is not None
        for held in part.summary.held
        for video_id in held.ids
        if (held.host, held.pid) not in ours and video_id not in without
    }
    holders = {(held.host, held.pid): held for held in last.values()}
    return tuple(
        replace(held, ids=tuple(sorted(v for v, by in last.items() if (by.host, by.pid) == name)))
        for name, held in holders.items()
    )


def _by_id(failures: Iterable[FailureRecord]) -> dict[str, FailureRecord]:
    return {failure.id: failure for failure in sorted(failures, key=lambda each: each.id)}


def _each_once(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


def _added(parts: Iterable[Mapping[StageName, float]]) -> dict[StageName, float]:
    total: dict[StageName, float] = dict.fromkeys(STAGES, 0.0)
    for part in parts:
        for stage in STAGES:
            total[stage] += part[stage]
    return total
