"""Extraction by several processes of this machine, one for every GPU.

Each runs the whole request by itself, beginning with a share of its own; the store's claims keep
them from doing a video twice. This process shows what all have done, passes a stop on to them and
says who has died. It starts none again: what a dead one had in hand, the others take up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import connection
from typing import Self

from ...store.cache import find_cache
from ...store.errors import UsageError, Vis4merError
from ..planning.share import Share
from ..request import ExtractRequest, OnNote, extract_videos, find_videos
from ..stages.cores import usable_cores
from ..stages.progress import ExtractSummary
from ..stages.sharing import leave_catalog
from .base import EngineOptions, OnProgress, refuse_profile
from .child import Ended, Note, work
from .together import Outset, Part, attempts_of, progress_together, summary_together

_LOOK_SECONDS = 0.2
_MIN_PROCESSES = 2  # may be asked for on any machine


def extract_locally(
    asked: ExtractRequest,
    *,
    options: EngineOptions,
    stop: threading.Event | None = None,
    progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> ExtractSummary:
    """Extract with a process for each device; with one device, here.

    `devices` of the options, else `processes` of the CPU, else every GPU that torch sees. A `limit`
    is divided among them. The summary is of all; `interrupted` also where the death of a process
    left something undone. Raises the error of the first process when none came to its end.
    """
    options.refuse("local", "address")
    refuse_profile(asked, "local")
    devices = _devices(asked, options)
    if len(devices) > 1:
        outset = _outset(asked)
        devices = devices[: max(1, len(outset.ids))]  # more than videos would find nothing to do
    if len(devices) == 1:
        asked = replace(asked, device=devices[0])
        return extract_videos(asked, stop=stop, progress=progress, on_note=on_note)
    processes = _Processes(
        _each(asked, devices),
        attempts=outset.attempts if asked.overwrite else None,
        stop=stop or threading.Event(),
        on_note=on_note,
    )
    with processes:
        while processes.are_at_work:
            processes.look()
            together = progress_together(processes.parts, outset)
            if progress is not None and together is not None:
                progress(together)
    processes.require_end()
    cache = find_cache(asked.cache_path)
    if cache is not None:
        leave_catalog(cache)
    attempts = attempts_of(cache, outset.ids)
    summary = summary_together(processes.parts, outset, attempts, stopped=processes.has_lost)
    return replace(summary, notes=(*summary.notes, *processes.losses))


def _devices(asked: ExtractRequest, options: EngineOptions) -> tuple[str, ...]:
    """The device of each process."""
    if options.devices and options.processes:
        raise UsageError(
            "--devices and --processes: expected one of them; --processes is the CPU's"
        )
    if options.devices and asked.device != "auto":
        raise UsageError(f"--device {asked.device} beside --devices: expected one of them")
    if options.devices:
        if len(set(options.devices)) < len(options.devices):
            raise UsageError(f"--devices {','.join(options.devices)}: expected each device once")
        return options.devices
    if options.processes and asked.device not in ("auto", "cpu"):
        raise UsageError(
            f"--device {asked.device} beside --processes, which are the CPU's: expected one of "
            "them; --devices 0,1 names GPUs"
        )
    if options.processes:
        most = max(usable_cores(), _MIN_PROCESSES)
        if options.processes > most:
            raise UsageError(
                f"--processes {options.processes}: more processes than cores gain nothing; "
                f"expected at most {most} here"
            )
        return ("cpu",) * options.processes
    if asked.device != "auto":
        return (asked.device,)
    import torch

    count = torch.cuda.device_count()
    if not count:
        raise UsageError("--engine local: torch sees no GPU here; --processes N uses the CPU")
    return tuple(f"cuda:{i}" for i in range(count))


def _outset(asked: ExtractRequest) -> Outset:
    """What was asked for, and what of it is there. Raises what is wrong with the request before
    any process is started for it."""
    ids = [video.id for video in find_videos(asked).videos]
    share = asked.share
    if share is not None and not share.helps:
        ids = [video_id for video_id in ids if share.has(video_id)]
    attempts = attempts_of(find_cache(asked.cache_path), ids)
    return Outset(ids=tuple(ids), attempts=attempts, overwrite=asked.overwrite)


def _each(asked: ExtractRequest, devices: Sequence[str]) -> list[tuple[ExtractRequest, list[int]]]:
    """What each process is asked for, and on which cores where it shares the CPU."""
    count = len(devices)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    whole = asked.share or Share(number=1, count=1)
    each = []
    for i, device in enumerate(devices):
        on_cpu = device == "cpu" and len(cores) >= count
        each.append(
            (
                replace(
                    asked,
                    device=device,
                    # Those that may not help others help each other in what is theirs together.
                    share=whole.part(i + 1, count) if whole.helps else whole,
                    limit=None if asked.limit is None else (asked.limit + count - 1 - i) // count,
                    workers=asked.workers or max(1, usable_cores() // count),
                ),
                cores[i::count] if on_cpu else [],
            )
        )
    return each


class _Child:
    """A process, and what it has told."""

    def __init__(
        self, asked: ExtractRequest, cores: Sequence[int], attempts: Mapping[str, str] | None
    ) -> None:
        spawn = multiprocessing.get_context("spawn")  # a GPU's context does not survive a fork
        self.device = asked.device
        self.pipe, its_own = spawn.Pipe(duplex=False)
        given = (asked, its_own, cores, attempts)
        self.process = spawn.Process(target=work, args=given, daemon=True)
        with _deaf_to_interrupts():
            self.process.start()
        its_own.close()  # so that the pipe ends with the process
        self.part = Part(pid=self.process.pid)
        self.end: Ended | None = None

    def death(self) -> str:
        """How it ended, in words."""
        self.process.join()
        if self.end is not None and self.end.error:
            return f"ended with exit code {self.end.exit_code}: {self.end.error}"
        code = self.process.exitcode or 0
        if code < 0:
            return f"died of {signal.Signals(-code).name} (exit code {code})"
        return f"ended with exit code {code}"


class _Processes:
    """All the processes. Leaving the context ends those that are still there.

    attempts: see `child.work`. losses: a sentence for each that did not come to its end.
    """

    def __init__(
        self,
        each: Sequence[tuple[ExtractRequest, list[int]]],
        *,
        attempts: Mapping[str, str] | None,
        stop: threading.Event,
        on_note: OnNote | None,
    ) -> None:
        self.losses: list[str] = []
        self._stop = stop
        self._told_to_stop = False
        self._on_note = on_note or (lambda _: None)
        self._notes: set[str] = set()
        self._children: list[_Child] = []
        self._at_work: list[_Child] = []
        try:
            for asked, cores in each:
                self._children.append(_Child(asked, cores, attempts))
                self._at_work.append(self._children[-1])
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """After Ctrl-C each may let go of what it has; a second one ends them at once."""
        try:
            if kind is KeyboardInterrupt:
                self._stop.set()
                while self.are_at_work:
                    self.look()
        finally:
            self._kill()

    @property
    def are_at_work(self) -> bool:
        return bool(self._at_work)

    @property
    def parts(self) -> list[Part]:
        return [child.part for child in self._children]

    @property
    def has_lost(self) -> bool:
        return bool(self.losses) or self._told_to_stop

    def look(self) -> None:
        """Hear what the processes tell, for a moment at most, and pass a stop on to them."""
        if self._stop.is_set() and not self._told_to_stop:
            self._told_to_stop = True
            for child in self._at_work:
                child.process.terminate()
        speaking = connection.wait([child.pipe for child in self._at_work], timeout=_LOOK_SECONDS)
        for child in [child for child in self._at_work if child.pipe in speaking]:
            try:
                self._hear(child)
            except (EOFError, OSError):  # it has ended
                self._at_work.remove(child)
                self._bury(child)

    def require_end(self) -> None:
        """Raise the first error when no process came to its end."""
        if any(child.part.summary for child in self._children):
            return
        for child in self._children:
            if child.end is not None:
                kind = UsageError if child.end.exit_code == UsageError.exit_code else Vis4merError
                raise kind(child.end.error)
        if self._told_to_stop:
            raise Vis4merError("stopped before any process had begun; the same command goes on")
        raise Vis4merError(f"no process came to its end: {'; '.join(self.losses)}")

    def _hear(self, child: _Child) -> None:
        message = child.pipe.recv()
        if isinstance(message, Note):
            if message.text not in self._notes:  # each process says what the request is about
                self._notes.add(message.text)
                self._on_note(message.text)
        elif isinstance(message, Ended):
            child.end = message
            child.part = replace(child.part, summary=message.summary)
        else:
            child.part = replace(child.part, progress=message)

    def _bury(self, child: _Child) -> None:
        """Say so when a process has ended otherwise than it should."""
        death = child.death()
        stopped_early = self._told_to_stop and child.process.exitcode == -signal.SIGTERM
        if child.part.summary is None and not stopped_early:
            loss = f"the process of {child.device} (pid {child.process.pid}) {death}"
            self.losses.append(loss)
            others = "; the others take up its videos" if self._at_work else ""
            self._on_note(f"{loss}{others}")

    def _kill(self) -> None:
        for child in self._children:
            if child.process.is_alive():
                child.process.kill()  # whatever it was writing is either whole or absent
            child.process.join()
            child.pipe.close()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal. One that begins meanwhile is deaf to it from its
    first moment, as it inherits this; otherwise it would end with a traceback."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if in_main else None
    if before is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
