"""`kill -9` of real extraction processes, at chosen steps of their writing to the disk.

The same command goes on afterwards and ends with what an uninterrupted run makes, and a reader
that looks all the while never sees a half-written entry.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import media
import pytest
from vis4mer.store.cache import open_cache
from vis4mer.store.errors import CacheFormatError, DamagedEntryError
from vis4mer.store.verify import verify_cache

NUM_VIDEOS = 5

# One process loads torch once; every run of the pipeline is a fork of it. A run kills itself at its
# n-th call that makes something durable or visible: fsync, rename or link.
EXTRACT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import extraction as ex
import torch
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.extract.readers import get_reader
from vis4mer.extract.sources import resolve_sources
from vis4mer.store.spec import Sampling

torch.set_num_threads(1)

def run(videos, path, kill_at):
    calls = [0]

    def counted(real):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call

    os.fsync, os.link = counted(os.fsync), counted(os.link)
    Path.replace, Path.rename = counted(Path.replace), counted(Path.rename)
    backbone = ex.grey_backbone()
    cache = ex.grey_cache(path, backbone, sampling=Sampling(fps=5))
    summary = fill_cache(
        resolve_sources([videos]),
        cache,
        backbone,
        get_reader("pyav"),
        batch_size=4,
        claiming=True,
    )
    print("done", summary.extracted, summary.already_there, summary.exit_code, flush=True)

for line in sys.stdin:
    videos, path, kill_at = line.rstrip().split("|")
    child = os.fork()
    if not child:
        run(videos, Path(path), int(kill_at))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("exit", status, flush=True)
"""


class Extractor:
    """Runs the pipeline in processes of its own, each to its end or to its death."""

    def __init__(self, videos: Path) -> None:
        self._videos = videos
        self._process = subprocess.Popen(
            [sys.executable, "-c", EXTRACT, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, cache: Path, *, kill_at: int = 0) -> tuple[int, list[str]]:
        """(exit status, -9 for a killed process; the words of its last line, if it ended)."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{self._videos}|{cache}|{kill_at}\n")
        self._process.stdin.flush()
        words: list[str] = []
        for line in self._process.stdout:
            if line.startswith("exit"):
                return int(line.split()[1]), words
            words = line.split()
        raise AssertionError("the extracting process is gone")

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


class Watcher:
    """Reads everything that a cache says it holds, again and again, while others write it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.problems: list[Exception] = []
        self.entries_read = 0

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            if (self._path / "zarr.json").exists():
                self._read_all()
        self._read_all()  # once at least

    def _read_all(self) -> None:
        try:
            cache = open_cache(self._path)
            for video_id in cache.ids():
                cache.read(video_id)
                self.entries_read += 1
        except (CacheFormatError, DamagedEntryError, OSError, ValueError) as error:
            self.problems.append(error)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for i in range(NUM_VIDEOS):
        media.write_clip(folder / f"{i}.mp4", num_frames=20 + 20 * i, rate=10)
    return folder


def digests(path: Path) -> dict[str, tuple[str, ...]]:
    """The SHA-256 of every entry's stored values."""
    cache = open_cache(path)
    return {
        i: tuple(array.sha256 for array in cache.record(i).arrays.values()) for i in cache.ids()
    }


def test_killed_at_any_step_the_same_command_goes_on(videos: Path, tmp_path: Path) -> None:
    extractor = Extractor(videos)
    whole, killed = tmp_path / "whole.zarr", tmp_path / "killed.zarr"
    assert extractor.run(whole) == (0, ["done", str(NUM_VIDEOS), "0", "0"])
    expected = digests(whole)
    assert len(expected) == NUM_VIDEOS

    deaths, seen = [], 0
    with Watcher(killed) as watcher:
        for kill_at in (1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 14, 17, 20, 23, 26):
            status, _ = extractor.run(killed, kill_at=kill_at)
            deaths.append(status)
            present = digests(killed) if (killed / "zarr.json").exists() else {}
            assert present.items() <= expected.items()
            assert len(present) >= seen  # what was committed stays
            seen = len(present)
        status, words = extractor.run(killed)
    extractor.close()
    assert deaths.count(-9) >= 10
    assert set(deaths) <= {-9, 0}
    assert (status, words[0], int(words[1]) + int(words[2])) == (0, "done", NUM_VIDEOS)
    assert watcher.problems == []
    assert watcher.entries_read > 0
    assert digests(killed) == expected
    assert not verify_cache(open_cache(killed), mode="full").problems
