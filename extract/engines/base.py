"""What an engine is, and the catalogue of engines; each is imported when it is first asked for.

    engine_named("local")(asked, options=EngineOptions(devices=("cuda:0", "cuda:1")), …)

Knows nothing of how any of them works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from ...store.errors import UsageError
from ..request import ExtractRequest, OnNote
from ..stages.progress import ExtractProgress, ExtractSummary, require_counts

# Told of all processes together, some times a second, in the calling thread.
OnProgress = Callable[[ExtractProgress], None]

# Name → "module:function" of this package.
ENGINES: Mapping[str, str] = {
    "inline": "inline:extract_inline",
    "local": "local:extract_locally",
    "ray": "ray:extract_on_ray",
}

_GOES_WITH: Mapping[str, str] = {
    "devices": "--engine local",
    "processes": "--engine local or ray",
    "address": "--engine ray",
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How many processes, and where; an engine refuses those that it has no use for.

    devices: one process each, e.g. ("cuda:0", "cuda:1"); none: every GPU there is. processes: so
    many, on the CPU; None is the engine's own choice. address: of a cluster.
    """

    devices: tuple[str, ...] = ()
    processes: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        require_counts(processes=self.processes)

    def refuse(self, engine: str, *names: str) -> None:
        """UsageError when one of these options is given, which `engine` has no use for."""
        for name in names:
            if getattr(self, name):
                raise UsageError(f"--{name} goes with {_GOES_WITH[name]}, not with {engine}")


def refuse_profile(asked: ExtractRequest, engine: str) -> None:
    """UsageError when a profile is asked for, which is of one process."""
    if asked.profile is not None:
        raise UsageError(
            f"--profile {asked.profile}: it shows one process; leave out --engine {engine}"
        )


class Engine(Protocol):
    """Runs one request to its end, and gives one summary of all its processes.

    stop: when set, every process finishes what it has completely read, and the summary says
    `interrupted`. on_note: told what a user must know at once, one line each. Raises what
    `request.extract_videos` does, and Vis4merError when no process could do anything.
    """

    def __call__(
        self,
        asked: ExtractRequest,
        *,
        options: EngineOptions,
        stop: threading.Event | None = None,
        progress: OnProgress | None = None,
        on_note: OnNote | None = None,
    ) -> ExtractSummary:
        """Extract."""


def engine_named(name: str) -> Engine:
    """The engine of this name. UsageError for one that is not in the catalogue."""
    if name not in ENGINES:
        raise UsageError(f"--engine {name}: expected one of {', '.join(ENGINES)}")
    module, _, function = ENGINES[name].partition(":")
    engine: Any = getattr(import_module(f".{module}", __package__), function)
    chosen: Engine = engine
    return chosen
