"""Processes that move, join and rearrange caches, each killed (SIGKILL) at a random moment.

    python benchmarks/transfer_kills.py [--kills 50] [--works push,pull,…] [--seed 0] [--json]

Of each work: a child process does it on fresh caches and is killed at a moment drawn from the time
that it takes. Then every value that can be read must be right (read through `open_cache`; what a
push has left at a place is pulled first), the same work done again must end well with everything
there, and `verify --full` must pass. Places are a directory and an S3 server in turn, without and
with packs. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vis4mer.store.cache import create_cache, open_cache
from vis4mer.store.errors import CacheFormatError, DamagedEntryError
from vis4mer.store.gc import collect_garbage
from vis4mer.store.merge import merge_caches
from vis4mer.store.packing import pack_cache, unpack_cache
from vis4mer.store.pooling import pool_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.repair import repair_cache
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache
from vis4mer.store.verify import verify_cache

GRID, DIM, NUM_PREFIX = (8, 8), 64, 1
LENGTHS = (1, 40, 200, 257, 60, 300, 90, 30, 120, 1000)  # frames; the last are sent in parts
BUCKET = "kills"
S3_SERVER = """
import logging, sys
logging.disable(logging.CRITICAL)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""
Truth = dict[tuple[str, str], NDArray[Any]]


# What the works are done on ------------------------------------------------------------------


def make_source(path: Path) -> Truth:
    """A cache of random tokens, and its values with those of a pooled copy."""
    spec = CacheSpec(
        backbone="random",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
        sampling=Sampling(fps=1.0),
        reader="none",
        grid=GRID,
        num_prefix=NUM_PREFIX,
        dim=DIM,
    )
    cache = create_cache(path, spec)
    chance = np.random.default_rng(0)
    for number, frames in enumerate(LENGTHS):
        source = SourceRecord(name=f"{number}.mp4", size=1, mtime_ns=1, sha256=f"{number:064x}")
        with cache.write_entry(f"v{number}", source=source) as entry:
            tokens = {
                "patch": chance.standard_normal((frames, GRID[0] * GRID[1], DIM), np.float32),
                "prefix": chance.standard_normal((frames, NUM_PREFIX, DIM), np.float32),
            }
            entry.append(tokens, pts_seconds=list(range(frames)))
            entry.commit(duration_seconds=float(frames))
    cache.save_task(table(0))
    cache.write_catalog()
    pooled = path.with_name("pooled")
    shutil.copytree(path, pooled)
    pool_cache(open_cache(pooled), (4,))
    found = open_cache(pooled)
    return {
        (i, array): found.read(i, array) for i in found.ids() for array in found.record(i).arrays
    }


def table(label: int) -> TaskTable:
    rows = tuple(
        TaskRow(id=f"v{k}", split=("train", "test")[k % 2], label=label)
        for k in range(len(LENGTHS))
    )
    return TaskTable(
        dataset="toy", task="label", kind="classification", classes=("a", "b"), rows=rows
    )


def wrong_values(path: Path, truth: Truth, *, damage: bool = False) -> list[str]:
    """What is not as it should be in a cache that somebody may have been killed in.

    damage: some entries are known to be damaged; they must say so when they are read.
    """
    if not (path / "zarr.json").exists():
        return []
    allowed = (CacheFormatError, DamagedEntryError) if damage else ()
    try:
        cache = open_cache(path)
        ids = cache.ids()
    except allowed:
        return []
    except Exception as error:
        return [f"{path}: {type(error).__name__}: {error}"]
    wrong = []
    for entry_id in ids:
        try:
            for array in cache.record(entry_id).token_arrays:
                if not np.array_equal(cache.read(entry_id, array), truth[entry_id, array]):
                    wrong.append(f"{entry_id} {array}: other values")
        except allowed:
            continue
        except Exception as error:
            wrong.append(f"{entry_id}: {type(error).__name__}: {error}")
    return wrong


