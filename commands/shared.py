"""What several commands share: options and their values, exit codes, stopping on SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..store.errors import UsageError
from ..store.spec import ProtocolName
from ..store.wording import bytes_said

if TYPE_CHECKING:
    from ..decode.training.ranks import Ranks

EXIT_SOME_FAILED = 3

Split = Literal["train", "val", "test"]
Which = Literal["selected", "best", "last"]
Preload = Literal["off", "ram", "gpu"]
Protocol = ProtocolName
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
# Text, since a Path takes a slash from s3://; what writes refuses an address (`Cache.path`).
CachePath = Annotated[
    str, typer.Argument(metavar="CACHE", help="A feature cache, NAME.zarr; to read, also its URL.")
]
CacheHere = Annotated[
    str, typer.Argument(metavar="CACHE", help="A feature cache here, NAME.zarr; no URL.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets (a scheduler's preemption): finish what is in hand and leave."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def processes_together() -> Iterator[Ranks | None]:
    """The processes that torchrun has begun with this one; None for one by itself.

    All of them end with the same exit code, and the first one alone says why.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":  # before torch is loaded
        yield None
        return
    from ..decode.training.ranks import joined_ranks

    try:
        with joined_ranks() as ranks:
            yield ranks
    except Exception as error:
        if os.environ.get("RANK") == "0":
            raise
        raise typer.Exit(getattr(error, "exit_code", 1)) from error


def refuse_torchrun(command: str, instead: str) -> None:
    """UsageError where torchrun has begun several processes of a command that is one."""
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UsageError(f"{command}: begun {count} times by torchrun; {instead}")


def parse_sides(text: str, *, option: str = "--grids") -> tuple[int, ...]:
    """`7,4` as (7, 4). UsageError for anything else."""
    try:
        return tuple(int(side) for side in text.split(",")) if text else ()
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected whole numbers such as 7 or 7,4") from error


def parse_bytes(text: str, *, option: str) -> int:
    """A size such as `200MB`, as `bytes_said` has it. UsageError for anything else."""
    size = bytes_said(text)
    if size is None:
        raise UsageError(f"{option} {text}: expected a size such as 200MB or 1.5GB")
    return size


def parse_names(values: Sequence[str] | None) -> tuple[str, ...]:
    """The names in values such as `a,b` and `@FILE`, one a line there, each once."""
    from ..extract.sources import read_list

    found: list[str] = []
    for value in values or ():
        if value.startswith("@"):
            found += read_list(Path(value[1:]))
        else:
            found += [name for name in map(str.strip, value.split(",")) if name]
    return tuple(dict.fromkeys(found))


def choose_thread_waiting() -> None:
    """On a machine that is busy already, ask OpenMP for threads that wait without spinning.

    Spinning threads take the cores from each other there (small decoders ran five times slower at
    twice the load); on idle cores they make large steps a third faster. Read when torch is loaded,
    which has not happened yet; a policy that is set already stays.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > (os.cpu_count() or 1) / 2:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def ask_for_large_pages() -> None:
    """Have torch ask Linux for memory in pages of 2 MB, where they are to be had on request.

    A training step takes and gives back gigabytes, and each page of 4 KB costs a fault: a tenth of
    the time of a large step on CPUs. Read when torch first takes memory; a choice made stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def exit_with(num_done: int, num_failed: int) -> None:
    """End with exit code 3 when some videos failed, 1 when all did."""
    if num_failed:
        raise typer.Exit(EXIT_SOME_FAILED if num_done else 1)
