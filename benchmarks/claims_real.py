"""The real claims, records and orders of work, one step at a time and on a clock of our own.

What `claims_simulation.py` rests on: how many operations each step asks of a file server, counted
while the package's own code takes it, and small swarms of workers that run that code. An operation
is a system call that names a path or flushes one. What a client of a network's file system keeps
for some seconds (attributes, missing names) would spare the server a part of the looks; its own
closes and locks would add some.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from vis4mer.extract.planning.share import Share
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.buffers import WeightedBuffer
from vis4mer.extract.stages.progress import Tally
from vis4mer.extract.stages.reading import ReadingStage
from vis4mer.extract.stages.sharing import Sharing
from vis4mer.extract.stages.stopping import StopSignal
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.claims import Claims
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling
from vis4mer.store.workers import BEAT_SECONDS

POLICIES = ("own", "share", "alone")
SMALL = 10  # of whatever a slope is taken from
_NO_BEAT = 1e9  # seconds: nothing beats but by our clock


# What a file server is asked for ----------------------------------------------------------------


class Meter:
    """Counts operations below a folder, by step and kind, while a `step` goes on."""

    def __init__(self, root: Path) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._root = str(root)
        self._step = ""
        self._lock = threading.Lock()
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Meter:
        for kind, names in (("look", ("stat", "lstat", "readlink")), ("list", ("listdir",))):
            for name in names:
                self._patch(name, kind)
        for name in ("link", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "chmod"):
            self._patch(name, "change")
        self._patches.enter_context(mock.patch.object(os, "scandir", self._scandir(os.scandir)))
        self._patches.enter_context(mock.patch.object(os, "fsync", self._flush))
        sys.addaudithook(self._hook)  # of opening, which Python does in several ways
        return self

    def __exit__(self, *_: object) -> None:
        self._step = ""
        self._patches.close()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._step = name
        try:
            yield
        finally:
            self._step = ""

    def of(self, name: str, *, listing: bool = False) -> int:
        """Operations of a step so far. listing: also of folders."""
        return sum(
            number
            for (step, kind), number in self.counts.items()
            if step == name and (listing or kind != "list")
        )

    def _add(self, kind: str) -> None:
        if self._step:
            with self._lock:
                self.counts[self._step, kind] += 1

    def _flush(self, _: int) -> None:
        self._add("flush")

    def _patch(self, name: str, kind: str) -> None:
        real = getattr(os, name)

        def counted(path: Any, *arguments: Any, **options: Any) -> Any:
            if self._is_below(path):
                self._add(kind)
            return real(path, *arguments, **options)

        self._patches.enter_context(mock.patch.object(os, name, counted))

    def _scandir(self, real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(path: Any = ".") -> Any:
            if not self._is_below(path):
                return real(path)
            self._add("list")
            return _Entries(real(path), self)

        return counted

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self._step and self._is_below(arguments[0]):
            self._add("change" if arguments[2] & os.O_CREAT else "open")

    def _is_below(self, path: object) -> bool:
        if not self._step or not isinstance(path, str | os.PathLike):
            return False
        return str(os.fspath(path)).startswith(self._root)


class _Entries:
    """What a folder holds; looking at one of them counts."""

    def __init__(self, entries: Any, meter: Meter) -> None:
        self._entries, self._meter = entries, meter

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        self._entries.close()

    def __iter__(self) -> _Entries:
        return self

    def __next__(self) -> _Entry:
        return _Entry(next(self._entries), self._meter)


class _Entry:
    def __init__(self, entry: Any, meter: Meter) -> None:
        self._entry, self._meter = entry, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._entry, name)

    def __fspath__(self) -> str:
        return str(self._entry.path)

    def stat(self, **options: Any) -> os.stat_result:
        self._meter._add("look")
        found: os.stat_result = self._entry.stat(**options)
        return found


# One worker of the real code --------------------------------------------------------------------


def tiny_spec() -> CacheSpec:
    return CacheSpec(
        backbone="none",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
        sampling=Sampling(fps=1.0),
        reader="none",
        grid=(1, 1),
        num_prefix=1,
        dim=8,
    )


def make_videos(folder: Path, sizes: list[int]) -> list[VideoSource]:
    """Empty files of these sizes, which nobody decodes."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for number, size in enumerate(sizes):
        path = folder / f"{number:06}.mp4"
        with path.open("wb") as file:
            file.truncate(size)
        videos.append(VideoSource(id=path.name, path=path, name=path.name))
    return videos


