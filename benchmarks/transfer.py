"""Push and pull of a cache over an S3 server on this machine, beside a plain copy of its files.

    python benchmarks/transfer.py [--videos 100] [--megabytes 20] [--rounds 3] [--packed]
                                  [--folder DIR] [--server swift|moto] [--json]

The plain copy moves the same files by obstore alone, as many at once: no check of a byte, no flush
to the disk, no record after its objects. `flushed` is a plain copy that ends as a pull does, with
every file on the disk. The works alternate; the figures are medians of their rounds. The server
runs in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
from common import describe_machine
from obstore.store import S3Store
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.digest import digest_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache

BUCKET, JOBS = "speed", 8
GRID, DIM = (14, 14), 256
SERVERS = {
    "moto": """
import logging, sys
logging.disable(logging.CRITICAL)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
""",
}


def make_cache(path: Path, *, videos: int, megabytes: float) -> None:
    """Entries of random tokens, about so large each."""
    spec = CacheSpec(
        backbone="random",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
        sampling=Sampling(fps=1.0),
        reader="none",
        grid=GRID,
        num_prefix=1,
        dim=DIM,
    )
    cache = create_cache(path, spec)
    frames = max(1, round(megabytes * 1e6 / ((GRID[0] * GRID[1] + 1) * DIM * 2)))
    chance = np.random.default_rng(0)
    for number in range(videos):
        source = SourceRecord(name=f"{number}.mp4", size=1, mtime_ns=1, sha256=f"{number:064x}")
        with cache.write_entry(f"v{number:04}", source=source) as entry:
            tokens = {
                "patch": chance.standard_normal((frames, GRID[0] * GRID[1], DIM), np.float32),
                "prefix": chance.standard_normal((frames, 1, DIM), np.float32),
            }
            entry.append(tokens, pts_seconds=list(range(frames)))
            entry.commit(duration_seconds=float(frames))
    cache.write_catalog()


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def plain_push(source: Path, prefix: str) -> None:
    """Every file as it is, by as many threads as a push has."""
    store = S3Store(BUCKET, client_options={"allow_http": True, "timeout": "1h"})

    def put(path: Path) -> None:
        key = f"{prefix}/{path.relative_to(source).as_posix()}"
        obstore.put(store, key, path, chunk_size=8 << 20, max_concurrency=4)

    with ThreadPoolExecutor(JOBS) as threads:
        list(threads.map(put, files_of(source)))


def plain_pull(prefix: str, target: Path, *, flush: bool) -> None:
    """Every object into a file of its own, by as many threads as a pull has."""
    store = S3Store(BUCKET, client_options={"allow_http": True, "timeout": "1h"})
    keys = [found["path"] for page in obstore.list(store, prefix=prefix) for found in page]

    def get(key: str) -> None:
        path = target / key.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in obstore.get(store, key).stream(min_chunk_size=4 << 20):
                file.write(block)
            if flush:
                file.flush()
                os.fsync(file.fileno())

    with ThreadPoolExecutor(JOBS) as threads:
        list(threads.map(get, keys))


@contextlib.contextmanager
def s3_server(kind: str) -> Iterator[None]:
    """A server in a process of its own; its address and keys are put into the environment."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVERS[kind]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    host, port = server.stdout.readline().split()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="speed",
        AWS_SECRET_ACCESS_KEY="speed-secret",
        AWS_REGION="us-east-1",
    )
    make = urllib.request.Request(f"http://{host}:{port}/{BUCKET}", method="PUT")
    urllib.request.urlopen(make).close()
    try:
        yield
    finally:
        server.stdin.close()
        server.wait(30)


def clear(prefix: str) -> None:
    """Remove what a round has put there: the server may keep it in memory."""
    store = S3Store(BUCKET, client_options={"allow_http": True})
    for page in obstore.list(store, prefix=prefix):
        obstore.delete(store, [found["path"] for found in page])


def timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def measure(folder: Path, *, rounds: int, pack_bytes: int | None) -> dict[str, list[float]]:
    """Seconds of each work, a round each; the order changes from round to round."""
    source = folder / "source"
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        ours, plain = f"s3://{BUCKET}/ours", "plain"
        pushes = {
            "push": lambda: push_cache(source, ours, pack_bytes=pack_bytes, card=False),  # noqa: B023
            "plain push": lambda: plain_push(source, plain),  # noqa: B023
        }
        pulls = {
            "pull": lambda: pull_cache(ours, folder / "pull"),  # noqa: B023
            "plain pull": lambda: plain_pull(plain, folder / "plain pull", flush=False),  # noqa: B023
            "flushed pull": lambda: plain_pull(plain, folder / "flushed pull", flush=True),  # noqa: B023
        }
        for works in (pushes, pulls):
            for name in sorted(works, reverse=bool(number % 2)):
                os.sync()  # what others have left to be written is not this one's
                seconds.setdefault(name, []).append(timed(works[name]))
        if digest_cache(open_cache(folder / "pull")) != digest_cache(open_cache(source)):
            raise SystemExit("what came back is not what was sent")
        for name in pulls:
            shutil.rmtree(folder / name)
        clear("ours")
        clear(plain)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Push and pull beside a plain copy.")
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: /tmp)")
    parser.add_argument("--server", choices=sorted(SERVERS), default="moto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="vis4mer-transfer-", dir=arguments.folder) as name,
        s3_server(arguments.server),
    ):
        folder = Path(name)
        make_cache(folder / "source", videos=arguments.videos, megabytes=arguments.megabytes)
        num_bytes = sum(path.stat().st_size for path in files_of(folder / "source"))
        pack_bytes = 200_000_000 if arguments.packed else None
        seconds = measure(folder, rounds=arguments.rounds, pack_bytes=pack_bytes)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    found = {
        "machine": describe_machine(("obstore", "moto")),
        "gigabytes": num_bytes / 1e9,
        "seconds": seconds,
        "megabytes_per_second": {name: num_bytes / 1e6 / each for name, each in median.items()},
        "push / plain": median["plain push"] / median["push"],
        "pull / plain": median["plain pull"] / median["pull"],
        "pull / flushed": median["flushed pull"] / median["pull"],
    }
    if arguments.json:
        print(json.dumps(found))
        return
    for name, values in seconds.items():
        rate = num_bytes / 1e6 / median[name]
        rounds = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name:<13} {rate:7.0f} MB/s   ({rounds} s)")
    for name in ("push / plain", "pull / plain", "pull / flushed"):
        print(f"{name:<15} {found[name]:.2f}")


if __name__ == "__main__":
    main()
