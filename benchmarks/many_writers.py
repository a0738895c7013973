"""Many processes fill one cache while a random one of them is killed every few seconds.

    python benchmarks/many_writers.py [--videos 200] [--workers 8] [--kill-seconds 2] [--json]

Every worker runs what `vis4mer extract` runs, on the same videos, which are generated; a killed one
(SIGKILL) is replaced. It ends when every worker has ended. Then: is each video present exactly
once, does every byte verify, is every value that of an undisturbed run, and how many encodings were
in vain? One is in vain when its worker was killed with it in hand, which nothing can save, or when
another worker had encoded the same video, which claims are to prevent. Reading a video is slowed
down so that there is always something in hand. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import torch
from common import describe_machine
from vis4mer.extract.backbones.loading import Backbone, cache_spec, load_backbone
from vis4mer.extract.readers import get_reader
from vis4mer.extract.readers.base import FrameBatch
from vis4mer.extract.sampling import Moments
from vis4mer.extract.sources import VideoSource, resolve_sources
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.claims import list_claims
from vis4mer.store.gc import collect_garbage
from vis4mer.store.spec import Sampling
from vis4mer.store.verify import verify_cache
from vis4mer.store.writer import EntryWriter

BACKBONE = "vit_tiny_patch16_224@64"
SIDE, RATE, FRAMES = 64, 10, 20
FPS = 5.0


def write_videos(folder: Path, count: int) -> None:
    """Clips of two seconds whose grey levels move."""
    folder.mkdir()
    random_levels = np.random.default_rng(0).integers(0, 200, (count, SIDE, SIDE, 3))
    for number, picture in enumerate(random_levels):
        with av.open(str(folder / f"{number:04}.mp4"), "w") as output:
            stream = output.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, RATE)
            for k in range(FRAMES):
                shown = av.VideoFrame.from_ndarray((picture + k).astype(np.uint8), format="rgb24")
                shown.pts, shown.time_base = k, Fraction(1, RATE)
                output.mux(stream.encode(shown))
            output.mux(stream.encode(None))


class Log:
    """One line an event, in one file that all workers append to; a line is whole or absent."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, name: str) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(fd, f"{os.getpid()} {event} {name}\n".encode())
        os.close(fd)

    def read(self) -> list[tuple[int, str, str]]:
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        return [(int(pid), event, name) for pid, event, name in map(str.split, lines)]


@dataclass(frozen=True)
class SlowReader:
    """PyAV, with a pause after the frames of each video, and a line for each that is begun."""

    log: Log
    seconds: float
    name: str = "pyav"
    version: str = "slow"

    def open(self, path: Path, *, moments: Moments) -> SlowStream:
        self.log.write("begun", path.name)
        return SlowStream(get_reader("pyav").open(path, moments=moments), self.seconds)


