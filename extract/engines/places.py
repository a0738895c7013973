"""Where on a cluster workers are to be, and what each is to have.

Arithmetic of what machines say that they have. Knows nothing of how an actor is made.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

Resources = Mapping[str, float]  # of one machine, by name: CPU, GPU
_IS_MACHINE = re.compile(r"node:(?!__)")  # what Ray gives every machine one of
_PIN = 0.001  # of it, for a worker that is to be there


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one worker has. machine: a resource that only its machine has; none: wherever there is
    room for it."""

    gpus: int
    cores: float
    machine: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """As Ray is asked for it."""
        pinned = {self.machine: _PIN} if self.machine else {}
        return {"num_gpus": self.gpus, "num_cpus": self.cores, "resources": pinned}

    def describe(self) -> str:
        cores = f"{self.cores:g} CPU core{'s' if self.cores != 1 else ''}"
        return f"a GPU and {cores}" if self.gpus else cores


@dataclass(frozen=True, kw_only=True)
class Need:
    """What workers are to have.

    cores: of each, at most; None is its part of its machine's. most: how many workers there are to
    be, more than machines have room for as well, since some may join for them; None for all that
    machines of today and of later have room for.
    """

    gpus: int
    cores: float | None = None
    most: int | None = None

    def places(self, nodes: Sequence[Resources]) -> Counter[Place]:
        """Where the workers are to be, on machines that are alike or not."""
        places = self._there(nodes)
        if self.most is not None and self.most > places.total():
            places[self.usual(nodes)] += self.most - places.total()
        return places

    def usual(self, nodes: Sequence[Resources]) -> Place:
        """One that there is room for on every machine that has places."""
        parts = [place.cores for place in self._there(nodes)]
        return Place(gpus=self.gpus, cores=min(parts, default=self.cores or 1.0))

    def _there(self, nodes: Sequence[Resources]) -> Counter[Place]:
        """The places of the machines that are there; processes share all of them."""
        places: Counter[Place] = Counter()
        for node in nodes if self.gpus or self.most is None else ():
            place = self._on(node)
            by_cores = int(_amount(node, "CPU") / place.cores + 1e-6)
            places[place] += min(by_cores, int(_amount(node, "GPU"))) if self.gpus else by_cores
        return +places

    def _on(self, node: Resources) -> Place:
        """One place of this machine."""
        workers = max(1, int(_amount(node, "GPU"))) if self.gpus else 1
        part = _portion(_amount(node, "CPU"), workers)
        return Place(
            gpus=self.gpus,
            cores=part if self.cores is None else min(part, self.cores),
            machine=next((name for name in node if _IS_MACHINE.match(name)), ""),
        )


def need_of(
    nodes: Sequence[Resources], *, device: str, processes: int | None, workers: int | None
) -> Need:
    """One worker for every GPU, with its part of that machine's cores; where there is none, or
    `device` is cpu, one for every machine, or `processes` that share the cores.

    workers: of a GPU's worker, videos read at once, for which it needs no more cores than that.
    """
    if device == "cuda" or (device == "auto" and any(_amount(each, "GPU") >= 1 for each in nodes)):
        return Need(gpus=1, cores=None if workers is None else float(workers), most=processes)
    sizes = [_amount(each, "CPU") for each in nodes if _amount(each, "CPU") > 0]
    if not sizes or processes is None:
        return Need(gpus=0, most=processes)
    whole = (float(cores) for cores in range(int(max(sizes)), 0, -1))
    parts_of_one = (_portion(1.0, parts) for parts in range(2, processes + 2))
    fitting = (
        c for c in chain(whole, parts_of_one) if sum(int(n / c + 1e-6) for n in sizes) >= processes
    )
    return Need(gpus=0, cores=next(fitting, _portion(max(sizes), processes)), most=processes)


def _portion(cores: float, parts: int) -> float:
    """One of so many parts: whole cores, or less than one to four places, as Ray counts."""
    part = cores / parts
    return float(int(part)) if part >= 1 else max(0.0001, int(part * 10_000) / 10_000)


def _amount(node: Resources, name: str) -> float:
    return float(node.get(name, 0.0))
