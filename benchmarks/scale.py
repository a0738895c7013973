"""A cache of 10,000 videos: how long until it is open, listed, read from and summed up.

    python benchmarks/scale.py [--entries 10000] [--annotations lvu_1.0] [--folder DIR] [--json]

Entries are as long as LVU's videos (133 s on average, 1 frame a second) and tiny: 1 × 1 patch of
width 8. Ids, durations and the nine tasks are made up in LVU's form and sizes, or read from its
annotation files. Every figure is of a process or a Cache object that has just begun, and the
median of five; "cold" ones come after the files' pages were given back to the system. Writing does
not flush to the disk unless --flush says so, for the entries need not survive a power failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import describe_machine
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import WindowPlan, split_samples
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Sampling
from vis4mer.store.summary import summarise
from vis4mer.store.tasks import SPLITS, TaskRow, TaskTable

REPEATS = 5
DIM = 8
MEAN_SECONDS = 133.0
GOALS = {"open, list a split, first batch": 1.0, "cache info": 2.0}
# LVU's tasks: outputs (0 for regression), videos in train, val and test
TASKS = {
    "relationship": (4, (149, 53, 42)),
    "way_speaking": (5, (939, 205, 201)),
    "scene": (6, (557, 120, 86)),
    "director": (10, (680, 163, 107)),
    "genre": (4, (3063, 597, 647)),
    "writer": (10, (769, 174, 168)),
    "year": (9, (770, 165, 143)),
    "like_ratio": (0, (658, 142, 140)),
    "view_count": (0, (577, 124, 126)),
}


@dataclass(frozen=True)
class Figure:
    """Seconds of one measurement; `goal` where there is one."""

    what: str
    catalog: bool
    cold: bool
    seconds: float
    goal: float | None


def made_up_dataset(entries: int) -> tuple[dict[str, float], list[TaskTable]]:
    """Ids like YouTube's with their seconds, and nine tasks of LVU's sizes."""
    chance = random.Random(0)
    letters = string.ascii_letters + string.digits + "-_"
    durations = {
        "".join(chance.choices(letters, k=11)): chance.uniform(30, 2 * MEAN_SECONDS - 30)
        for _ in range(entries)
    }
    ids = list(durations)
    tables = []
    for task, (outputs, sizes) in TASKS.items():
        chosen = iter(chance.sample(ids, min(len(ids), sum(sizes))))
        rows = tuple(
            TaskRow(
                id=entry_id,
                split=split,
                label=chance.randrange(outputs) if outputs else chance.gauss(0, 1),
                end_seconds=durations[entry_id],
            )
            for split, size in zip(SPLITS, sizes, strict=True)
            for entry_id, _ in zip(chosen, range(size), strict=False)
        )
        kind = "classification" if outputs else "regression"
        classes = tuple(f"class{i}" for i in range(outputs))
        tables.append(TaskTable(dataset="lvu", task=task, kind=kind, classes=classes, rows=rows))
    return durations, tables


def real_dataset(folder: str) -> tuple[dict[str, float], list[TaskTable]]:
    """The same from LVU's annotation files."""
    from vis4mer.extract.annotations.lvu import read_lvu

    found = read_lvu(folder)
    ids = sorted({row.id for table in found.tables for row in table.rows})
    return {each: found.durations.get(each, MEAN_SECONDS) for each in ids}, list(found.tables)


def fill(path: Path, durations: dict[str, float], tables: list[TaskTable]) -> Cache:
    spec = CacheSpec(
        backbone="benchmark",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=None,
        sampling=Sampling(fps=1.0),
        reader="none",
        grid=(1, 1),
        num_prefix=0,
        dim=DIM,
        arrays=("patch",),
    )
    cache = create_cache(path, spec)
    provenance = {"vis4mer": "benchmark", "host": "benchmark"}
    for entry_id, seconds in durations.items():
        frames = max(1, math.ceil(seconds))
        source = SourceRecord(name=f"{entry_id}.mp4", size=1, mtime_ns=1, sha256="0" * 64)
        with cache.write_entry(entry_id, source=source) as entry:
            tokens = np.zeros((frames, 1, DIM), dtype=np.float16)
            entry.append({"patch": tokens}, pts_seconds=np.arange(frames).tolist())
            entry.commit(duration_seconds=seconds, provenance=provenance)
    for table in tables:
        cache.save_task(table)
    return cache