class SlowStream:
    """A stream of frames that takes its time."""

    def __init__(self, stream: Any, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Self:
        self._stream.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[FrameBatch]:
        for batch in self._stream:
            yield batch
            time.sleep(self._seconds)


def in_process(work: Callable[[], object]) -> int:
    """Start a process that does `work`; its pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


@dataclass(frozen=True)
class Setting:
    """What every worker does."""

    videos: list[VideoSource]
    backbone: Backbone
    log: Log
    video_seconds: float
    reading: int

    def fill(self, cache: Cache, *, claiming: bool, slow: bool) -> None:
        fill_cache(
            self.videos,
            cache,
            self.backbone,
            SlowReader(self.log, self.video_seconds) if slow else get_reader("pyav"),
            batch_size=8,
            workers=self.reading,
            backbone_threads=1,
            claiming=claiming,
        )

    def work(self, path: Path) -> None:
        """A worker's life: open or make the cache and fill it; each commit leaves a line."""
        torch.set_num_threads(1)
        commit = EntryWriter.commit

        def logged(writer: EntryWriter, **about: Any) -> Any:
            record = commit(writer, **about)
            ours = record.attempt == writer.attempt
            self.log.write("committed" if ours else "beaten", Path(record.source.name).name)
            return record

        EntryWriter.commit = logged  # type: ignore[method-assign]
        self.fill(create_cache(path, spec_of(self.backbone)), claiming=True, slow=True)


def spec_of(backbone: Backbone) -> Any:
    return cache_spec(backbone, sampling=Sampling(fps=FPS))


def run_with_kills(setting: Setting, path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Start the workers, kill one now and then, start another for it; what happened."""
    chance = random.Random(arguments.seed)
    started = time.monotonic()
    living = {in_process(lambda: setting.work(path)) for _ in range(arguments.workers)}
    killed: list[int] = []
    failed = 0
    next_kill = started + chance.uniform(0.5, 1.5) * arguments.kill_seconds
    while living:
        for pid in tuple(living):
            if os.waitpid(pid, os.WNOHANG)[0]:
                living.discard(pid)
        # The last one is left alone: killed faster than it reads a video, it would never end.
        if time.monotonic() >= next_kill and len(living) > 1 and len(killed) < arguments.kills:
            pid = chance.choice(sorted(living))
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            living.discard(pid)
            if status == -signal.SIGKILL:
                killed.append(pid)
                living.add(in_process(lambda: setting.work(path)))
            failed += status > 0
            next_kill = time.monotonic() + chance.uniform(0.5, 1.5) * arguments.kill_seconds
        time.sleep(0.02)
    return {"seconds": round(time.monotonic() - started, 1), "pids": killed, "failed": failed}


def values(cache: Cache) -> dict[str, tuple[str, ...]]:
    """The SHA-256 of each video's stored values."""
    return {
        entry_id: tuple(array.sha256 for array in cache.record(entry_id).arrays.values())
        for entry_id in cache.ids()
    }


def judge(setting: Setting, path: Path, reference: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What the cache holds in the end, against an undisturbed run's, and what was in vain."""
    cache = open_cache(path)
    expected, found = values(open_cache(reference)), values(cache)
    events = setting.log.read()
    killed = set(run["pids"])
    begun = Counter((pid, name) for pid, event, name in events if event == "begun")
    committed = Counter((pid, name) for pid, event, name in events if event == "committed")
    unfinished = begun - committed
    lost = sum(count for (pid, _), count in unfinished.items() if pid in killed)
    lost -= len(found.keys() - {name for _, name in committed})  # killed before its line
    garbage = collect_garbage(cache, grace_seconds=0)
    attempts = [each for each in path.glob("videos/*/*") if each.is_dir()]
    return {
        "seconds": run["seconds"],
        "killed": len(killed),
        "workers that failed": run["failed"],
        "videos": len(found),
        "missing": len(expected.keys() - found.keys()),
        "differing": sum(found[each] != expected[each] for each in found.keys() & expected.keys()),
        "problems": len(verify_cache(cache, "full").problems),
        "attempts beyond one a video": len(attempts) - len(found),
        "encodings begun": begun.total(),
        "lost in hand": lost,
        "encoded twice": begun.total() - lost - len(found),
        "paths that gc removed": len(garbage.paths),
        "claims left": len(list(list_claims(path))),
    }


def is_sound(found: dict[str, Any], num_videos: int) -> bool:
    """Is everything there, once, and as it should be?"""
    zero = ("missing", "differing", "problems", "attempts beyond one a video", "claims left")
    return found["videos"] == num_videos and not any(found[each] for each in zero)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kill-seconds", type=float, default=2.0, help="between kills, on average")
    parser.add_argument("--kills", type=int, default=1_000, help="at most")
    parser.add_argument("--video-seconds", type=float, default=1.0, help="to read a video at least")
    parser.add_argument("--reading", type=int, default=2, help="videos that a worker reads at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to write the cache; default a temporary folder")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        write_videos(folder / "videos", arguments.videos)
        setting = Setting(
            resolve_sources([str(folder / "videos")]),
            load_backbone(BACKBONE, weights="random:0", device="cpu"),
            Log(folder / "log.txt"),
            arguments.video_seconds,
            arguments.reading,
        )
        reference, path = folder / "alone.zarr", folder / "many.zarr"
        alone = create_cache(reference, spec_of(setting.backbone))
        # In a process of its own: one that has computed must not be forked.
        os.waitpid(in_process(lambda: setting.fill(alone, claiming=False, slow=False)), 0)
        run = run_with_kills(setting, path, arguments)
        found = judge(setting, path, reference, run)
    machine = describe_machine(("torch", "numpy", "av"))
    if arguments.json:
        print(json.dumps({"machine": machine, "found": found}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
        for name, value in found.items():
            print(f"{name:<28} {value}")
    sys.exit(not is_sound(found, arguments.videos))


if __name__ == "__main__":
    main()
