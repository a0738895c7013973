"""How claims behave with thousands of workers: a simulation of the protocol, beside the real one.

    python benchmarks/claims_simulation.py [--workers 10,100,1000,10000] [--videos 1000000]
        [--policies own,share,alone] [--check] [--processes] [--json]

Every worker does what `fill_cache` does: start (read the cache's records, put the videos in order),
visit them one after the other, claim what is free, put aside what another holds and look at it once
more at the end, give a sign every half minute, look at the workers it has met, end (bring the
catalog up to date). How many operations each step asks of the file server is counted here while the
real code takes it (`claims_real.py`). The server takes so many operations a second in the order in
which they come, and an operation never takes less than its latency.

`own`: every worker is given the whole list and goes through it in an order of its own. `share`:
with `--worker i/n`, its share comes first and then what others have not begun. `alone`: its share
and nothing else.

Visits are not simulated one by one: a worker's order is independent of everything that has
happened, so of the videos that it has not visited any is as likely to be the next, and how many lie
before the first free one follows from their numbers alone. Times to encode a video are exponential.
--check: the same at a small size, beside real workers that take turns on a clock of the simulation.
--processes: beside eight real processes too.
"""

from __future__ import annotations

import argparse
import functools
import heapq
import json
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from claims_real import POLICIES, StepCosts, measure_steps, run_real
from common import describe_machine
from vis4mer.store import workers as protocol
from vis4mer.store.workers import BEAT_SECONDS, LAPSE_SECONDS

CHUNK = 0.05  # of the videos not yet visited that a worker visits before others have their turn
FOLDERS = 256
LISTED = 100  # names that a file server tells with one answer, or more
MAX_LOOKS = protocol._MAX_LOOKS
STEPS = ("start", "visit", "claim", "entry", "sign", "end")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """video_seconds: of a worker's time. reading: videos in hand at once. sizes: files of each
    power of two in bytes, largest first. deaths_per_hour: of one worker; it is started again on
    its own machine after restart_seconds, or never (0). machine_workers: on one machine.
    latency: seconds of an operation. server_rate: operations a second."""

    workers: int
    sizes: tuple[int, ...]
    policy: str
    video_seconds: float = 30.0
    reading: int = 2
    start_spread: float = 60.0
    deaths_per_hour: float = 0.01
    restart_seconds: float = 300.0
    machine_workers: int = 8
    latency: float = 0.0005
    server_rate: float = 100_000.0
    seed: int = 0

    @property
    def videos(self) -> int:
        return sum(self.sizes)

    @property
    def ideal_seconds(self) -> float:
        return self.videos * self.video_seconds / self.workers


@dataclass
class Worker:
    """unvisited: videos of others' shares by size; mine: of the own share, by size, still free.

    known: how many workers it has met, and so looks at. aside: videos put aside, and how many of
    them by size are still held. met: dead workers, and since when it has seen no sign of them.
    """

    number: int
    machine: int
    unvisited: list[int]
    own_left: list[int]
    before: list[int]
    known: float = 0.0
    aside: int = 0
    still: list[float] = field(default_factory=list)
    still_at: float = 0.0
    dead_aside: list[tuple[Dead, int]] = field(default_factory=list)
    met: dict[int, float] = field(default_factory=dict)
    hand: Counter[int] = field(default_factory=Counter)
    idle: int = 0
    group: int = 0
    begun: float = 0.0
    is_dead: bool = False


@dataclass(eq=False)
class Dead:
    """What a worker held when it died, by size."""

    number: int
    machine: int
    since: float
    held: Counter[int]


@dataclass(kw_only=True)
class Outcome:
    """What a run did. operations: by step. waiting_seconds: between a death and the moment at which
    others took up what the dead worker held."""

    seconds: float = 0.0
    last_begun: float = 0.0
    done: int = 0
    won: int = 0
    lost: int = 0
    deaths: int = 0
    lost_in_hand: int = 0
    waiting_seconds: list[float] = field(default_factory=list)
    operations: Counter[str] = field(default_factory=Counter)


