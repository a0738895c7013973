"""Passes on devices: one after another on one, side by side on several.

Several devices have a process each (see `worker`), which is given one pass after another. A process
that dies, because memory ended, takes the runs of its pass along; they are tried again each alone,
and what kills a process by itself has failed. Whatever ends this process ends the others.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...store import fields as f
from ...store.errors import UsageError
from ...store.files import parse_json
from ..device import Compute
from .passes import Job, OnDone, OnText, PassDone, SweepProgress, Teller, train_pass
from .plan import PassPlan


def sweep_devices(text: str) -> tuple[str, ...]:
    """`auto` is every GPU that torch sees, or the CPU; several with commas, e.g. cuda:0,cuda:1."""
    if text == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return tuple(f"cuda:{i}" for i in range(count)) or ("cpu",)
    devices = tuple(device.strip() for device in text.split(","))
    if "auto" in devices:
        raise UsageError(f"--device {text}: auto stands by itself; name every device")
    for device in devices:
        Compute.of(device=device)
    return devices


def run_passes(
    passes: Sequence[PassPlan], *, devices: Sequence[str], on_done: OnDone, on_text: OnText
) -> None:
    """Train all passes. on_done is called in this thread, whenever runs have ended."""
    if len(devices) > 1 and len(passes) > 1:
        _side_by_side(passes, devices=devices, on_done=on_done, on_text=on_text)
        return
    for number, each in enumerate(passes, start=1):
        tell = Teller(on_text, device=devices[0], place=(number, len(passes)))
        for done in train_pass(each.cache, _jobs(each, devices[0]), progress=tell):
            on_done(done)


def _jobs(each: PassPlan, device: str) -> tuple[Job, ...]:
    return tuple((replace(run.config, device=device), run.run) for run in each.runs)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is given: runs that share a pass, of the cache at one path or address.
    processes: workers that there are at the same time."""

    cache: str
    jobs: tuple[Job, ...]
    place: tuple[int, int]
    processes: int

    def to_json(self, device: str) -> dict[str, Any]:
        return {
            "cache": self.cache,
            "device": device,
            "place": list(self.place),
            "processes": self.processes,
            "jobs": [
                {"config": replace(config, device=device).to_json(), "run": str(run)}
                for config, run in self.jobs
            ],
        }

    def without(self, runs: Sequence[Path]) -> Task:
        """What is left of it."""
        return replace(self, jobs=tuple(job for job in self.jobs if job[1] not in runs))

    def alone(self) -> list[Task]:
        """Its runs, each by itself."""
        return [replace(self, jobs=(job,)) for job in self.jobs]


@dataclass(frozen=True, kw_only=True)
class _Said:
    """A line of a worker; None when it has ended."""

    worker: _Worker
    line: bytes | None


class _Worker:
    """A device's process. Its lines come into a queue that all devices share."""

    def __init__(self, device: str, lines: queue.Queue[_Said]) -> None:
        self.device = device
        self.task: Task | None = None
        # A session of its own: Ctrl-C reaches this process alone, which then ends its workers.
        # -P: a folder that happens to be the current one lends no modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, args=(lines,), daemon=True).start()

    def give(self, task: Task) -> None:
        self.task = task
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has died, which its last line will say
                self._process.stdin.write(json.dumps(task.to_json(self.device)).encode() + b"\n")
                self._process.stdin.flush()

    def death(self) -> str:
        """How it ended, in words."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, as a system does when memory ends"
        if code < 0:
            return f"its process died of {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def close(self) -> None:
        self._process.kill()  # whatever it was writing is either whole or absent
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _listen(self, lines: queue.Queue[_Said]) -> None:
        if self._process.stdout is not None:
            with suppress(ValueError):  # closed from outside
                for line in self._process.stdout:
                    lines.put(_Said(worker=self, line=line))
        lines.put(_Said(worker=self, line=None))


def _side_by_side(
    passes: Sequence[PassPlan], *, devices: Sequence[str], on_done: OnDone, on_text: OnText
) -> None:
    """A worker for every device, each given the next pass when it is free."""
    waiting = deque(
        Task(
            cache=each.cache.address,
            jobs=_jobs(each, "auto"),
            place=(number, len(passes)),
            processes=min(len(devices), len(passes)),
        )
        for number, each in enumerate(passes, start=1)
    )
    lines: queue.Queue[_Said] = queue.Queue()
    workers: list[_Worker] = []
    try:
        for device in devices[: len(passes)]:
            workers.append(_Worker(device, lines))
            workers[-1].give(waiting.popleft())
        while any(worker.task for worker in workers):
            said = lines.get()
            if said.line is not None:
                _hear(said.worker, said.line, on_done, on_text)
            else:
                workers.remove(said.worker)
                waiting.extend(_after_death(said.worker, on_done))
                said.worker.close()
                if waiting:
                    workers.append(_Worker(said.worker.device, lines))
            for worker in [w for w in workers if w.task is None][: len(waiting)]:
                worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.close()


def _after_death(worker: _Worker, on_done: OnDone) -> list[Task]:
    """What is to be done again of a dead worker's task: its runs alone. One that was alone, or was
    the last, has failed."""
    task, worker.task = worker.task, None
    if task is None or not task.jobs:
        return []
    if len(task.jobs) > 1:
        return task.alone()
    run = task.jobs[0][1]
    on_done(PassDone(runs=(run,), failed={run: worker.death()}))
    return []


def _hear(worker: _Worker, line: bytes, on_done: OnDone, on_text: OnText) -> None:
    """Pass on what a worker said, and keep what is left of its task."""
    name = f"answer of the process of {worker.device}"
    said = parse_json(line, name=name)
    if "idle" in said:
        worker.task = None
    elif "text" in said:
        text, lasting = f.text(said, "text", name=name), bool(said.get("lasting"))
        on_text(SweepProgress(device=worker.device, text=text, lasting=lasting))
    else:
        failed = f.mapping(said, "failed", name=name)
        done = PassDone(
            runs=tuple(map(Path, f.texts(said, "runs", name=name))),
            failed={Path(run): f.text(failed, run, name=name) for run in failed},
        )
        if worker.task is not None:
            worker.task = worker.task.without(done.runs)
        on_done(done)
