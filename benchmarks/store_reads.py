"""How fast tokens come out of a cache, beside what plain files and zarr-python give.

    python benchmarks/store_reads.py [--repeats 30] [--entries 10000] [--folder DIR] [--json]

Warm reads of one (60, 196, 1024) float16 entry into a caller's buffer: the whole of it, and every
fourth frame, from files of its own and from a pack of two; against a memory-mapped .npy file copied
into the same buffer. Then the time until the
first token of a cache of many small entries, with its catalog and without. The entries are written
without flushing to the disk, which is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import zarr
from common import describe_machine, median_times
from numpy.typing import NDArray
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.packing import pack_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling

SHAPE = (60, 196, 1024)
SELECTIONS = {"whole": slice(None), "every fourth": slice(None, None, 4)}
GOALS = {("whole", "crc off"): 1.5, ("every fourth", "crc off"): 2.0, ("whole", "crc on"): 3.0,
         ("every fourth", "crc on"): 3.0}  # fmt: skip
GOALS |= {(selection, f"packed, {way}"): goal for (selection, way), goal in GOALS.items()}
GOAL_OPENING_SECONDS = 1.0


@dataclass(frozen=True)
class Read:
    selection: str
    way: str
    milliseconds: float
    ratio: float
    cpu_ratio: float
    goal: float | None


@dataclass(frozen=True)
class Opening:
    catalog: bool
    entries: int
    open_ms: float
    ids_ms: float
    first_read_ms: float
    catalog_mb: float

    @property
    def total_seconds(self) -> float:
        return (self.open_ms + self.ids_ms + self.first_read_ms) / 1e3


def make_cache(path: Path, *, grid: tuple[int, int], dim: int) -> Cache:
    preprocess = Preprocess(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    spec = CacheSpec(
        backbone="benchmark",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=preprocess,
        sampling=Sampling(fps=1.0),
        reader="none",
        grid=grid,
        num_prefix=0,
        dim=dim,
        arrays=("patch",),
    )
    return create_cache(path, spec)


def write(cache: Cache, entry_id: str, patch: NDArray[np.float16]) -> None:
    source = SourceRecord(name=entry_id, size=1, mtime_ns=1, sha256="0" * 64)
    with cache.write_entry(entry_id, source=source) as entry:
        entry.append({"patch": patch}, pts_seconds=np.arange(len(patch)).tolist())
        entry.commit(duration_seconds=len(patch))


def measure_reads(folder: Path, *, repeats: int) -> list[Read]:
    tokens = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    cache = make_cache(folder / "one.zarr", grid=(14, 14), dim=SHAPE[2])
    write(cache, "clip", tokens)
    packed = make_cache(folder / "packed.zarr", grid=(14, 14), dim=SHAPE[2])
    for entry_id in ("before", "clip"):
        write(packed, entry_id, tokens)
    pack_cache(packed, free_at_once=True)
    plain = folder / "clip.npy"
    np.save(plain, tokens)
    array = cache.path / cache.record("clip").folder / "patch"
    reads = []
    for selection, frames in SELECTIONS.items():
        out = np.empty_like(tokens[frames])
        works = reading_works(cache, packed, plain, array, frames, out)
        for work in works.values():
            out[...] = 0
            work()
            if not np.array_equal(out, tokens[frames]):
                raise SystemExit(f"{selection}: a way of reading gives other values")
        times = median_times(works, repeats=repeats)
        memmap = times["memmap"]
        for way, timing in times.items():
            reads.append(
                Read(
                    selection=selection,
                    way=way,
                    milliseconds=timing.seconds * 1e3,
                    ratio=timing.seconds / memmap.seconds,
                    cpu_ratio=timing.cpu_seconds / memmap.cpu_seconds,
                    goal=GOALS.get((selection, way)),
                )
            )
    return reads


def reading_works(
    cache: Cache, packed: Cache, plain: Path, array: Path, frames: slice, out: NDArray[np.float16]
) -> dict[str, Callable[[], object]]:
    """Ways of filling `out`; each opens its files anew, as a training loop does."""
    return {
        "memmap": lambda: np.copyto(out, np.load(plain, mmap_mode="r")[frames]),
        "crc off": lambda: cache.read("clip", frames=frames, out=out, verify=False),
        "crc on": lambda: cache.read("clip", frames=frames, out=out, verify=True),
        "packed, crc off": lambda: packed.read("clip", frames=frames, out=out, verify=False),
        "packed, crc on": lambda: packed.read("clip", frames=frames, out=out, verify=True),
        "zarr-python": lambda: np.copyto(out, zarr.open_array(array, mode="r")[frames]),
    }


@contextmanager
def unflushed() -> Iterator[None]:
    """Writing 10,000 entries in seconds: they need not survive a power failure."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