class RealWorker:
    """What `fill_cache` makes for a worker that shares a cache, without its threads."""

    def __init__(
        self,
        root: Path,
        videos: list[VideoSource],
        *,
        clock: Callable[[], float],
        share: Share | None = None,
    ) -> None:
        self.cache = create_cache(root, tiny_spec())
        self.claims = Claims(root, beat_seconds=_NO_BEAT, clock=clock)
        tally = Tally(num_videos=len(videos), threads={})
        self.sharing = Sharing(self.cache, self.claims, overwrite=False, tally=tally)
        self.stage = ReadingStage(
            self._ordered(videos, share),
            self.cache,
            reader=None,  # type: ignore[arg-type]  # nothing is read
            preprocess=Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
            clip_frames=1,
            part_frames=1,
            limit=None,
            overwrite=False,
            known_failures={},
            sharing=self.sharing,
            frames=WeightedBuffer(1),
            stop=StopSignal(None),
            tally=tally,
        )

    def _ordered(self, videos: list[VideoSource], share: Share | None) -> Iterable[VideoSource]:
        """As `fill_cache` does."""
        if share is None:
            return self.sharing.order(videos)
        own, others = share.split(videos)
        return itertools.chain(self.sharing.order(own), self.sharing.help_with(others))

    def next_video(self) -> VideoSource | None:
        attempt = self.stage._next_attempt()
        return None if attempt is None else attempt.video

    def commit(self, video: VideoSource) -> bool:
        """Write an entry and let go of the video. Was it ours that stands?"""
        ours = write_entry(self.cache, video)
        self.sharing.release(video)
        return ours

    def beat(self) -> None:
        self.claims._heartbeat._write()
        self.claims._lookout.look_at_all()

    def end(self) -> None:
        self.sharing.count_held()
        if self.sharing.is_last_to_work():
            self.cache.write_catalog()
        self.claims.__exit__(None, None, None)


def write_entry(cache: Cache, video: VideoSource) -> bool:
    stat = video.path.stat()
    source = SourceRecord(
        name=video.name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256="0" * 64
    )
    tokens = {"patch": np.zeros((1, 1, 8), np.float16), "prefix": np.zeros((1, 1, 8), np.float16)}
    with cache.write_entry(video.id, source=source) as entry:
        entry.append(tokens, [0.0])
        return entry.commit(duration_seconds=1.0).attempt == entry.attempt


