"""A Ray cluster as this package sees it: joined for a while, and what its machines have.

The only place that imports Ray, when it is asked for. Knows nothing of videos.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any

from ...store.errors import UsageError
from ...store.wording import first_line

Resources = Mapping[str, float]  # of one machine, by name: CPU, GPU
CONNECT_SECONDS = 10.0
_EXPECTED = "expected auto, local, HOST:PORT or ray://HOST:PORT"


@contextlib.contextmanager
def joined_cluster(address: str | None) -> Iterator[Any]:
    """Ray, joined to a cluster and left again; where this process has joined one, that one.

    address: `auto` or None is the cluster that this machine belongs to (or RAY_ADDRESS), `local` is
    one of this machine alone, only for this time. UsageError when there is none.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports home
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise UsageError(
            f"--engine ray needs Ray, which is not installed ({first_line(error)}): "
            "`pip install '.[ray]'` in the checkout"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = address or "auto"
    _require_answer(address)
    _join(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    """Join, and keep SIGTERM for whoever has it now: Ray takes it for itself."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        ray.init(address=address, **_settings(address))
    except (ConnectionError, RuntimeError, ValueError, OSError, ImportError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster can be joined ({first_line(error)}); start one "
            "with `ray start --head`, or say --address local"
        ) from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _settings(address: str) -> dict[str, Any]:
    """What workers print is no output of this command."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    return {**quiet, "include_dashboard": False} if address == "local" else quiet


def _require_answer(address: str) -> None:
    """UsageError for an address where nobody answers; Ray itself would wait for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or "/" in host or int(port) > 65535:
        raise UsageError(f"--address {address}: {_EXPECTED}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"--address {address}: nobody answers there ({error.strerror or error}); {_EXPECTED}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Need:
    """What each worker is to have. most: how many workers there are to be; None for all that
    machines of today and of later have room for."""

    gpus: int
    cores: float
    most: int | None = None

    def count(self, nodes: Sequence[Resources]) -> int:
        """How many workers there should be."""
        return _room(nodes, self.cores, self.gpus) if self.most is None else self.most

    def describe(self) -> str:
        cores = f"{self.cores:g} CPU core{'s' if self.cores != 1 else ''}"
        return f"a GPU and {cores}" if self.gpus else cores


def need_of(
    nodes: Sequence[Resources], *, device: str, processes: int | None, workers: int | None
) -> Need:
    """One worker for every GPU, with its part of that machine's cores; where there is none, or
    `device` is cpu, one for every machine, or `processes` that share the cores.

    workers: of a GPU's worker, videos read at once, which is the cores that it needs.
    """
    having = [each for each in nodes if _amount(each, "GPU") >= 1]
    if device == "cuda" or (device == "auto" and having):
        parts = [_portion(_amount(each, "CPU"), int(_amount(each, "GPU"))) for each in having]
        return Need(gpus=1, cores=float(workers or min(parts, default=1.0)), most=processes)
    sizes = [_amount(each, "CPU") for each in nodes if _amount(each, "CPU") > 0]
    if not sizes or processes is None:
        return Need(gpus=0, cores=min(sizes, default=1.0), most=processes)
    whole = (float(cores) for cores in range(int(max(sizes)), 0, -1))
    parts_of_one = (_portion(1.0, parts) for parts in range(2, processes + 2))
    fitting = (c for c in chain(whole, parts_of_one) if _room(nodes, c, 0) >= processes)
    return Need(gpus=0, cores=next(fitting, _portion(max(sizes), processes)), most=processes)


def nodes_of(ray: Any) -> list[Resources]:
    """What each machine has that is there now."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _room(nodes: Sequence[Resources], cores: float, gpus: int) -> int:
    """Workers of this size that fit on the machines when nothing else is there."""
    by_cores = [int(_amount(node, "CPU") / cores + 1e-6) for node in nodes]
    if not gpus:
        return sum(by_cores)
    return sum(min(n, int(_amount(node, "GPU"))) for n, node in zip(by_cores, nodes, strict=True))


def _portion(cores: float, parts: int) -> float:
    """One of so many parts: whole cores, or less than one to four places, as Ray counts."""
    part = cores / parts
    return float(int(part)) if part >= 1 else max(0.0001, int(part * 10_000) / 10_000)


def _amount(node: Resources, name: str) -> float:
    return float(node.get(name, 0.0))
