"""What a token ablation costs: `ablate --preset paper-tokens` over a cache of one-minute videos.

    python benchmarks/paper_tokens.py DIR [--videos 100] [--backbone vit_small_patch16_224] [--json]

Draws the videos, extracts them with a seeded random backbone, reads every view of the preset once
as training reads it, each by itself and together as the passes of the sweep do, runs the preset,
and trains each of its runs alone, of which the most expensive is what the sweep is held against.
Videos and cache stay in DIR with what extracting them took, so that the same command measures the
rest again; another backbone needs another DIR.

The videos have one frame a second, so that none is decoded in vain: extraction is as cheap as it
can be, and reading is held against that. Reading finds the files in the page cache. CPU seconds are
of all threads of this process, and what to look at on a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import describe_machine, median_times
from vis4mer.decode.ablate.plan import Prepared, SweepPlan, plan_sweep
from vis4mer.decode.ablate.presets import build_preset
from vis4mer.decode.ablate.rows import SweepRow
from vis4mer.decode.ablate.running import run_sweep
from vis4mer.decode.ablate.sweep import Point
from vis4mer.decode.data.ahead import read_ahead
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.data.plan import Sample, WindowPlan, split_samples
from vis4mer.decode.data.sharing import SharedEpoch
from vis4mer.decode.data.stored_clips import read_clip
from vis4mer.decode.device import Compute
from vis4mer.decode.runs.results import TrainResult
from vis4mer.decode.train import train_decoder
from vis4mer.demo.clips import encode_clip
from vis4mer.extract.backbones.loading import cache_spec, load_backbone
from vis4mer.extract.readers import get_reader
from vis4mer.extract.sources import resolve_sources
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import Cache, create_cache, open_cache
from vis4mer.store.files import write_atomic
from vis4mer.store.pooling import pool_cache
from vis4mer.store.tasks import Split, TaskRow, TaskTable

PRESET = "paper-tokens"
POOLED_SIDES = (7, 5)
CACHE_NAME = "tokens"
TASK = "benchmark/side"
SPLITS: Sequence[Split] = ("train", "train", "train", "val", "test")  # of five videos
GOALS = {"sweep / most expensive run": 1.8, "reading / extracting": 1 / 20}
PACKAGES = ("vis4mer", "torch", "timm", "av", "numpy")


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of all cores."""

    wall: float
    cpu: float

    def over(self, other: Cost) -> Cost:
        """Both ratios."""
        return Cost(self.wall / other.wall, self.cpu / other.cpu)


@dataclass(frozen=True)
class ReadCost:
    """All videos read once at a view. from_store: without what is done to the tokens then, which
    is averaging, casting and padding. num_bytes: of tokens read."""

    view: str
    arrays: str
    num_bytes: int
    from_store: Cost
    batches: Cost


@dataclass(frozen=True)
class RunCost:
    """A run of the sweep by itself. reading: its training windows alone, over all epochs.

    sweep_seconds: what the sweep says of it, by the clock. bytes_read: alone, sweep_bytes: its
    share of what its pass read.
    """

    view: str
    num_tokens: int
    epochs: int
    alone: Cost
    sweep_seconds: float
    reading: Cost
    bytes_read: int
    sweep_bytes: int


