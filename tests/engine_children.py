"""The processes of an engine in tests: the real work, slowly, on the videos of `extraction`.

A process imports this module by its name, whatever the test has replaced in its own.
"""

from __future__ import annotations

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
FRAME_SECONDS = 0.02


def write_videos(folder: Path) -> Path:
    for i in range(NUM_VIDEOS):
        ex.write_video(folder, f"{i:02}", NUM_FRAMES, start=i)
    return folder


def asked_for(folder: Path, cache: Path) -> ExtractRequest:
    return ExtractRequest(inputs=[str(folder)], cache=cache, weights="random:0", workers=1)


def fake() -> None:
    """In this process, the backbone and the reader are those of `extraction`."""
    request.get_reader = lambda _: ex.FakeReader(lambda: time.sleep(FRAME_SECONDS))  # type: ignore
    request._load = lambda *_, **__: ex.grey_backbone()  # type: ignore


def work(asked: ExtractRequest, *given: Any) -> None:
    fake()
    child.work(asked, *given)


def refuse(asked: ExtractRequest, *given: Any) -> None:
    def load(*_: object, **__: object) -> Backbone:
        raise UsageError(f"--backbone: never heard of it on {asked.device}")

    fake()
    request._load = load  # type: ignore
    child.work(asked, *given)


def crash(*_: object) -> None:
    sys.exit(7)
