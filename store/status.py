"""Who is doing what in a cache at this moment, and what is done: reads, and writes nothing.

A `StatusWatch` looks again and again, for only over time does it show who still gives a sign of
life.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .cache import Cache
from .catalog import CATALOG
from .claims import list_claims
from .records import RECORDS
from .workers import Lookout, Sign, list_workers

# Claims that are of no video (`Claims.take_chore`), in words.
CHORES = {CATALOG: "the catalog"}
WorkerState = Literal["working", "idle", "silent", "gone"]


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """One worker as it was seen. host, pid, started: as it says itself, by its own clock; None when
    its file is missing or damaged. beat: how often it gave a sign.

    videos: ids that it holds. chores: what it does for all, in words. silent_seconds: for how long
    this process has seen no sign of it, 0 at the first look. state: `gone` when its process has
    ended, which shows on its own machine only; `silent` when others may take what it holds.
    """

    token: str
    host: str | None
    pid: int | None
    started: str | None
    beat: int | None
    videos: tuple[str, ...]
    chores: tuple[str, ...]
    silent_seconds: float
    state: WorkerState


@dataclass(frozen=True, kw_only=True)
class CacheStatus:
    """num_videos: entries that are there, by the names of their records, which are not read: a
    damaged one counts, and `verify` tells it. num_failures: videos that could not be extracted.
    watched_seconds: since the first look. workers: without those that have ended and hold nothing,
    which `gc` clears away. damaged_claims: names of claims that do not say whose they are; whoever
    meets one takes it over ten minutes later."""

    path: Path
    num_videos: int
    num_failures: int
    watched_seconds: float
    workers: tuple[WorkerStatus, ...]
    damaged_claims: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


class StatusWatch:
    """Looks at a cache again and again; who gives no sign shows only over time."""

    def __init__(self, cache: Cache, *, lookout: Lookout | None = None) -> None:
        self._root = cache.path
        self._lookout = lookout or Lookout(cache.path)
        self._first: float | None = None

    def look(self) -> CacheStatus:
        """What is to be seen now. Look every half minute: a longer pause counts as a minute."""
        now = self._lookout.now()
        self._first = now if self._first is None else self._first
        held: dict[str, list[str]] = {token: [] for token in list_workers(self._root)}
        damaged = []
        for claim in list_claims(self._root):
            if claim.id is None:
                damaged.append(claim.path.name)
            else:
                held.setdefault(claim.worker, []).append(claim.id)
        signs = [(self._lookout.look(token), videos) for token, videos in held.items()]
        return CacheStatus(
            path=self._root,
            num_videos=_count(self._root / RECORDS),
            num_failures=_count(self._root / "failures"),
            watched_seconds=now - self._first,
            workers=tuple(_worker(*seen) for seen in signs if seen[1] or not seen[0].lapsed),
            damaged_claims=tuple(damaged),
        )


def _worker(sign: Sign, held: list[str]) -> WorkerStatus:
    worker = sign.worker
    return WorkerStatus(
        token=sign.token,
        host=worker.host if worker else None,
        pid=worker.pid if worker else None,
        started=worker.started if worker else None,
        beat=worker.beat if worker else None,
        videos=tuple(sorted(each for each in held if each not in CHORES)),
        chores=tuple(CHORES[each] for each in held if each in CHORES),
        silent_seconds=sign.silent_seconds,
        state=_state(sign, held),
    )


def _state(sign: Sign, held: list[str]) -> WorkerState:
    if sign.gone:
        return "gone"
    if sign.lapsed:
        return "silent"
    return "working" if held else "idle"


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.json"))
