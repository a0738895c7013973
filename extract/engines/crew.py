"""The workers of a run on a cluster: hired, given videos, heard, replaced when they die.

    with Crew(ray, post, need, videos, tell=print) as crew:
        while crew.has_work:
            crew.look()
    crew.summary()

Everything happens in the calling thread, between two looks. Knows nothing of frames, nor of how
machines are found.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

from ...store.cache import Cache, open_cache
from ...store.errors import Vis4merError
from ...store.files import look_anew
from ...store.wording import counted, first_line
from ..sources import VideoSource
from ..stages.feeding import Receipt
from ..stages.progress import ExtractProgress, ExtractSummary, Tally, busy_share
from ..stages.steps import STAGES, StageName
from .actor import Actor, Begun, Post, Report, Trouble
from .cluster import nodes_of
from .dealing import Dealer
from .deaths import failure_of, let_go
from .places import Need, Place

LOOK_SECONDS = 0.2
HIRE_SECONDS = 2.0  # between two looks at the cluster's machines
PATIENCE_SECONDS = 30.0  # with which the first worker is waited for in silence
LEAVE_SECONDS = 20.0  # for workers to let go of what they have, after Ctrl-C or an error
MAX_FALSE_STARTS = 3  # workers that die in a row before they have begun

State = Literal["beginning", "working", "closing", "idle"]


@dataclass(eq=False)
class _Member:
    """A worker. call: what it was asked for last, until it answers; None for an idle one."""

    actor: Any
    place: Place
    call: Any
    state: State = "beginning"
    begun: Begun | None = None
    report: Report | None = None

    @property
    def name(self) -> str:
        if self.begun is None:
            return "a worker that had not begun"
        return f"the worker {self.begun.process.host} pid {self.begun.process.pid}"


class Crew:
    """All workers of a run. Leaving the context ends those that there are.

    limit: of videos to attempt. tell: told what a user must know at once. on_cache: called once,
    when the first worker has made or opened the cache. notes: of the workers, each once.
    """

    def __init__(
        self,
        ray: Any,
        post: Post,
        need: Need,
        videos: Sequence[VideoSource],
        *,
        limit: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
        on_cache: Callable[[Cache], None] = lambda _: None,
    ) -> None:
        self.notes: list[str] = []
        self._ray = ray
        self._actor = ray.remote(Actor)
        self._post = post
        self._need = need
        self._dealer = Dealer(videos, limit=limit)
        self._tell = tell
        self._on_cache = on_cache
        self._num_videos = len(videos)
        self._tally = self._new_tally()
        self._cache: Cache | None = None
        self._members: list[_Member] = []
        self._past: list[_Member] = []  # those that have left, for what they had done
        self._stopping = False
        self._refused: Counter[Place] = Counter()  # that are done without
        self._false_starts = 0
        self._trouble: Trouble | None = None
        self._began = time.monotonic()
        self._next_hire = 0.0
        self._told_to_wait = False
        self._told_of_false_starts = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """After an error, Ctrl-C among them, workers may let go of what they have first."""
        try:
            if kind is not None:
                until = time.monotonic() + LEAVE_SECONDS
                self._stop()
                while self.has_work and time.monotonic() < until:
                    self._look()
        finally:
            for member in tuple(self._members):
                self._dismiss(member)

    @property
    def has_work(self) -> bool:
        """Also while a worker is at its end: it lets go of its claims and says what it did."""
        if any(member.state in ("working", "closing") for member in self._members):
            return True
        return not self._stopping and (self._dealer.num_to_deal > 0 or self._cache is None)

    def look(self, *, stop: bool = False) -> None:
        """Hear the workers for a moment at most, and give them what they need next.

        stop: they finish what they have completely read, and nobody begins anything more. Raises
        the trouble of a worker that ends the run, and of those that cannot begin when no other is
        there.
        """
        if stop:
            self._stop()
        else:
            self._hire()
        self._look()
        self._require_somebody()

    def progress(self) -> ExtractProgress:
        """A snapshot of all workers together."""
        snapshot = self._tally.progress()
        threads = self._threads(snapshot.seconds)
        reports = [m.report for m in self._members if m.report is not None]
        return replace(
            snapshot,
            frames=self._frames,
            busy_share=busy_share(self._busy_seconds, threads, snapshot.seconds),
            reading=tuple(sorted(name for report in reports for name in report.reading)),
        )

    def summary(self) -> ExtractSummary:
        """What all workers have done, those that died until their last word. Vis4merError when the
        run was stopped before there was any."""
        if self._cache is None:
            raise Vis4merError("stopped before any worker had begun; the same command goes on")
        summary = self._tally.summary(interrupted=False)
        return replace(
            summary,
            interrupted=self._stopping and summary.left > 0,
            frames=self._frames,
            busy_seconds=self._busy_seconds,
            threads=self._threads(summary.seconds),
        )

    # Hiring ----------------------------------------------------------------------------------

    def _hire(self) -> None:
        """As many workers as the machines that are there now have room for, and no more than there
        are videos to give them."""
        if time.monotonic() < self._next_hire:
            return
        self._next_hire = time.monotonic() + HIRE_SECONDS
        places = self._need.places(nodes_of(self._ray))
        for member in [m for m in self._members if m.state == "beginning"]:
            if member.place not in places:  # on a machine that is gone, or too large for a new one
                self._dismiss(member)
        taken = Counter(member.place for member in self._members)
        vacant = (places - self._refused - taken).elements()
        for place in itertools.islice(vacant, max(0, self._num_wanted - len(self._members))):
            post = replace(self._post, cores=max(1, int(place.cores)))
            actor = self._actor.options(**place.options).remote(post)
            self._members.append(_Member(actor=actor, place=place, call=actor.begin.remote()))
        self._say_what_is_waited_for()

    @property
    def _num_wanted(self) -> int:
        """Workers that there is something to do for."""
        idle = sum(member.state == "idle" for member in self._members)
        wanted = len(self._members) - idle + self._dealer.num_to_deal
        wanted = max(wanted, self._cache is None)  # somebody has to make it
        return wanted if self._need.most is None else min(wanted, self._need.most)

    def _say_what_is_waited_for(self) -> None:
        """Once, when nobody has begun for long."""
        waited = time.monotonic() - self._began
        if waited > PATIENCE_SECONDS and not self._told_to_wait and self._cache is None:
            self._told_to_wait = True
            free = self._ray.available_resources()
            has = ", ".join(f"{free.get(name, 0):g} {name}s" for name in ("GPU", "CPU"))
            each = self._need.usual(nodes_of(self._ray)).describe()
            self._tell(
                f"no worker has begun yet: each needs {each} and loads the backbone first; free in "
                f"the cluster now: {has}"
            )

    def _require_somebody(self) -> None:
        """Raise why nobody can work, when that is so."""
        if self._trouble is None or self._members or not self.has_work:
            return
        if not self._need.places(nodes_of(self._ray)) - self._refused:
            raise self._trouble.error()

    def _refuse(self, member: _Member, trouble: Trouble) -> None:
        """Do without a worker that cannot begin, and without another one in its place."""
        self._refused[member.place] += 1
        self._trouble = self._trouble or trouble
        self._dismiss(member)
        if self._cache is not None or self._members:
            self._tell(f"a worker could not begin, the others go on: {trouble.message}")

    # Hearing ---------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Workers hear of it when they are spoken to next; who has not begun need not."""
        self._stopping = True
        for member in [m for m in self._members if m.state == "beginning"]:
            self._dismiss(member)

    def _look(self) -> None:
        for member in self._members:
            if member.state == "idle" and self._dealer.num_to_deal and not self._stopping:
                self._give(member)
        calls = {member.call: member for member in self._members if member.call is not None}
        if not calls:
            time.sleep(LOOK_SECONDS)
            return
        first, others = self._ray.wait(list(calls), num_returns=1, timeout=LOOK_SECONDS)
        at_once = self._ray.wait(others, num_returns=len(others), timeout=0)[0] if others else []
        for call in [*first, *at_once]:
            self._hear(calls[call])

    def _hear(self, member: _Member) -> None:
        try:
            answer = self._ray.get(member.call)
        except self._ray.exceptions.RayError as error:
            self._bury(member, error)
            return
        if isinstance(answer, Begun):
            self._welcome(member, answer)
        else:
            self._read(member, answer)

    def _welcome(self, member: _Member, begun: Begun) -> None:
        if begun.trouble is not None:
            self._refuse(member, begun.trouble)
            return
        self._false_starts = 0
        member.begun, member.state = begun, "idle"
        if self._cache is None:
            self._tally = self._new_tally()  # its clock begins with the work
            path = self._post.asked.cache_path
            look_anew(path.parent)  # it was made on another machine, maybe
            self._cache = open_cache(path)
            self._on_cache(self._cache)
        for note in begun.notes:
            if note not in self.notes:
                self.notes.append(note)
                self._tell(note)
        self._give(member)

    def _read(self, member: _Member, report: Report) -> None:
        member.report = report
        for receipt in report.receipts:
            if self._dealer.end(member, receipt):
                self._tally.add(receipt)
        if report.idle:
            member.state = "idle"
            self._dealer.take_back(member)  # what it was told to leave undone
        if report.trouble is not None and not self._stopping:
            raise report.trouble.error()
        self._give(member)

    def _give(self, member: _Member) -> None:
        """The next videos for a worker; the word to finish, when there are no more."""
        videos: list[VideoSource] = []
        if not self._stopping and member.state != "closing" and member.begun is not None:
            videos = self._dealer.deal(
                member,
                num_waiting=member.report.num_waiting if member.report is not None else 0,
                threads=member.begun.threads["reading"],
                workers=len(self._members),
            )
        member.call = None
        if member.state == "idle" and not videos:
            return
        no_more = not self._dealer.num_to_deal or self._dealer.keeps_apart(member)
        close = self._stopping or no_more or member.state == "closing"
        member.state = "closing" if close else "working"
        member.call = member.actor.exchange.remote(videos, close=close, stop=self._stopping)

    # Leaving ---------------------------------------------------------------------------------

    def _bury(self, member: _Member, error: Exception) -> None:
        """A worker has died: others get what it had in hand."""
        self._end(member)  # also where only the way to it is broken
        if member.begun is None:
            self._count_false_start(member.place, error)
            return
        num_lost = len(self._dealer.hand(member))
        if self._cache is not None:
            let_go(self._cache.path, member.begun.process)
        given_up = self._dealer.bury(member)
        for video in given_up:
            self._give_up(video)
        if num_lost and not self._stopping:
            lost = counted(num_lost, "video")
            fate = "is given up" if given_up else "others get"
            self._tell(f"{member.name} died with {lost} in hand, which {fate}")
        self._next_hire = 0.0

    def _count_false_start(self, place: Place, error: Exception) -> None:
        """A worker has died before it had begun. After some in a row one less is tried; where none
        has ever begun, that is the end."""
        self._false_starts += 1
        if self._false_starts < MAX_FALSE_STARTS:
            return
        self._false_starts = 0
        reason = f"{MAX_FALSE_STARTS} workers died before any began: {first_line(error)}"
        if self._cache is None:
            raise Vis4merError(reason)
        self._refused[place] += 1
        self._trouble = self._trouble or Trouble(message=reason)
        if not self._told_of_false_starts:
            self._told_of_false_starts = True
            self._tell(f"{reason}; the others go on")

    def _give_up(self, video: VideoSource) -> None:
        """Record a video that may be what its workers died of, unless one had committed it before
        it died; the next run tries it again."""
        if self._cache is not None and self._cache.look_again(video.id):
            self._tally.add(Receipt(id=video.id, outcome="extracted"))
            return
        failure = failure_of(video)
        if self._cache is not None:
            self._cache.record_failure(failure)
        self._tally.add(Receipt(id=video.id, outcome="failed", failure=failure))

    def _dismiss(self, member: _Member) -> None:
        self._end(member)
        if member.begun is not None and self._cache is not None and member.state != "idle":
            let_go(self._cache.path, member.begun.process)

    def _end(self, member: _Member) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):  # it is out of reach: the others
            self._ray.kill(member.actor)
        self._members.remove(member)
        self._past.append(member)

    # Adding up -------------------------------------------------------------------------------

    def _new_tally(self) -> Tally:
        return Tally(num_videos=self._num_videos, threads=dict.fromkeys(STAGES, 1))

    @property
    def _reports(self) -> list[tuple[Begun, Report]]:
        everybody = [*self._past, *self._members]
        return [(m.begun, m.report) for m in everybody if m.begun is not None and m.report]

    @property
    def _frames(self) -> int:
        return sum(report.frames for _, report in self._reports)

    @property
    def _busy_seconds(self) -> dict[StageName, float]:
        return {s: sum(report.busy_seconds[s] for _, report in self._reports) for s in STAGES}

    def _threads(self, seconds: float) -> dict[StageName, int]:
        """Threads of each stage that worked side by side, on average: workers come and go."""
        return {
            stage: max(
                1,
                round(
                    sum(begun.threads[stage] * report.seconds for begun, report in self._reports)
                    / max(seconds, 1e-9)
                ),
            )
            for stage in STAGES
        }