def forget_pages(root: Path) -> None:
    """Give the pages of everything but tokens back to the system (they are read again)."""
    for path in (root / "catalog.json", *root.glob("records/*/*.json"), *root.glob("tasks/*/*")):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_batch(path: Path, task: str) -> Iterator[str]:
    """Open, list the training split, draw a batch; yields after each step."""
    cache = open_cache(path)
    table = cache.task(task)
    yield "open"
    found = split_samples(cache, table, "train")
    yield "list a split"
    plan = WindowPlan.of(cache.spec, tokens=None, window_seconds=60)
    loader = TrainLoader(
        cache,
        found.samples,
        plan,
        kind=table.kind,
        batch_size=16,
        windows_per_video=1,
        seed=0,
        workers=4,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    batches = loader.epoch(0)
    next(batches)
    yield "first batch"
    batches.close()


def time_steps(work: Callable[[], Iterator[str]], before: Callable[[], None]) -> dict[str, float]:
    """Median seconds of each step."""
    times: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        before()
        start = time.perf_counter()
        for step in work():
            now = time.perf_counter()
            times.setdefault(step, []).append(now - start)
            start = now
    return {step: statistics.median(values) for step, values in times.items()}


def summing(path: Path) -> Iterator[str]:
    summarise(open_cache(path))
    yield "sum up (no process)"


def info_process(path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "vis4mer", "cache", "info", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    yield "cache info"


def measure(path: Path, task: str, *, catalog: bool) -> list[Figure]:
    figures = []
    for cold in (False, True):

        def before(cold: bool = cold) -> None:
            if cold:
                forget_pages(path)

        steps = time_steps(lambda: first_batch(path, task), before)
        steps["open, list a split, first batch"] = sum(steps.values())
        steps |= time_steps(lambda: summing(path), before)
        steps |= time_steps(lambda: info_process(path), before)
        figures += [
            Figure(what=what, catalog=catalog, cold=cold, seconds=seconds, goal=GOALS.get(what))
            for what, seconds in steps.items()
        ]
    return figures


def print_tables(
    machine: dict[str, object], about: dict[str, object], figures: list[Figure]
) -> None:
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"\n{'catalog':<8} {'pages':<6} {'what':<32} {'seconds':>8}")
    for f in figures:
        catalog, pages = "yes" if f.catalog else "no", "cold" if f.cold else "warm"
        goal = f"goal {f.goal:g} s {'ok' if f.seconds <= f.goal else 'MISSED'}" if f.goal else ""
        print(f"{catalog:<8} {pages:<6} {f.what:<32} {f.seconds:>8.3f}  {goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, default=10_000, help="of a made-up dataset")
    parser.add_argument("--annotations", help="LVU's folder lvu_1.0, instead of a made-up dataset")
    parser.add_argument("--task", default="lvu/genre", help="whose training split is listed")
    parser.add_argument("--folder", help="where to write the cache; default a temporary folder")
    parser.add_argument("--flush", action="store_true", help="write as safely as extraction does")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    machine = describe_machine(("numpy", "torch"))
    if arguments.annotations:
        durations, tables = real_dataset(arguments.annotations)
    else:
        durations, tables = made_up_dataset(arguments.entries)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "many.zarr"
        unflushed = mock.patch.object(os, "fsync", return_value=None)
        with contextlib.nullcontext() if arguments.flush else unflushed:
            start = time.perf_counter()
            cache = fill(path, durations, tables)
            filled = time.perf_counter()
            cache.write_catalog()
            catalogued = time.perf_counter()
        about = {
            "entries": len(durations),
            "flushed": arguments.flush,
            "seconds to write 1,000": round((filled - start) / len(durations) * 1000, 3),
            "seconds to write the catalog": round(catalogued - filled, 3),
            "catalog MB": round((path / "catalog.json").stat().st_size / 1e6, 1),
        }
        figures = measure(path, arguments.task, catalog=True)
        (path / "catalog.json").unlink()
        figures += measure(path, arguments.task, catalog=False)
    if arguments.json:
        found = {"machine": machine, "about": about, "figures": figures}
        print(json.dumps(found, indent=1, default=asdict))
    else:
        print_tables(machine, about, figures)


if __name__ == "__main__":
    main()