def is_whole(path: Path, truth: Truth, arrays: tuple[str, ...]) -> list[str]:
    """What a finished cache lacks."""
    cache = open_cache(path)
    wanted = [f"v{k}" for k in range(len(LENGTHS))]
    wrong = wrong_values(path, truth)
    if cache.ids() != wanted:
        wrong.append(f"{path}: holds {len(cache)} of {len(wanted)} videos")
    for entry_id in cache.ids():
        if missing := set(arrays) - set(cache.record(entry_id).token_arrays):
            wrong.append(f"{entry_id}: lacks {sorted(missing)}")
    if not verify_cache(cache, "full").ok:
        wrong.append(f"{path}: verify finds problems")
    return wrong


# The works -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """prepare: fresh caches in a folder. do: the work. check: what is wrong after a kill. finished:
    what is wrong after it was done again."""

    prepare: Callable[[Path, int], None]
    do: Callable[[Path, int], object]
    check: Callable[[Path, int], list[str]]
    finished: Callable[[Path, int], list[str]]


NATIVE = ("patch", "prefix")


def works_on(source: Path, truth: Truth) -> dict[str, Work]:
    """Every work by its name."""

    pooled = source.with_name("pooled")

    def copy(folder: Path, _: int) -> None:
        shutil.copytree(source, folder / "c")

    def readable(folder: Path, _: int) -> list[str]:
        return wrong_values(folder / "c", truth)

    def whole(*arrays: str) -> Callable[[Path, int], list[str]]:
        return lambda folder, _: is_whole(folder / "c", truth, arrays)

    def place(folder: Path, turn: int) -> str:
        return f"s3://{BUCKET}/{folder.name}" if turn % 2 else str(folder / "place")

    def pack_bytes(turn: int) -> int | None:
        return 8_000_000 if turn % 4 >= 2 else None

    def push(folder: Path, turn: int) -> None:
        done = push_cache(source, place(folder, turn), pack_bytes=pack_bytes(turn), jobs=4)
        assert done.exit_code == 0, done

    def pull_there(folder: Path, turn: int, name: str, *, may_lack: bool) -> list[str]:
        """What was pushed, pulled: in a child, for forks and a client's threads do not mix."""

        def pull() -> None:
            from vis4mer.store.errors import UsageError

            try:
                assert pull_cache(place(folder, turn), folder / name).exit_code == 0
            except UsageError:
                if not may_lack:
                    raise

        return [] if run_child(pull) == 0 else [f"{place(folder, turn)}: cannot be pulled"]

    def pushed_values(folder: Path, turn: int) -> list[str]:
        wrong = pull_there(folder, turn, "half", may_lack=True)
        return wrong + wrong_values(folder / "half", truth)

    def pushed_all(folder: Path, turn: int) -> list[str]:
        wrong = pull_there(folder, turn, "c", may_lack=False)
        return wrong + is_whole(folder / "c", truth, NATIVE)

    def prepare_pull(folder: Path, turn: int) -> None:
        assert run_child(lambda: push(folder, turn)) == 0

    def pull(folder: Path, turn: int) -> None:
        assert pull_cache(place(folder, turn), folder / "c", jobs=4).exit_code == 0

    def push_more(folder: Path, turn: int) -> None:
        done = push_cache(pooled, place(folder, turn), pack_bytes=pack_bytes(turn), jobs=4)
        assert done.exit_code == 0, done

    def pushed_more(folder: Path, turn: int) -> list[str]:
        wrong = pull_there(folder, turn, "c", may_lack=False)
        return wrong + is_whole(folder / "c", truth, (*NATIVE, "grid4"))

    def prepare_pull_more(folder: Path, turn: int) -> None:
        prepare_pull(folder, turn)
        assert run_child(lambda: pull(folder, turn)) == 0
        assert run_child(lambda: push_more(folder, turn)) == 0

    def prepare_merge(folder: Path, _: int) -> None:
        for name, ids in (("a", range(0, 6)), ("b", range(4, len(LENGTHS)))):
            shutil.copytree(source, folder / name)
            part = open_cache(folder / name)
            for entry_id in set(part.ids()) - {f"v{k}" for k in ids}:
                part.remove(entry_id)
        pool_cache(open_cache(folder / "b"), (4,))

    def merge(folder: Path, turn: int) -> None:
        parts = [open_cache(folder / name) for name in "ab"]
        assert merge_caches(folder / "c", parts, link=bool(turn % 2)).exit_code == 0

    def prepare_unpack(folder: Path, turn: int) -> None:
        copy(folder, turn)
        pack_cache(open_cache(folder / "c"), size_bytes=8e6)

    def pack(folder: Path, turn: int) -> None:
        done = pack_cache(open_cache(folder / "c"), size_bytes=8e6, free_at_once=bool(turn % 2))
        assert done.exit_code == 0

    def unpack(folder: Path, turn: int) -> None:
        assert unpack_cache(open_cache(folder / "c"), free_at_once=bool(turn % 2)).exit_code == 0

    def pool(folder: Path, _: int) -> None:
        assert pool_cache(open_cache(folder / "c"), (4,)).exit_code == 0

    def prepare_repair(folder: Path, turn: int) -> None:
        copy(folder, turn)
        chance = random.Random(turn)
        files = [
            p for p in sorted((folder / "c").rglob("*")) if p.is_file() and "tasks" not in p.parts
        ]
        for path in chance.sample([p for p in files if p != folder / "c" / "zarr.json"], 8):
            harm(path, chance)

    def repair(folder: Path, _: int) -> None:
        repair_cache(open_cache(folder / "c"), mirrors=[open_cache(source)])

    def damaged_values(folder: Path, _: int) -> list[str]:
        return wrong_values(folder / "c", truth, damage=True)

    def prepare_gc(folder: Path, turn: int) -> None:
        copy(folder, turn)
        cache = open_cache(folder / "c")
        pack_cache(cache, size_bytes=8e6, ids=["v3", "v4", "v5"])
        unpack_cache(cache, ids=["v3", "v4"])
        pool_cache(cache, (4,))

    def gc(folder: Path, _: int) -> None:
        collect_garbage(open_cache(folder / "c"), grace_seconds=0)

    def label(folder: Path, _: int) -> None:
        for number in range(50):
            open_cache(folder / "c").save_task(table((number + 1) % 2))
        open_cache(folder / "c").save_task(table(1))

    def labelled(folder: Path, turn: int) -> list[str]:
        found = open_cache(folder / "c").task("toy/label")
        wrong = readable(folder, turn)
        return wrong if found in (table(0), table(1)) else [*wrong, "another table"]

    def labels_stand(folder: Path, _: int) -> list[str]:
        stands = open_cache(folder / "c").task("toy/label") == table(1)
        return is_whole(folder / "c", truth, NATIVE) + ([] if stands else ["the old table"])

    empty = lambda _folder, _turn: None  # noqa: E731 - a preparation of nothing
    return {
        "push": Work(empty, push, pushed_values, pushed_all),
        "pull": Work(prepare_pull, pull, readable, whole(*NATIVE)),
        "push-more": Work(prepare_pull, push_more, pushed_values, pushed_more),
        "pull-more": Work(prepare_pull_more, pull, readable, whole(*NATIVE, "grid4")),
        "merge": Work(prepare_merge, merge, readable, whole(*NATIVE)),
        "pack": Work(copy, pack, readable, whole(*NATIVE)),
        "unpack": Work(prepare_unpack, unpack, readable, whole(*NATIVE)),
        "pool": Work(copy, pool, readable, whole(*NATIVE, "grid4")),
        "repair": Work(prepare_repair, repair, damaged_values, whole(*NATIVE)),
        "gc": Work(prepare_gc, gc, readable, whole(*NATIVE, "grid4")),
        "label": Work(copy, label, labelled, labels_stand),
    }