def measured(work: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


# Videos and tokens ------------------------------------------------------------------------------


def draw_clip(number: int, *, seconds: int, size: int) -> bytes:
    """A square that drifts over a textured ground, one frame a second; its side is the label."""
    rng = np.random.default_rng([number, 0])
    ground = rng.integers(60, 180, (size // 8, size // 8, 3)).repeat(8, 0).repeat(8, 1)  # H W 3
    frames = np.repeat(ground[None], seconds, axis=0).astype(np.uint8)  # T H W 3
    side = size // 4
    left = number % 2 * size // 2
    for second, frame in enumerate(frames):
        top = second * 7 % (size - side)
        frame[top : top + side, left : left + side] = (240, 200, 40)
    return encode_clip(frames)


def write_videos(folder: Path, *, count: int, seconds: int, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"clip-{number:04d}.mp4"
        if not path.exists():
            write_atomic(path, draw_clip(number, seconds=seconds, size=size))


def extracted(options: argparse.Namespace) -> tuple[Cache, Cost]:
    """The cache of the videos, and what it took when it was made: by this call, or by another."""
    kept = options.folder / "extraction.json"
    asked = {name: getattr(options, name) for name in ("videos", "seconds", "size", "backbone")}
    path = options.folder / f"{CACHE_NAME}.zarr"
    if kept.exists():
        about = json.loads(kept.read_text())
        if about["asked"] != asked:
            raise SystemExit(f"{options.folder} holds {about['asked']}; choose another folder")
        return open_cache(path), Cost(**about["cost"])
    videos = options.folder / "videos"
    write_videos(videos, count=options.videos, seconds=options.seconds, size=options.size)
    backbone = load_backbone(options.backbone, weights="random:0", device=options.device)
    shutil.rmtree(path, ignore_errors=True)  # of a call that did not end: its time is not known
    cache = create_cache(path, cache_spec(backbone))
    sources = resolve_sources([str(videos)])
    cost = measured(lambda: fill_cache(sources, cache, backbone, get_reader("pyav")))
    rows = tuple(
        TaskRow(id=source.id, split=SPLITS[i // 2 % len(SPLITS)], label=i % 2)
        for i, source in enumerate(sources)
    )
    dataset, _, task = TASK.partition("/")
    classes = ("left", "right")
    cache.save_task(
        TaskTable(dataset=dataset, task=task, kind="classification", classes=classes, rows=rows)
    )
    write_atomic(kept, json.dumps({"asked": asked, "cost": asdict(cost)}).encode())
    return cache, cost


# Reading ----------------------------------------------------------------------------------------


def all_samples(cache: Cache) -> tuple[Sample, ...]:
    table = cache.task(TASK)
    return tuple(
        sample
        for split in ("train", "val", "test")
        for sample in split_samples(cache, table, split).samples
    )


def loader_of(cache: Cache, point: Point, plan: WindowPlan) -> TrainLoader:
    """What the run of a point reads with, but over all videos."""
    config = point.config
    compute = Compute.of(device=config.device, precision=config.precision)
    return TrainLoader(
        cache,
        all_samples(cache),
        plan,
        kind="classification",
        batch_size=config.batch_size,
        windows_per_video=config.windows_per_video,
        seed=config.seed,
        workers=config.workers,
        device=compute.device,
        dtype=compute.dtype,
    )


def plan_of(cache: Cache, point: Point) -> WindowPlan:
    config = point.config
    return WindowPlan.of(cache.spec, tokens=config.tokens, window_seconds=config.window_seconds)


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def read_batches(loader: TrainLoader) -> None:
    exhaust(loader.epoch(0))


def read_from_store(cache: Cache, point: Point) -> int:
    """Every video's window, on as many threads as training has; bytes of tokens."""
    plan = plan_of(cache, point)
    draws = [draw for block in loader_of(cache, point, plan).draws(0) for draw in block]
    reads = read_ahead(
        lambda draw: read_clip(cache, draw.sample.id, plan, plan.frames(draw.window)),
        draws,
        workers=point.config.workers,
        depth=point.config.batch_size + point.config.workers,
    )
    return sum(host.num_bytes for host in reads)


def reading_costs(cache: Cache, points: Sequence[Point], *, repeats: int) -> list[ReadCost]:
    works: dict[str, Callable[[], object]] = {}
    for point in points:
        loader = loader_of(cache, point, plan_of(cache, point))
        works[f"store {point.name}"] = partial(read_from_store, cache, point)
        works[f"batches {point.name}"] = partial(read_batches, loader)
    times = median_times(works, repeats=repeats)
    costs = {name: Cost(timing.seconds, timing.cpu_seconds) for name, timing in times.items()}
    return [
        ReadCost(
            view=str(point.config.tokens),
            arrays=arrays_read(cache, plan_of(cache, point)),
            num_bytes=read_from_store(cache, point),
            from_store=costs[f"store {point.name}"],
            batches=costs[f"batches {point.name}"],
        )
        for point in points
    ]


def arrays_read(cache: Cache, plan: WindowPlan) -> str:
    """Such as `prefix+patch`: what the first video's windows are read from."""
    held = cache.record(cache.ids()[0]).token_arrays
    return "+".join(plan.view.arrays_read(cache.spec, held))


def reading_together(cache: Cache, plan: SweepPlan, *, repeats: int) -> Cost:
    """Everything once, as the passes of the sweep read it."""

    def read() -> None:
        for each in plan.passes:
            loaders = [loader_of(cache, run.point, run.job.plan) for run in each.runs]
            workers = each.runs[0].job.config.workers
            exhaust(SharedEpoch(cache, loaders, epoch=0, workers=workers, pin=False))

    [timing] = median_times({"together": read}, repeats=repeats).values()
    return Cost(timing.seconds, timing.cpu_seconds)


def total(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(cost.wall for cost in costs), sum(cost.cpu for cost in costs))


# The sweep --------------------------------------------------------------------------------------


def run_preset(
    cache: Cache, points: Sequence[Point], folder: Path, *, memory: bool
) -> tuple[Cost, Mapping[str, SweepRow]]:
    """The sweep as the command runs it: its cost, and its rows by their names."""
    caches = {CACHE_NAME: cache}
    device = points[0].config.device

    def run() -> None:
        plan = plan_sweep(points, caches, folder)
        result = run_sweep(plan, points, caches, folder, devices=[device], memory=memory)
        if result.failed:
            raise SystemExit(f"a run failed: {result.failed}")
        rows.update({row.run: row for row in result.rows})

    rows: dict[str, SweepRow] = {}
    return measured(run), rows


def train_alone(cache: Cache, run: Prepared, folder: Path) -> tuple[Cost, TrainResult]:
    results = []
    cost = measured(lambda: results.append(train_decoder(cache, run.config, folder)))
    return cost, results[0]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    cache, extraction = extracted(options)
    pool_cache(cache, POOLED_SIDES, drop=True)  # of an earlier call
    cache.refresh()
    sweep = build_preset(PRESET, [cache.spec])
    settings = {"task": TASK, "epochs": options.epochs, "device": options.device}
    points = sweep.with_base(settings).points([CACHE_NAME], sets=options.set)
    plan = plan_sweep(points, {CACHE_NAME: cache}, options.folder / "none")
    reading = reading_costs(cache, points, repeats=options.repeats)
    together = reading_together(cache, plan, repeats=options.repeats)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        sweep_cost, rows = run_preset(cache, points, folder / "sweep", memory=False)
        memory_cost = None
        if options.memory:  # all runs are finished: nothing else is left to do
            memory_cost = run_preset(cache, points, folder / "sweep", memory=True)[0]
        trained = [train_alone(cache, run, folder / run.point.name) for run in plan.runs]
    alone = [cost for cost, _ in trained]
    runs = [
        RunCost(
            view=str(run.point.config.tokens),
            num_tokens=run.job.plan.shape.num_tokens,
            epochs=options.epochs,
            alone=cost,
            sweep_seconds=rows[run.point.name].seconds,
            reading=scaled(read.batches, options.epochs * train_share(run.job.splits)),
            bytes_read=result.bytes_read,
            sweep_bytes=rows[run.point.name].bytes_read,
        )
        for run, (cost, result), read in zip(plan.runs, trained, reading, strict=True)
    ]
    pooling = measured(lambda: pool_cache(cache, POOLED_SIDES))
    cache.refresh()
    pooled = reading_costs(cache, points, repeats=options.repeats)
    most_expensive = max(alone, key=lambda cost: cost.cpu)
    return {
        "videos": options.videos,
        "seconds": options.seconds,
        "backbone": options.backbone,
        "extraction": asdict(extraction),
        "reading": [asdict(read) for read in reading],
        "reading_together": asdict(together),
        "pooling": asdict(pooling),
        "reading_pooled": [asdict(read) for read in pooled],
        "passes": [[run.point.name for run in each.runs] for each in plan.passes],
        "runs": [asdict(run) for run in runs],
        "sweep": asdict(sweep_cost),
        "memory": None if memory_cost is None else asdict(memory_cost),
        "ratios": {
            "sweep / most expensive run": asdict(sweep_cost.over(most_expensive)),
            "all runs alone / most expensive run": asdict(total(alone).over(most_expensive)),
            "reading together / extracting": asdict(together.over(extraction)),
            "reading / extracting": asdict(total([r.batches for r in reading]).over(extraction)),
            "reading pooled / extracting": asdict(
                total([r.batches for r in pooled]).over(extraction)
            ),
        },
        "machine": describe_machine(PACKAGES),
    }


def train_share(splits: Mapping[Split, Any]) -> float:
    counts = {split: len(chosen.samples) for split, chosen in splits.items()}
    return counts["train"] / sum(counts.values())


def scaled(cost: Cost, factor: float) -> Cost:
    return Cost(cost.wall * factor, cost.cpu * factor)


# What is shown ----------------------------------------------------------------------------------


def print_table(found: Mapping[str, Any]) -> None:
    extraction = found["extraction"]
    print(
        f"{found['videos']} videos of {found['seconds']} s, {found['backbone']}: extraction "
        f"{both(extraction)}"
    )
    print("\n| view | read from | MB | store | store and device |\n|---|---|---|---|---|")
    for read in (*found["reading"], *found["reading_pooled"]):
        print(
            f"| {read['view']} | {read['arrays']} | {read['num_bytes'] / 1e6:.0f} | "
            f"{both(read['from_store'])} | {both(read['batches'])} |"
        )
    print(f"\nall views together: {both(found['reading_together'])}")
    print(f"making copies of {' and '.join(map(str, POOLED_SIDES))}: {both(found['pooling'])}")
    print(
        "\n| run | tokens | epochs | alone | of it reading to train | MB | in the sweep | MB |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for run in found["runs"]:
        share = run["reading"]["cpu"] / run["alone"]["cpu"]
        print(
            f"| {run['view']} | {run['num_tokens']:,} | {run['epochs']} | {both(run['alone'])} | "
            f"{both(run['reading'])}, {share:.1%} | {run['bytes_read'] / 1e6:.0f} | "
            f"{run['sweep_seconds']:.1f} s | {run['sweep_bytes'] / 1e6:.0f} |"
        )
    print(f"\nthe sweep, {len(found['passes'])} passes: {both(found['sweep'])}")
    if found["memory"] is not None:
        wall = found["memory"]["wall"]  # whose CPU time is not that of this process
        print(f"measuring memory, in processes of their own: {wall:.1f} s")
    print("\n| ratio | by the clock | CPU | goal |\n|---|---|---|---|")
    for name, ratio in found["ratios"].items():
        goal = f"{GOALS[name]:.3g}" if name in GOALS else ""
        print(f"| {name} | {ratio['wall']:.3g} | {ratio['cpu']:.3g} | {goal} |")


def both(cost: Mapping[str, float]) -> str:
    return f"{cost['wall']:.1f} s ({cost['cpu']:.1f} CPU)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=60, help="of each video")
    parser.add_argument("--size", type=int, default=256, help="of a frame's side in pixels")
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="of a 14 x 14 grid")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for all runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of reading; medians are taken")
    parser.add_argument("--memory", action="store_true", help="measure memory too, as ablate does")
    parser.add_argument("--extract", action="store_true", help="make the cache and stop")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.extract:
        print(both(asdict(extracted(options)[1])))
        return
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        print_table(found)


if __name__ == "__main__":
    main()
