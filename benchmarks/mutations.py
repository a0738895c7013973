"""Does damage anywhere in a cache show? Random harm, one at a time, and what finds it.

    python benchmarks/mutations.py [--count 1000] [--seed 0] [--json]

Bytes are flipped, zeroed, cut off, files deleted, swapped with others of their sort or overwritten
by them, in every sort of file that a cache has: shards, metadata, records, groups, task tables,
packs, catalog, failures. Half of the time the file's time stays as it was, as when a disk rots.
After each, the cache is verified in full and everything in it is read and compared with what was
stored; then the harm is undone. What may never be: a wrong value that neither reading nor `verify`
objects to, or an error that is not one clear line.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.errors import Vis4merError
from vis4mer.store.failures import FailureRecord
from vis4mer.store.packing import pack_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling, StoredDtype
from vis4mer.store.tasks import TaskRow, TaskTable
from vis4mer.store.verify import verify_cache

Outcome = Literal["verify", "read", "harmless", "silent", "crash"]
OUTCOMES: dict[Outcome, str] = {
    "verify": "found by verify --full",
    "read": "found by the read that meets it",
    "harmless": "every value is right, nothing objects",
    "silent": "WRONG VALUES, nothing objects",
    "crash": "an error that is no clear line",
}
SORTS = {
    "records": "record",
    "tasks": "task table",
    "packs": "pack",
    "failures": "failure",
    "zarr.json": "spec",
    "catalog.json": "catalog",
}
LENGTHS = (3, 5, 300, 4, 7, 3)  # frames; the third has two shards
NUM_PACKED = 3


@dataclass(frozen=True)
class Harm:
    """One mutation: what was done, to which sort of file, and what came of it.

    reads_wrong: whether reading, without a verify before, gave a wrong value.
    """

    kind: str
    sort: str
    path: str
    outcome: Outcome
    reads_wrong: bool = False
    detail: str = ""


def make_cache(path: Path, *, stored_dtype: StoredDtype) -> Cache:
    """Six entries, three of them in packs, two task tables, a failure and a catalog."""
    spec = CacheSpec(
        backbone="random",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=Preprocess(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        sampling=Sampling(fps=1.0),
        reader="pyav",
        grid=(2, 2),
        num_prefix=1,
        dim=8,
        stored_dtype=stored_dtype,
        arrays=("patch", "prefix", "grid1"),
    )
    cache = create_cache(path, spec)
    numbers = np.random.default_rng(0)
    for i, frames in enumerate(LENGTHS):
        source = SourceRecord(name=f"v{i}.mp4", size=1, mtime_ns=1, sha256="0" * 64)
        with cache.write_entry(f"v{i}", source=source) as entry:
            tokens = {
                "patch": numbers.standard_normal((frames, 4, 8)).astype("f4"),
                "prefix": numbers.standard_normal((frames, 1, 8)).astype("f4"),
            }
            entry.append(tokens, pts_seconds=np.arange(frames) / 3)
            entry.commit(duration_seconds=frames / 3, provenance={"host": "here"})
    for task in ("one", "two"):
        rows = tuple(TaskRow(id=f"v{i}", split="train", label=i % 2) for i in range(len(LENGTHS)))
        cache.save_task(
            TaskTable(dataset="d", task=task, kind="classification", classes=("a", task), rows=rows)
        )
    failure = FailureRecord(
        id="bad.mp4", stage="open", reason="no video", source_name="bad.mp4", source_size=1,
        source_mtime_ns=1, time="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    cache.record_failure(failure)
    pack_cache(cache, ids=[f"v{i}" for i in range(NUM_PACKED)], free_at_once=True)
    cache.write_catalog()
    return open_cache(path)


def contents(cache: Cache) -> dict[str, Any]:
    """Everything that a user reads from a cache, by what it is."""
    found: dict[str, Any] = {"fingerprint": cache.spec.fingerprint}
    for i in range(len(LENGTHS)):
        record = cache.record(f"v{i}")
        found[f"v{i}"] = (record.num_frames, record.pts_seconds, record.duration_seconds)
        for array in cache.spec.arrays:
            found[f"v{i} {array}"] = cache.read(f"v{i}", array).tobytes()
    for task in ("one", "two"):
        found[f"task {task}"] = cache.task(f"d/{task}")
    return found


def sort_of(path: Path) -> str:
    """What a file of a cache is, from its path relative to the cache."""
    room = path.parts[0]
    if room == "videos" and "c" in path.parts:
        return "shard"
    if room == "videos":
        return {2: "group", 3: "group", 4: "entry's group"}.get(len(path.parts), "array's metadata")
    return SORTS.get(room, room)


def harm_file(
    kind: str, path: Path, others: list[Path], chance: random.Random
) -> dict[Path, bytes | None]:
    """New bytes of the files that this kind of harm changes; None for a file that goes."""
    data = path.read_bytes()
    where = chance.randrange(len(data))
    length = chance.randint(1, min(64, len(data) - where))
    if kind == "flip":
        changed = bytearray(data)
        changed[where] ^= 1 << chance.randrange(8)
        return {path: bytes(changed)}
    if kind == "zero":
        return {path: data[:where] + bytes(length) + data[where + length :]}
    if kind == "truncate":
        return {path: data[:where]}
    if kind == "delete":
        return {path: None}
    if kind == "swap" and others:
        other = chance.choice(others)
        return {path: other.read_bytes(), other: data}
    if kind == "duplicate" and others and chance.random() < 0.5:
        return {path: chance.choice(others).read_bytes()}
    return {path: _block_twice(data, chance)}


def _block_twice(data: bytes, chance: random.Random) -> bytes:
    """One block of the file stands in another's place: maybe a frame with its right checksum."""
    length = chance.choice([4 * 8 * 2 + 4, 8 * 2 + 4, 4 * 8 + 4, 16, chance.randint(1, 64)])
    length = min(length, len(data))
    last = len(data) // length - 1
    source, target = length * chance.randint(0, last), length * chance.randint(0, last)
    return data[:target] + data[source : source + length] + data[target + length :]