def harm(path: Path, chance: random.Random) -> None:
    """Flip a bit, cut or remove a file (an entry whose record is removed exists no more)."""
    data = bytearray(path.read_bytes())
    kinds = ("flip", "cut") if "records" in path.parts else ("flip", "cut", "remove")
    kind = chance.choice(kinds)
    if kind == "remove":
        path.unlink()
        return
    if kind == "cut":
        del data[chance.randrange(len(data)) :]
    else:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


# Killing -------------------------------------------------------------------------------------


def fork(work: Callable[[], object]) -> int:
    """The pid of a child that does `work`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return pid


def run_child(work: Callable[[], object]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


@dataclass
class Tally:
    """What came of one work's kills. in_time: the process was still at work when it was killed."""

    kills: int = 0
    in_time: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def kill_often(work: Work, folder: Path, *, kills: int, chance: random.Random) -> Tally:
    """Do a work, killed at random moments, and look at what is left each time."""
    tally = Tally()
    usual = [_time_one(work, folder / f"usual{turn}", turn) for turn in range(4)]
    tally.seconds = sum(usual) / len(usual)
    for turn in range(kills):
        room = folder / f"{turn}"
        room.mkdir()
        work.prepare(room, turn)
        pid = fork(lambda room=room, turn=turn: work.do(room, turn))
        time.sleep(chance.uniform(0, usual[turn % 4]))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        tally.kills += 1
        tally.in_time += status == -signal.SIGKILL
        found = work.check(room, turn)
        if status not in (0, -signal.SIGKILL) or run_child(lambda: work.do(room, turn)) != 0:  # noqa: B023
            found.append("the work did not end well")
        else:
            found += work.finished(room, turn)
        tally.wrong += [f"kill {turn}: {each}" for each in found]
        if not found:
            shutil.rmtree(room)
    return tally


