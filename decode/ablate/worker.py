"""One device's process of a sweep: `python -P -m vis4mer.decode.ablate.worker`.

Each line of standard input is a pass in JSON, see `devices.Task`. Lines of standard output are

    {"text": …, "lasting": false}      what it is doing
    {"runs": […], "failed": {…}}       runs that have come to their end
    {"idle": true}                     the pass is over, it waits for the next

Its parent's end of standard input is its life: when that closes it ends at once, in the middle of a
step if need be, as a killed run does, which goes on with the same command.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ...store import fields as f
from ...store.cache import Cache, open_cache
from ..config import TrainConfig
from .passes import SweepProgress, Teller, train_pass

TELL_SECONDS = 0.5  # between two lines about the same pass
_NAME = "the pass of a sweep"


class Answers:
    """Lines to the parent."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._next = 0.0

    def say(self, answer: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(answer) + "\n")
        self._stream.flush()

    def tell(self, progress: SweepProgress) -> None:
        """What lasts always, the rest now and then."""
        now = time.monotonic()
        if progress.lasting or now >= self._next:
            self._next = now + TELL_SECONDS
            self.say({"text": progress.text, "lasting": progress.lasting})


def main() -> None:
    """Train what comes in until nothing more can come."""
    answers = Answers(_own_output())
    with suppress(OSError):  # should memory end nonetheless, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    tasks: queue.Queue[Mapping[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    caches: dict[str, Cache] = {}
    while True:
        _train(tasks.get(), caches, answers)
        answers.say({"idle": True})


def _listen(tasks: queue.Queue[Mapping[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(0)


def _train(task: Mapping[str, Any], caches: dict[str, Cache], answers: Answers) -> None:
    path = f.text(task, "cache", name=_NAME)
    if path not in caches:
        caches[path] = open_cache(path)
    jobs = [
        (
            TrainConfig.from_json(f.mapping(job, "config", name=_NAME)),
            Path(f.text(job, "run", name=_NAME)),
        )
        for job in f.sequence(task, "jobs", name=_NAME)
    ]
    number, count = f.integers(task, "place", name=_NAME)
    device = f.text(task, "device", name=_NAME)
    teller = Teller(answers.tell, device=device, place=(number, count))
    processes = f.integer(task, "processes", name=_NAME, minimum=1)
    for done in train_pass(caches[path], jobs, progress=teller, processes=processes):
        failed = {str(run): reason for run, reason in done.failed.items()}
        answers.say({"runs": [str(run) for run in done.runs], "failed": failed})


def _own_output() -> IO[str]:
    """Standard output for answers alone: what libraries print goes where errors go."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


if __name__ == "__main__":
    main()
