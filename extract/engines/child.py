"""One of several processes that extract on this machine: what it does, and what it tells.

The messages of a process go through a pipe to the one that has started it; the last is an `Ended`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ...store.errors import Vis4merError
from ...store.wording import describe_error
from ..request import ExtractRequest, extract_videos
from ..stages.progress import ExtractProgress, ExtractSummary


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a user must know."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the work ended: with a summary, or with an error, its message and exit code."""

    summary: ExtractSummary | None = None
    error: str = ""
    exit_code: int = 0


Message = ExtractProgress | Note | Ended


class Teller:
    """The pipe to the process that has started this one. When it is gone, this one is to stop."""

    def __init__(self, pipe: Connection, stop: threading.Event) -> None:
        self._pipe = pipe
        self._stop = stop

    def tell(self, message: Message) -> None:
        try:
            self._pipe.send(message)
        except OSError:  # nobody reads any more
            self._stop.set()

    def note(self, text: str) -> None:
        self.tell(Note(text=text))


def work(
    asked: ExtractRequest,
    pipe: Connection,
    cores: Sequence[int],
    attempts: Mapping[str, str] | None,
) -> None:
    """The life of such a process: extract what is asked for, on these cores (none: on any).

    attempts: see `extract_videos`. SIGTERM stops it cleanly. Ctrl-C is for the process that has
    started it, which then says so; so is every error, in one line.
    """
    stop = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # a core was taken away meanwhile
            os.sched_setaffinity(0, cores)
    teller = Teller(pipe, stop)
    try:
        summary = extract_videos(
            asked, stop=stop, progress=teller.tell, on_note=teller.note, attempts=attempts
        )
    except Vis4merError as error:
        teller.tell(Ended(error=str(error), exit_code=error.exit_code))
    except Exception as error:
        teller.tell(Ended(error=describe_error(error), exit_code=Vis4merError.exit_code))
    else:
        teller.tell(Ended(summary=summary))