def _time_one(work: Work, room: Path, turn: int) -> float:
    room.mkdir()
    work.prepare(room, turn)
    started = time.monotonic()
    if run_child(lambda: work.do(room, turn)) != 0:
        raise SystemExit("the work fails without a kill")
    seconds = time.monotonic() - started
    shutil.rmtree(room)
    return seconds


@contextlib.contextmanager
def s3_server() -> Iterator[None]:
    """moto's server in a process of its own; its address and keys are put into the environment."""
    server = subprocess.Popen(
        [sys.executable, "-c", S3_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdin is not None
    host, port = server.stdout.readline().split()
    endpoint = f"http://{host}:{port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
    os.environ.update(
        AWS_ENDPOINT_URL=endpoint,
        AWS_ACCESS_KEY_ID="kills",
        AWS_SECRET_ACCESS_KEY="kills-secret",
        AWS_REGION="us-east-1",
    )
    try:
        yield
    finally:
        server.stdin.close()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills of works on caches.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--works", default="push,push-more,pull,pull-more,merge,pack,unpack,pool,repair,gc,label"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vis4mer-kills-") as name, s3_server():
        folder = Path(name)
        truth = make_source(folder / "source")
        works = works_on(folder / "source", truth)
        for chosen in arguments.works.split(","):
            (folder / chosen).mkdir()
            chance = random.Random(f"{arguments.seed} {chosen}")
            tally = kill_often(works[chosen], folder / chosen, kills=arguments.kills, chance=chance)
            results[chosen] = vars(tally)
            if not arguments.json:
                print(
                    f"{chosen:<8} {tally.kills} kills, {tally.in_time} of a process at work "
                    f"({tally.seconds:.2f} s without), {len(tally.wrong)} wrong",
                    flush=True,
                )
                for line in tally.wrong:
                    print(f"  {line}", flush=True)
    if arguments.json:
        print(json.dumps(results))
    sys.exit(any(result["wrong"] for result in results.values()))


if __name__ == "__main__":
    main()