def examine(root: Path, expected: dict[str, Any]) -> tuple[Outcome, bool, str]:
    """Verify and read a cache that was harmed: (what came of it, was a wrong value read, why)."""
    verified = _objection(lambda: _verify(root))
    wrong: list[str] = []
    objections: list[str] = []
    for name, read in _reads(root):
        found: list[Any] = []
        objection = _objection(lambda read=read, found=found: found.append(read()))  # type: ignore[misc]
        if objection:
            objections.append(objection)
        elif found[0] != expected[name]:
            wrong.append(name)
    for objection in (verified, *objections):
        if objection.startswith("crash"):
            return "crash", bool(wrong), objection
    if verified:
        return "verify", bool(wrong), verified
    if wrong:
        return "silent", True, ", ".join(wrong)
    return ("read" if objections else "harmless"), False, "".join(objections[:1])


def _verify(root: Path) -> None:
    report = verify_cache(open_cache(root), "full")
    if not report.ok:
        raise Vis4merError(report.problems[0].reason)


def _reads(root: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each thing that can be read by itself, from a cache that is opened afresh."""
    try:
        cache = open_cache(root)
    except Vis4merError:
        yield "fingerprint", lambda: open_cache(root)
        return
    yield "fingerprint", lambda: cache.spec.fingerprint
    for i in range(len(LENGTHS)):
        name = f"v{i}"
        yield name, lambda name=name: _about(cache, name)  # type: ignore[misc]
        for array in ("patch", "prefix", "grid1"):
            yield (
                f"{name} {array}",
                lambda name=name, array=array: cache.read(name, array).tobytes(),  # type: ignore[misc]
            )
    for task in ("one", "two"):
        yield f"task {task}", lambda task=task: cache.task(f"d/{task}")  # type: ignore[misc]


def _about(cache: Cache, entry_id: str) -> tuple[Any, ...]:
    record = cache.record(entry_id)
    return record.num_frames, record.pts_seconds, record.duration_seconds


def _objection(work: Callable[[], object]) -> str:
    """What is objected to; "" for nothing, `crash …` for an error that is not meant for people."""
    try:
        work()
    except Vis4merError as error:
        return str(error) if "\n" not in str(error) else f"crash: several lines: {error}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    return ""


def run(folder: Path, *, count: int, seed: int) -> list[Harm]:
    """`count` harms, alternately to a cache of float16 and one of int8."""
    dtypes: tuple[StoredDtype, ...] = ("float16", "int8")
    caches = [make_cache(folder / f"{dtype}.zarr", stored_dtype=dtype) for dtype in dtypes]
    expected = [contents(cache) for cache in caches]
    chance = random.Random(seed)
    return [
        _harm(caches[i % 2].path, expected[i % 2], chance, chance.choice(KINDS))
        for i in range(count)
    ]


KINDS = ("flip", "zero", "truncate", "delete", "swap", "duplicate")


def _harm(root: Path, expected: dict[str, Any], chance: random.Random, kind: str) -> Harm:
    """One harm that changes something, examined and undone."""
    by_sort: dict[str, list[Path]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.stat().st_size):
        by_sort.setdefault(sort_of(path.relative_to(root)), []).append(path)
    while True:
        sort = chance.choice(sorted(by_sort))
        path = chance.choice(by_sort[sort])
        others = [other for other in by_sort[sort] if other != path]
        changed = harm_file(kind, path, others, chance)
        before = {file: (file.read_bytes(), file.stat()) for file in changed}
        if any(changed[file] != data for file, (data, _) in before.items()):
            break
    keep_time = chance.random() < 0.5
    for file, new in changed.items():
        _put(file, new, before[file][1] if keep_time else None)
    try:
        outcome, reads_wrong, detail = examine(root, expected)
    finally:
        for file, (old, stat) in before.items():
            _put(file, old, stat)
    shown = path.relative_to(root).as_posix()
    return Harm(kind, sort, shown, outcome, reads_wrong, detail.replace(str(root), ""))


def _put(path: Path, data: bytes | None, times: os.stat_result | None) -> None:
    if data is None:
        path.unlink()
        return
    path.write_bytes(data)
    if times is not None:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        harms = run(Path(folder), count=arguments.count, seed=arguments.seed)
    counts = Counter((harm.sort, harm.outcome) for harm in harms)
    if arguments.json:
        print(json.dumps([vars(harm) for harm in harms], indent=1))
        return
    for sort in sorted({harm.sort for harm in harms}):
        print(f"{sort:<18}", *(f"{name} {counts[sort, name]:>4}  " for name in OUTCOMES))
    for name, meaning in OUTCOMES.items():
        print(f"{sum(h.outcome == name for h in harms):>5} {name:<9} {meaning}")
    late = sum(harm.reads_wrong and harm.outcome == "verify" for harm in harms)
    print(f"{late:>5} of those found by verify gave a wrong value when read without it")
    print(f"{len(harms)} in {time.monotonic() - started:.0f} s")
    harmless = Counter((harm.sort, harm.kind) for harm in harms if harm.outcome == "harmless")
    print("harmless:", ", ".join(f"{k} of {s}: {n}" for (s, k), n in sorted(harmless.items())))
    for harm in harms:
        if harm.outcome in ("silent", "crash"):
            print(harm)


if __name__ == "__main__":
    main()
