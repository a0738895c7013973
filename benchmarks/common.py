"""What every benchmark needs: what machine this is, and times that a busy one does not spoil."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


def describe_machine(packages: Sequence[str]) -> dict[str, object]:
    """Processor, cores, system, and the versions of Python and of `packages`."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: _version(package) for package in packages},
    }


@dataclass(frozen=True)
class Timing:
    """Median times of one run: on the clock, and of all cores together."""

    seconds: float
    cpu_seconds: float


def median_times(
    works: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 1
) -> dict[str, Timing]:
    """Time each work. They alternate in an order that changes every round, so that a busy moment
    slows all of them and none always finds what another has just warmed; the CPU time tells what
    remains of a difference when the machine has other things to do."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for round_number in range(warm_up + repeats):
        for name in random.Random(round_number).sample(list(works), len(works)):
            start, cpu_start = time.perf_counter(), time.process_time()
            works[name]()
            taken = time.perf_counter() - start, time.process_time() - cpu_start
            if round_number >= warm_up:
                times[name].append(taken)
    return {
        name: Timing(*(statistics.median(column) for column in zip(*values, strict=True)))
        for name, values in times.items()
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