def measure_opening(folder: Path, *, entries: int) -> list[Opening]:
    cache = make_cache(folder / "many.zarr", grid=(1, 1), dim=8)
    tokens = np.zeros((60, 1, 8), dtype=np.float16)
    with unflushed():
        for i in range(entries):
            write(cache, f"videos/clip {i:05d}.mp4", tokens)
        cache.write_catalog()
    catalog = cache.path / "catalog.json"
    size = catalog.stat().st_size / 1e6
    with_catalog = [time_opening(cache.path, catalog_mb=size) for _ in range(5)]
    catalog.unlink()
    without = [time_opening(cache.path, catalog_mb=0.0) for _ in range(3)]
    return [
        sorted(openings, key=lambda opening: opening.total_seconds)[len(openings) // 2]
        for openings in (with_catalog, without)
    ]


def time_opening(path: Path, *, catalog_mb: float) -> Opening:
    start = time.perf_counter()
    cache = open_cache(path)
    opened = time.perf_counter()
    ids = cache.ids()
    listed = time.perf_counter()
    cache.read(ids[len(ids) // 2])
    read = time.perf_counter()
    return Opening(
        catalog=catalog_mb > 0,
        entries=len(ids),
        open_ms=(opened - start) * 1e3,
        ids_ms=(listed - opened) * 1e3,
        first_read_ms=(read - listed) * 1e3,
        catalog_mb=catalog_mb,
    )


def print_tables(machine: dict[str, object], reads: list[Read], openings: list[Opening]) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"\n{'frames':<13} {'way':<15} {'ms':>8} {'/ memmap':>9} {'CPU':>6}  goal")
    for r in reads:
        goal = f"{r.goal:.1f} {'ok' if r.ratio <= r.goal else 'MISSED'}" if r.goal else ""
        figures = f"{r.milliseconds:>8.2f} {r.ratio:>9.2f} {r.cpu_ratio:>6.2f}"
        print(f"{r.selection:<13} {r.way:<15} {figures}  {goal}")
    print(f"\n{'entries':>8} {'catalog':>10} {'open':>8} {'ids':>8} {'first read':>11} {'sum':>9}")
    for o in openings:
        catalog = f"{o.catalog_mb:.1f} MB" if o.catalog else "none"
        goal = "ok" if o.total_seconds <= GOAL_OPENING_SECONDS else "MISSED"
        print(
            f"{o.entries:>8} {catalog:>10} {o.open_ms:>5.0f} ms {o.ids_ms:>5.0f} ms "
            f"{o.first_read_ms:>8.0f} ms {o.total_seconds:>7.2f} s "
            f"{f'goal {GOAL_OPENING_SECONDS:g} s {goal}' if o.catalog else ''}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--entries", type=int, default=10_000, help="0 leaves the opening out")
    parser.add_argument("--folder", help="where to write the caches; default a temporary folder")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    machine = describe_machine(("numpy", "zarr", "google-crc32c"))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        reads = measure_reads(Path(folder), repeats=arguments.repeats)
        entries = arguments.entries
        openings = measure_opening(Path(folder), entries=entries) if entries else []
    if arguments.json:
        found = {"machine": machine, "reads": reads, "openings": openings}
        print(json.dumps(found, indent=1, default=asdict))
    else:
        print_tables(machine, reads, openings)


if __name__ == "__main__":
    main()