class Swarm:
    """One run; `run` gives what happened."""

    def __init__(self, setting: Setting, costs: StepCosts) -> None:
        self._set, self._cost = setting, costs
        self._chance = random.Random(setting.seed)
        self._many = np.random.default_rng(setting.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._now = self._server_free = 0.0
        self._alive: set[int] = set()
        self._looks = 0.0  # of all workers, with each sign
        self._catalog = 0
        self._writing_until = 0.0
        self._ids = count()
        self._to_begin = setting.workers
        self._groups = len(setting.sizes)
        self._held = [0] * self._groups
        self._done = [0] * self._groups
        self._dead: list[Dead] = []
        self._shares = self._split()
        self._free = list(setting.sizes)
        self._owners = [
            [i for i in range(setting.workers) if self._shares[i][g]] for g in range(self._groups)
        ]
        self.outcome = Outcome()

    def _split(self) -> list[list[int]]:
        """Free videos of each worker's share, by size; none where there are no shares."""
        n = self._set.workers
        if self._set.policy == "own":
            return [[0] * self._groups for _ in range(n)]
        columns = [self._many.multinomial(size, [1 / n] * n).tolist() for size in self._set.sizes]
        return [list(row) for row in zip(*columns, strict=True)]

    def run(self) -> Outcome:
        for number in range(self._set.workers):
            start = self._chance.uniform(0, self._set.start_spread)
            self._at(start, functools.partial(self._begin, number))
        self._tick_seconds = max(1.0, self._set.ideal_seconds / 2000)
        self._at(self._tick_seconds, self._tick)
        while self._events:
            self._now, _, work = heapq.heappop(self._events)
            work()
        return self.outcome

    # The clock and the file server

    def _at(self, when: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), work))

    def _serve(self, step: str, operations: float) -> float:
        """When so many operations, one after the other, are answered."""
        self.outcome.operations[step] += round(operations)
        begin = max(self._now, self._server_free)
        self._server_free = begin + operations / self._set.server_rate
        return max(self._now + operations * self._set.latency, self._server_free)

    def _tick(self) -> None:
        """Signs of all workers that are there, and their looks at those that they have met."""
        cost, share = self._cost, self._tick_seconds / BEAT_SECONDS
        self._serve("sign", share * (len(self._alive) * cost.beat + self._looks * cost.look))
        if self._alive or self._to_begin:
            self._at(self._now + self._tick_seconds, self._tick)

    # A worker's life

    def _begin(self, number: int) -> None:
        self._to_begin -= 1
        done, groups = self.outcome.done, range(self._groups)
        self._take_back(number)
        own = self._shares[number]
        listed = self._set.videos if self._set.policy == "own" else sum(own)
        others = [0] * self._groups
        if self._set.policy != "alone":
            others = [self._set.sizes[g] - own[g] for g in groups]
        worker = Worker(
            number=number,
            machine=number // self._set.machine_workers,
            unvisited=others,
            own_left=list(own),
            before=list(self._done),
            still=[0.0] * self._groups,
            group=0,
        )
        cost, claims = self._cost, sum(self._held)
        # Each file is looked at again while others are at work; what it helps with, later.
        times = 2 if claims else 1
        later = self._serve(
            "start",
            cost.start
            + cost.start_video * times * listed
            + cost.start_record * done
            + cost.start_lacking * (done - self._catalog)
            + cost.start_claim * (claims > 0)
            + min(FOLDERS, done)
            + (self._listing() if self._set.policy == "share" else 0),
        )
        key = next(self._ids)
        self._alive.add(key)
        for _ in range(self._set.reading):
            self._at(later, lambda: self._search(worker, key))
        if self._set.deaths_per_hour:
            life = self._chance.expovariate(self._set.deaths_per_hour / 3600)
            self._at(self._now + life, lambda: self._die(worker, key))

    def _take_back(self, number: int) -> None:
        """A worker that is started again on its machine finds that the one before it is gone."""
        if self._set.policy == "own":
            return
        for dead in [each for each in self._dead if each.number == number]:
            for g in dead.held.elements():
                self._shares[number][g] += 1
                self._free[g] += 1
                self._owners[g].append(number)
            for g in list(dead.held.elements()):
                self._inherit(dead, g)

    def _search(self, worker: Worker, key: int) -> None:
        """Visit until a video is taken, or this thread finds nothing more."""
        if worker.is_dead:
            return
        while worker.group < 2 * self._groups:
            own, g = worker.group < self._groups, worker.group % self._groups
            found = self._visit_own(worker, g) if own else self._visit_others(worker, g)
            if found is not None:
                later, taken = found
                if taken:
                    self._hold(worker, key, g, later)
                else:
                    self._at(later, lambda: self._search(worker, key))
                return
            worker.group += 1
            if worker.group == self._groups and self._set.policy == "share":
                self._at(self._choose_help(worker), lambda: self._search(worker, key))
                return
        self._look_again(worker, key)

    def _visit_own(self, worker: Worker, g: int) -> tuple[float, bool] | None:
        """The next of the own share. None: all of them of this size are visited."""
        left, free = worker.own_left[g], self._shares[worker.number][g]
        if not left:
            return None
        if not free:
            worker.own_left[g] = 0
            return self._serve("visit", left * self._cost.late), False
        passed = min(left - free, _before_first(self._chance, left - free, free))
        worker.own_left[g] -= passed + 1
        self._shares[worker.number][g] -= 1
        self._free[g] -= 1
        self._serve("visit", passed * self._cost.late)
        return self._serve("claim", self._cost.won), True

    def _choose_help(self, worker: Worker) -> float:
        """List what is there, pass by what is new of it, put the rest in order, look at what was
        there before (in truth at the end). When that is done."""
        others = 1 - 1 / self._set.workers  # of what is there, outside its own share
        self._serve("visit", others * sum(worker.before) * self._cost.known)
        for g in range(self._groups):
            worker.unvisited[g] = self._set.sizes[g] - self._done[g] - worker.hand[g]
        worker.before = [0] * self._groups
        looks = 2 * self._cost.start_video * sum(worker.unvisited)
        return self._serve("start", self._listing() + looks)

    def _listing(self) -> float:
        """Operations of a list of all records' names."""
        return min(FOLDERS, self.outcome.done) + self.outcome.done / LISTED

    def _visit_others(self, worker: Worker, g: int) -> tuple[float, bool] | None:
        """The next of all others'. (when, whether one was taken); None: all are visited."""
        unvisited = worker.unvisited[g]
        if unvisited <= 0:
            return None
        cost, free = self._cost, min(self._free[g], unvisited)
        passed = _before_first(self._chance, unvisited - free, free) if free else unvisited
        chunk = max(64, int(CHUNK * unvisited))
        whole = passed <= chunk
        passed = min(passed, chunk)
        held = self._others_held(worker, g)
        share = min(1.0, held / max(1, unvisited - free))
        met = int(self._many.binomial(passed, share)) if held > 0 else 0
        worker.unvisited[g] -= passed
        dead = sum(each.held[g] for each in self._dead)
        of_dead = int(self._many.binomial(met, min(1.0, dead / held))) if met and dead else 0
        self._meet(worker, g, met - of_dead)
        finished = max(0, passed - met)
        early = min(1.0, worker.before[g] / max(1, self._done[g]))
        self._serve("visit", finished * (early * cost.known + (1 - early) * cost.late))
        later = self._serve("claim", met * cost.lost)
        for _ in range(of_dead):
            if self._take_over(worker, g, again=False):
                return self._serve("claim", cost.won + cost.lapsed), True
        if not whole or not free:
            return later, False
        worker.unvisited[g] -= 1
        self._take_free(g)
        return self._serve("claim", cost.won), True

    def _others_held(self, worker: Worker, g: int) -> float:
        """Videos that others hold and that this worker has not visited since they do."""
        decay = math.exp(-(self._now - worker.still_at) / self._hold_seconds)
        worker.still = [each * decay for each in worker.still]
        worker.still_at = self._now
        return max(0.0, self._held[g] - worker.hand[g] - worker.still[g])

    @property
    def _hold_seconds(self) -> float:
        return self._set.video_seconds * self._set.reading

    def _meet(self, worker: Worker, g: int, number: int) -> None:
        """Claims of living workers that this one has met: put aside."""
        if not number:
            return
        self.outcome.lost += number
        worker.aside += number
        worker.still[g] += number
        most = max(1, len(self._alive) - 1)
        new = (most - worker.known) * (1 - math.exp(-number / most))
        before = min(worker.known, MAX_LOOKS)
        worker.known += max(0.0, new)
        self._looks += min(worker.known, MAX_LOOKS) - before

    def _take_free(self, g: int) -> None:
        """Somebody takes a free video that is in another's share, if there are shares."""
        self._free[g] -= 1
        owners = self._owners[g]
        while owners:
            at = self._chance.randrange(len(owners))
            share = self._shares[owners[at]]
            if share[g]:
                share[g] -= 1
                return
            owners[at] = owners[-1]
            owners.pop()

    def _take_over(self, worker: Worker, g: int, *, again: bool) -> bool:
        """A claim of a dead worker: taken over, or put aside until later."""
        candidates = [each for each in self._dead if each.held[g]]
        if not candidates:
            return False
        dead = self._chance.choice(candidates)
        lapsed = dead.machine == worker.machine or self._silent(worker, dead) >= LAPSE_SECONDS
        if not lapsed:
            self.outcome.lost += 1
            if not again:
                worker.dead_aside.append((dead, g))
            return False
        self._inherit(dead, g)
        return True

    def _inherit(self, dead: Dead, g: int) -> None:
        dead.held[g] -= 1
        self._held[g] -= 1
        self.outcome.waiting_seconds.append(self._now - dead.since)
        if not sum(dead.held.values()):
            self._dead.remove(dead)

    def _silent(self, worker: Worker, dead: Dead) -> float:
        """For how long a worker has seen no sign of a dead one."""
        if id(dead) not in worker.met:
            knew = self._chance.random() < worker.known / max(1, self._set.workers)
            # Among many that it has met, its turn to be looked at comes after a while.
            turn = BEAT_SECONDS * max(0.0, worker.known / MAX_LOOKS - 1)
            seen = dead.since + self._chance.uniform(0, turn)
            worker.met[id(dead)] = seen if knew else self._now
        return self._now - worker.met[id(dead)]

    def _look_again(self, worker: Worker, key: int) -> None:
        """What was put aside, once; then the thread is idle, and the last one ends the worker."""
        for g in range(self._groups):
            self._others_held(worker, g)
        still = min(worker.aside, round(sum(worker.still)))
        done, worker.aside = worker.aside - still, 0
        self.outcome.lost += still
        self._serve("visit", done * self._cost.late)
        later = self._serve("claim", still * self._cost.lost)
        while worker.dead_aside:
            dead, g = worker.dead_aside.pop()
            is_mine = dead.machine == worker.machine or self._silent(worker, dead) >= LAPSE_SECONDS
            if dead in self._dead and dead.held[g] and is_mine:
                self._inherit(dead, g)
                at = self._serve("claim", self._cost.won + self._cost.lapsed)
                self._hold(worker, key, g, at)
                return
        worker.idle += 1
        if worker.idle == self._set.reading:
            self._end(worker, key, later)

    def _hold(self, worker: Worker, key: int, g: int, begun: float) -> None:
        self._held[g] += 1
        worker.hand[g] += 1
        self.outcome.won += 1
        self.outcome.last_begun = max(self.outcome.last_begun, begun)
        taken = begun + self._chance.expovariate(1 / self._hold_seconds)
        self._at(taken, lambda: self._finish(worker, key, g))

    def _finish(self, worker: Worker, key: int, g: int) -> None:
        if worker.is_dead:
            return
        self._held[g] -= 1
        worker.hand[g] -= 1
        self._done[g] += 1
        self.outcome.done += 1
        self.outcome.seconds = self._now
        later = self._serve("entry", self._cost.entry + self._cost.release)
        self._at(later, lambda: self._search(worker, key))

    def _end(self, worker: Worker, key: int, when: float) -> None:
        self._leave(worker, key)
        done, claims = self.outcome.done, sum(self._held) > 0 or self._writing_until > self._now
        self._serve("end", self._cost.end + claims * self._cost.start_claim)
        if not claims:
            self._serve("end", min(FOLDERS, done))
        if not claims and done > self._catalog:  # the last brings the catalog up to date
            lacking = (done - self._catalog) * self._cost.end_lacking
            self._writing_until = self._serve("end", self._cost.end_record * done + lacking)
            self._catalog = done
        self.outcome.seconds = max(self.outcome.seconds, when)

    def _leave(self, worker: Worker, key: int) -> None:
        self._alive.discard(key)
        self._looks -= min(worker.known, MAX_LOOKS)
        worker.is_dead = True

    def _die(self, worker: Worker, key: int) -> None:
        if worker.is_dead:
            return
        self._leave(worker, key)
        self.outcome.deaths += 1
        self.outcome.lost_in_hand += sum(worker.hand.values())
        if sum(worker.hand.values()):
            held = Counter({g: number for g, number in worker.hand.items() if number})
            self._dead.append(Dead(worker.number, worker.machine, self._now, held))
        if self._set.restart_seconds:
            self._to_begin += 1
            self._at(self._now + self._set.restart_seconds, lambda: self._begin(worker.number))


