"""What several commands share: options, exit codes, stopping on SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

EXIT_SOME_FAILED = 3

Split = Literal["train", "val", "test"]
Which = Literal["selected", "best", "last"]
Protocol = Literal["clean", "official"]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="A feature cache, NAME.zarr.")]
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


def exit_with(num_done: int, num_failed: int) -> None:
    """End with exit code 3 when some videos failed, 1 when all did."""
    if num_failed:
        raise typer.Exit(EXIT_SOME_FAILED if num_done else 1)
