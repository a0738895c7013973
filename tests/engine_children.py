"""The processes of an engine in tests: the real work, slowly, on the videos of `extraction`.

A process imports this module by its name, whatever the test has replaced in its own.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

import extraction as ex
from vis4mer.extract import request
from vis4mer.extract.backbones.loading import Backbone
from vis4mer.extract.engines import child
from vis4mer.extract.request import ExtractRequest
from vis4mer.store.errors import UsageError

NUM_VIDEOS, NUM_FRAMES = 16, 6
FRAME_SECONDS, SLOW_SECONDS = 0.02, 0.4
QUICK_FRAMES = 2 * NUM_FRAMES  # of each process, also where the others come slowly


def write_videos(folder: Path) -> Path:
    for i in range(NUM_VIDEOS):
        ex.write_video(folder, f"{i:02}", NUM_FRAMES, start=i)
    return folder


def asked_for(folder: Path, cache: Path) -> ExtractRequest:
    return ExtractRequest(inputs=[str(folder)], cache=cache, weights="random:0", workers=1)


def slowly(videos: Path) -> Path:
    """A file: while it is there, a process does so little after its first frames that whoever is
    to disturb its work never comes too late, however long it must wait for a core."""
    return videos.with_name("slowly")


def fake(asked: ExtractRequest) -> None:
    """In this process, the backbone and the reader are those of `extraction`."""
    slow, frames = slowly(Path(asked.inputs[0])), itertools.count(1)

    def wait() -> None:
        is_slow = next(frames) > QUICK_FRAMES and slow.exists()
        time.sleep(SLOW_SECONDS if is_slow else FRAME_SECONDS)

    request.get_reader = lambda _: ex.FakeReader(wait)  # type: ignore
    request._load = lambda *_, **__: ex.grey_backbone()  # type: ignore


def work(asked: ExtractRequest, *given: Any) -> None:
    fake(asked)
    child.work(asked, *given)


def refuse(asked: ExtractRequest, *given: Any) -> None:
    def load(*_: object, **__: object) -> Backbone:
        raise UsageError(f"--backbone: never heard of it on {asked.device}")

    fake(asked)
    request._load = load  # type: ignore
    child.work(asked, *given)


def crash(*_: object) -> None:
    sys.exit(7)