# What each step takes ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """Operations of each step of a worker.

    start: of a worker that begins at an empty cache; start_video: more for each video in its list,
    start_record: for each that is in the cache by then, start_lacking: for each of those that the
    catalog lacks, start_claim: when claims stand. won, lost: a look at a video that is
    taken then, or is another's. late: at one that another has committed since this worker began;
    known: before. entry: the files of one video. beat, look: a sign, a look at another's. end,
    end_record, end_lacking: as start; lapsed: to take a dead worker's claim, beside `won`.
    """

    start: float
    start_video: float
    start_record: float
    start_lacking: float
    start_claim: float
    won: float
    lost: float
    late: float
    known: float
    lapsed: float
    entry: float
    release: float
    beat: float
    look: float
    end: float
    end_record: float
    end_lacking: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def measure_steps(folder: Path) -> StepCosts:
    """Let the real code take each step once and count."""
    root = folder / "steps.zarr"
    videos = make_videos(folder / "videos", [1000 + i for i in range(6 * SMALL)])
    taken, done, others = videos[:SMALL], videos[SMALL : 2 * SMALL], videos[2 * SMALL :]
    now = [0.0]
    create_cache(root, tiny_spec())
    with Meter(folder) as meter:

        def worker(step: str, listed: list[VideoSource]) -> RealWorker:
            with meter.step(step):
                return RealWorker(root, listed, clock=lambda: now[0])

        def look(step: str, by: RealWorker) -> VideoSource | None:
            with meter.step(step):
                return by.next_video()

        worker("start 1", others[:1])
        worker("start many", others[: SMALL + 1])
        holder = RealWorker(root, taken, clock=lambda: now[0])
        first = holder.next_video()
        look("won", holder)
        while holder.next_video():
            pass
        worker("start claims", others[:1])
        loser = worker("-", [taken[0]])
        look("lost", loser)  # and once more, as what was put aside
        committing = worker("-", done)
        with meter.step("end none"):
            committing.cache.write_catalog()
        late = worker("-", [done[0]])
        for each in done:
            video = committing.next_video()
            assert video is not None, each
            with meter.step("entry"):
                write_entry(committing.cache, video)
            with meter.step("release"):
                committing.sharing.release(video)
        look("late", late)
        worker("start records", others[:1])
        with meter.step("end lacking"):
            committing.cache.write_catalog()
        with meter.step("end records"):
            committing.cache.write_catalog()
        worker("start catalog", others[:1])
        look("known", worker("-", [done[0]]))
        with meter.step("look"):
            committing.claims._lookout.look(holder.claims.token)
        with meter.step("beat"):
            holder.claims._heartbeat._write()
        heir = RealWorker(root, taken, clock=lambda: now[0])
        assert first is not None
        for _ in range(12):
            heir.claims.take(first.id)
            now[0] += 2 * BEAT_SECONDS
        heir.claims.take(others[0].id)
        with meter.step("lapsed"):
            if heir.claims.take(first.id) is not None:
                raise SystemExit("a worker without a sign for twelve minutes kept its claim")
        with meter.step("end"):
            holder.claims.__exit__(None, None, None)

    def slope(many: str, few: str, number: int = SMALL) -> float:
        return (meter.of(many) - meter.of(few)) / number

    # A folder's listing is one operation and holds many records: counted apart.
    start_record = round(slope("start catalog", "start claims"))
    return StepCosts(
        start=meter.of("start 1") - slope("start many", "start 1"),
        start_video=slope("start many", "start 1"),
        start_record=start_record,
        start_lacking=round(slope("start records", "start claims")) - start_record,
        start_claim=meter.of("start claims") - meter.of("start 1"),
        won=meter.of("won"),
        lost=meter.of("lost") / 2,
        late=meter.of("late"),
        known=meter.of("known"),
        lapsed=meter.of("lapsed"),
        entry=meter.of("entry") / SMALL,
        release=meter.of("release") / SMALL,
        beat=meter.of("beat"),
        look=meter.of("look"),
        end=meter.of("end") - SMALL * meter.of("release") / SMALL,
        end_record=round(slope("end records", "end none")),
        end_lacking=round(slope("end lacking", "end records")),
    )


# Many workers of the real code, in turns --------------------------------------------------------


@dataclass(kw_only=True)
class RealOutcome:
    """What a swarm did. steps: operations by step."""

    seconds: float = 0.0
    won: int = 0
    in_vain: int = 0
    lost: int = 0
    left: int = 0
    steps: dict[str, int] = field(default_factory=dict)


def run_real(
    folder: Path,
    *,
    workers: int,
    sizes: list[int],
    reading: int,
    hold: Callable[[random.Random], float],
    policy: str,
    start_spread: float,
    latency: float,
    seed: int = 0,
) -> RealOutcome:
    """Workers of the real code fill one real cache; only time, and what takes it, is made up."""
    chance = random.Random(seed)
    videos = make_videos(folder / "videos", sizes)
    root = folder / "swarm.zarr"
    create_cache(root, tiny_spec())
    now, number, outcome = [0.0], itertools.count(), RealOutcome()
    events: list[tuple[float, int, Callable[[], None]]] = []
    swarm: dict[int, RealWorker] = {}
    busy: Counter[int] = Counter()

    def at(time: float, work: Callable[[], None]) -> None:
        heapq.heappush(events, (time, next(number), work))

    with Meter(folder) as meter, mock.patch.object(Claims, "take", _counting(outcome)):

        def timed(step: str, work: Callable[[], Any]) -> tuple[Any, float]:
            before = meter.of(step)
            with meter.step(step):
                found = work()
            return found, now[0] + (meter.of(step) - before) * latency

        def begin(i: int) -> None:
            share = None
            if policy != "own":
                share = Share(number=i + 1, count=workers, helps=policy == "share")
            swarm[i], later = timed(
                "start", lambda: RealWorker(root, videos, clock=lambda: now[0], share=share)
            )
            busy[i] = reading
            for _ in range(reading):
                at(later, lambda: search(i))
            at(later + BEAT_SECONDS, lambda: beat(i))

        def search(i: int) -> None:
            video, later = timed("search", swarm[i].next_video)
            if video is not None:
                at(later + hold(chance), lambda: finish(i, video))
                return
            busy[i] -= 1
            if not busy[i]:
                timed("end", swarm[i].end)
                outcome.seconds = max(outcome.seconds, later)

        def finish(i: int, video: VideoSource) -> None:
            ours, later = timed("entry", lambda: swarm[i].commit(video))
            outcome.won += ours
            outcome.in_vain += not ours
            at(later, lambda: search(i))

        def beat(i: int) -> None:
            if busy[i]:
                timed("beat", swarm[i].beat)
                at(now[0] + BEAT_SECONDS, lambda: beat(i))

        for i in range(workers):
            at(chance.uniform(0, start_spread), lambda i=i: begin(i))  # type: ignore[misc]
        while events:
            now[0], _, work = heapq.heappop(events)
            work()
    outcome.left = len(videos) - outcome.won
    names = ("start", "search", "entry", "beat", "end")
    outcome.steps = {name: meter.of(name, listing=True) for name in names}
    return outcome


def _counting(outcome: Any) -> Callable[[Claims, str], Any]:
    real = Claims.take

    def take(claims: Claims, entry_id: str) -> Any:
        sign = real(claims, entry_id)
        outcome.lost += sign is not None
        return sign

    return take