def _before_first(chance: random.Random, others: int, chosen: int) -> int:
    """How many of `others` lie before the first of the chosen in a random order."""
    return int(others * (1 - chance.random() ** (1 / chosen)))


def sizes_of(videos: int, *, spread: float = 0.7, seed: int = 0) -> tuple[int, ...]:
    """How many of so many log-normal file sizes reach each power of two, largest first."""
    magnitudes = np.floor(np.random.default_rng(seed).normal(0, spread / math.log(2), videos))
    _, counts = np.unique(magnitudes, return_counts=True)
    return tuple(counts[::-1].tolist())


def simulate(setting: Setting, costs: StepCosts) -> dict[str, Any]:
    """One line of the table."""
    began = time.monotonic()
    swarm = Swarm(setting, costs)
    outcome = swarm.run()
    operations = sum(outcome.operations.values())
    waits = sorted(outcome.waiting_seconds)
    return {
        "workers": setting.workers,
        "policy": setting.policy,
        "videos": setting.videos,
        "done": outcome.done,
        "ideal hours": setting.ideal_seconds / 3600,
        "hours": outcome.seconds / 3600,
        "tail minutes": (outcome.seconds - outcome.last_begun) / 60,
        "operations": operations,
        "operations a video": operations / setting.videos,
        "operations a second": operations / max(1.0, outcome.seconds),
        "server busy": operations / max(1.0, outcome.seconds) / setting.server_rate,
        "lost claims": outcome.lost,
        "lost share": outcome.lost / max(1, outcome.lost + outcome.won),
        "deaths": outcome.deaths,
        "lost in hand": outcome.lost_in_hand,
        "median takeover minutes": waits[len(waits) // 2] / 60 if waits else None,
        "by step": {step: outcome.operations[step] for step in STEPS},
        "simulated in": time.monotonic() - began,
    }


# Beside the real thing --------------------------------------------------------------------------


def compare(folder: Path, costs: StepCosts, *, workers: int, videos: int) -> list[dict[str, Any]]:
    """The simulation beside real workers that take turns, for every policy."""
    lines = []
    for policy in POLICIES:
        setting = Setting(
            workers=workers, sizes=sizes_of(videos), policy=policy, deaths_per_hour=0.0
        )
        outcome = Swarm(setting, costs).run()
        real = run_real(
            folder / policy,
            workers=workers,
            sizes=[2**k for k, size in enumerate(reversed(setting.sizes), 4) for _ in range(size)],
            reading=setting.reading,
            hold=lambda chance: chance.expovariate(1 / 60.0),
            policy=policy,
            start_spread=setting.start_spread,
            latency=setting.latency,
        )
        steps = outcome.operations
        ours = {**steps, "search": steps["visit"] + steps["claim"], "beat": steps["sign"]}
        lines.append(
            {
                "policy": policy,
                "real": asdict(real),
                "simulated": {
                    "seconds": outcome.seconds,
                    "won": outcome.won,
                    "lost": outcome.lost,
                    "steps": {step: ours[step] for step in real.steps},
                },
            }
        )
    return lines


def run_processes(
    folder: Path, costs: StepCosts, *, workers: int, videos: int, video_seconds: float
) -> dict[str, Any]:
    """Real processes fill a real cache; the simulation beside them, with the times that they took.

    Nothing is killed here: `many_writers.py` does that.
    """
    import many_writers
    from vis4mer.extract.backbones.loading import load_backbone
    from vis4mer.extract.sources import resolve_sources
    from vis4mer.store.cache import open_cache
    from vis4mer.store.claims import Claims

    many_writers.write_videos(folder / "clips", videos)
    log = many_writers.Log(folder / "log.txt")
    setting = many_writers.Setting(
        resolve_sources([str(folder / "clips")]),
        load_backbone(many_writers.BACKBONE, weights="random:0", device="cpu"),
        log,
        video_seconds,
        2,
    )

    def work() -> None:
        take, release = Claims.take, Claims.release

        def taking(claims: Claims, entry_id: str) -> Any:
            sign = take(claims, entry_id)
            log.write("took" if sign is None else "lost", f"{entry_id}@{time.monotonic()}")
            return sign

        def releasing(claims: Claims, entry_id: str) -> None:
            release(claims, entry_id)
            log.write("released", f"{entry_id}@{time.monotonic()}")

        Claims.take, Claims.release = taking, releasing  # type: ignore[method-assign]
        setting.work(folder / "processes.zarr")

    began = time.monotonic()
    for pid in [many_writers.in_process(work) for _ in range(workers)]:
        os.waitpid(pid, 0)
    seconds = time.monotonic() - began
    events = Counter(event for _, event, _ in log.read())
    times: dict[str, dict[str, float]] = {"took": {}, "released": {}}
    for _, event, name in log.read():
        if event in times:
            entry_id, _, when = name.rpartition("@")
            times[event][entry_id] = float(when)
    holds = [times["released"][each] - taken for each, taken in times["took"].items()]
    hold = sum(holds) / len(holds)
    sizes = Counter(video.path.stat().st_size.bit_length() for video in setting.videos)
    simulated = Swarm(
        Setting(
            workers=workers,
            sizes=tuple(number for _, number in sorted(sizes.items(), reverse=True)),
            policy="own",
            video_seconds=hold / 2,
            start_spread=min(times["took"].values()) - began,
            deaths_per_hour=0.0,
            latency=0.0,
        ),
        costs,
    ).run()
    return {
        "workers": workers,
        "videos": len(open_cache(folder / "processes.zarr").ids()),
        "seconds": seconds,
        "mean hold": hold,
        "real": {"won": events["took"], "lost": events["lost"], "begun": events["begun"]},
        "simulated": {"won": simulated.won, "lost": simulated.lost},
    }


# ------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", default="10,100,1000,10000")
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--policies", default="own,share,alone")
    parser.add_argument("--video-seconds", type=float, default=30.0, help="of one worker's time")
    parser.add_argument("--deaths", type=float, default=0.01, help="an hour, of one worker")
    parser.add_argument("--server-rate", type=float, default=100_000, help="operations a second")
    parser.add_argument("--latency", type=float, default=0.0005, help="seconds an operation")
    parser.add_argument("--check", action="store_true", help="compare with real workers' steps")
    parser.add_argument("--check-workers", type=int, default=50)
    parser.add_argument("--check-videos", type=int, default=2000)
    parser.add_argument("--processes", action="store_true", help="compare with eight processes")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vis4mer-claims-") as name:
        folder = Path(name)
        costs = measure_steps(folder / "costs")
        found: dict[str, Any] = {
            "machine": describe_machine(("numpy",)),
            "operations of each step": costs.to_json(),
        }
        if asked.check:
            size = {"workers": asked.check_workers, "videos": asked.check_videos}
            found["check"] = compare(folder / "check", costs, **size)
        if asked.processes:
            (folder / "processes").mkdir()
            found["processes"] = run_processes(
                folder / "processes", costs, workers=8, videos=160, video_seconds=1.0
            )
    found["runs"] = []
    for policy in asked.policies.split(","):
        for workers in map(int, asked.workers.split(",")):
            setting = Setting(
                workers=workers,
                sizes=sizes_of(asked.videos),
                policy=policy,
                video_seconds=asked.video_seconds,
                deaths_per_hour=asked.deaths,
                latency=asked.latency,
                server_rate=asked.server_rate,
            )
            found["runs"].append(simulate(setting, costs))
            if not asked.json:
                print_run(found["runs"][-1], first=len(found["runs"]) == 1)
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        print_checks(found)


COLUMNS = {
    "workers": "{:,}",
    "policy": "{}",
    "ideal hours": "{:.2f}",
    "hours": "{:.2f}",
    "tail minutes": "{:.1f}",
    "operations a video": "{:,.0f}",
    "operations a second": "{:,.0f}",
    "server busy": "{:.0%}",
    "lost share": "{:.1%}",
    "deaths": "{:,}",
    "median takeover minutes": "{:.0f}",
    "done": "{:,}",
}


def print_run(run: dict[str, Any], *, first: bool) -> None:
    """A line of the table, in Markdown."""
    if first:
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    shown = ("–" if run[name] is None else form.format(run[name]) for name, form in COLUMNS.items())
    print(f"| {' | '.join(shown)} |", flush=True)


def print_checks(found: dict[str, Any]) -> None:
    """What the steps take, and the simulation beside the real thing."""
    print("operations of each step:", found["operations of each step"])
    for line in found.get("check", []):
        real, ours = line["real"], line["simulated"]
        print(
            f"{line['policy']}: real {sum(real['steps'].values()):,} operations, "
            f"{real['lost']:,} lost claims, {real['seconds']:.0f} s; simulated "
            f"{sum(ours['steps'].values()):,}, {ours['lost']:,}, {ours['seconds']:.0f} s"
        )
    if "processes" in found:
        print("eight processes:", found["processes"])


if __name__ == "__main__":
    main()
