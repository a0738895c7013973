"""Where an epoch's time goes, and how much of it is spent waiting for data.

    python benchmarks/epoch.py --folder DIR                    100 minutes of 14 × 14 × 1024: 2.4 GB
    python benchmarks/epoch.py --folder DIR --videos 8 --frames 12 --grid 4 --dim 64

Writes a cache of random tokens for each stored type into the folder, where it is kept for the next
time, and trains `vis4mer` on it with the loader, learner and judge of `train-decoder`: at all
tokens of a window, and at CLS alone. Epochs of all settings take turns; figures are medians.

    waiting     no read was there for the next batch
    batch       decoding, collating and moving it
    learning    forward and backward
    optimizer   AdamW
    validation  reading and judging `--val` windows

Nothing is said of a disk that is not warm: the bytes lie in the system's cache after the first
epoch, which is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import describe_machine
from vis4mer.decode.config import TrainConfig, load_config
from vis4mer.decode.data.ahead import Stopwatch
from vis4mer.decode.data.loader import TrainLoader
from vis4mer.decode.judging.judge import judge
from vis4mer.decode.training.holding import hold
from vis4mer.decode.training.job import Job, prepare_job
from vis4mer.decode.training.learner import Learner
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.records import SourceRecord
from vis4mer.store.spec import CacheSpec, Preprocess, Sampling
from vis4mer.store.tasks import TaskRow, TaskTable

STAGES = ("waiting", "batch", "learning", "optimizer", "validation")
SMALL = "cls"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Seconds of each stage of one epoch, how many windows were learned, and bytes read."""

    waiting: float
    batch: float
    learning: float
    optimizer: float
    validation: float
    windows: int
    bytes_read: int
    num_buffers: int | None

    @property
    def training(self) -> float:
        return self.waiting + self.batch + self.learning + self.optimizer


@dataclass(frozen=True, kw_only=True)
class Row:
    """Medians over epochs. waiting_share, batch_share: of the time of the steps."""

    stored: str
    tokens: int
    batch_size: int
    preload: str
    samples_per_second: float
    waiting_share: float
    batch_share: float
    megabytes_per_epoch: float
    num_buffers: int | None
    seconds: dict[str, float]


# The cache ------------------------------------------------------------------------------------


def cache_in(folder: Path, stored: str, arguments: argparse.Namespace) -> Cache:
    """The cache of that type, written unless all of it is there."""
    side = arguments.grid
    spec = CacheSpec(
        backbone="random",
        weights="random:0",
        weights_sha256="0" * 64,
        preprocess=Preprocess(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3),
        sampling=Sampling(fps=1.0),
        reader="none",
        grid=(side, side),
        num_prefix=1,
        dim=arguments.dim,
        stored_dtype=stored,
    )
    name = f"{stored}-{arguments.frames}x{side}x{side}x{arguments.dim}.zarr"
    cache = create_cache(folder / name, spec)
    rows = []
    for i in range(arguments.videos + arguments.val):
        if f"v{i}" not in cache:
            _write(cache, i, frames=arguments.frames)
        rows.append(
            TaskRow(id=f"v{i}", split="train" if i < arguments.videos else "val", label=i % 4)
        )
    classes = ("a", "b", "c", "d")
    cache.save_task(
        TaskTable(
            dataset="random",
            task="label",
            kind="classification",
            classes=classes,
            rows=tuple(rows),
        )
    )
    return cache


def _write(cache: Cache, number: int, *, frames: int) -> None:
    spec, random = cache.spec, np.random.default_rng(number)
    num_tokens = spec.num_prefix + spec.grid[0] * spec.grid[1]
    source = SourceRecord(name=f"v{number}", size=1, mtime_ns=1, sha256="0" * 64)
    with cache.write_entry(f"v{number}", source=source) as entry:
        for first in range(0, frames, 16):
            count = min(16, frames - first)
            tokens = random.standard_normal((count, num_tokens, spec.dim), dtype=np.float32)
            arrays = {"prefix": tokens[:, : spec.num_prefix], "patch": tokens[:, spec.num_prefix :]}
            entry.append(arrays, pts_seconds=np.arange(first, first + count, dtype=float))
        entry.commit(duration_seconds=float(frames), damaged_frames=0, provenance={})


# Epochs ---------------------------------------------------------------------------------------


class Setting:
    """One decoder that learns from one cache at one token view, an epoch at a time."""

    def __init__(self, cache: Cache, config: TrainConfig) -> None:
        self.job = prepare_job(cache, config)
        self.stored = cache.spec.stored_dtype
        self._cache = cache
        self._number = 0
        self._optimizing = Stopwatch()
        self._loader = loader_of(cache, self.job)
        self._held = hold(cache, [self.job], on_note=lambda _: None)
        if self._held is not None:
            self._loader.hold(self._held)
        self._learner = Learner(
            self.job.config,
            shape=self.job.plan.shape,
            kind=self.job.table.kind,
            num_outputs=self.job.table.num_outputs,
            steps_per_epoch=self._loader.num_steps(0),
            compute=self.job.compute,
        )
        self._time_optimizer(self._learner.optimizer)

    def _time_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        step: Callable[[], object] = optimizer.step

        def timed() -> object:
            self._settle()
            with self._optimizing.running():
                found = step()
                self._settle()
            return found

        optimizer.step = timed  # type: ignore[method-assign,assignment]

    def _settle(self) -> None:
        """On a GPU wait for what was begun, so that it is counted where it belongs."""
        if self.job.compute.device.type == "cuda":
            torch.cuda.synchronize()

    def epoch(self) -> Epoch:
        waiting, giving, stepping = Stopwatch(), Stopwatch(), Stopwatch()
        self._optimizing.seconds, before = 0.0, self._loader.bytes_read
        batches = self._loader.epoch(self._number, then=self._number + 1, waiting=waiting)
        windows = 0
        while True:
            with giving.running():
                batch = next(batches, None)
                self._settle()
            if batch is None:
                break
            with stepping.running():
                self._learner.step(batch)
                self._settle()
            windows += len(batch.labels)
        self._learner.end_steps()
        self._number += 1
        judging = Stopwatch()
        with judging.running():
            self._judge()
        return Epoch(
            waiting=waiting.seconds,
            batch=giving.seconds - waiting.seconds,
            learning=stepping.seconds - self._optimizing.seconds,
            optimizer=self._optimizing.seconds,
            validation=judging.seconds,
            windows=windows,
            bytes_read=self._loader.bytes_read - before,
            num_buffers=getattr(self._loader.memory, "num_buffers", None),
        )

    def _judge(self) -> None:
        samples = self.job.splits["val"].samples
        if samples:
            judge(
                self._learner.model,
                self._cache,
                samples,
                self.job.plan,
                self.job.compute,
                stride_seconds=self.job.config.validation_stride_seconds,
                batch_size=self.job.config.batch_size,
                workers=self.job.config.workers,
            )

    def close(self) -> None:
        self._loader.close()


def loader_of(cache: Cache, job: Job) -> TrainLoader:
    return TrainLoader(
        cache,
        job.splits["train"].samples,
        job.plan,
        kind=job.table.kind,
        batch_size=job.config.batch_size,
        windows_per_video=1,
        seed=job.config.seed,
        workers=job.config.workers,
        device=job.compute.device,
        dtype=job.compute.dtype,
    )


def row_of(setting: Setting, epochs: Sequence[Epoch]) -> Row:
    def median(of: Callable[[Epoch], float]) -> float:
        return statistics.median(map(of, epochs))

    config = setting.job.config
    return Row(
        stored=setting.stored,
        tokens=setting.job.plan.shape.num_tokens,
        batch_size=config.batch_size,
        preload=config.preload,
        samples_per_second=median(lambda e: e.windows / e.training),
        waiting_share=median(lambda e: e.waiting / e.training),
        batch_share=median(lambda e: e.batch / e.training),
        megabytes_per_epoch=median(lambda e: e.bytes_read / 1e6),
        num_buffers=epochs[-1].num_buffers,
        seconds={stage: median(lambda e, stage=stage: getattr(e, stage)) for stage in STAGES},
    )


def measure(arguments: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(arguments.threads)
    side, frames = arguments.grid, arguments.frames
    settings = []
    for stored in arguments.stored:
        cache = cache_in(arguments.folder, stored, arguments)
        for tokens in (f"{frames}x{side}x{side}", f"{frames}x{SMALL}"):
            flags = {
                "task": "random/label",
                "decoder.variant": "official",
                "tokens": tokens,
                "window_seconds": float(frames),
                "batch_size": arguments.small_batch if tokens.endswith(SMALL) else arguments.batch,
                "workers": arguments.workers,
                "device": arguments.device,
                "precision": arguments.precision,
                "preload": arguments.preload,
            }
            settings.append(Setting(cache, load_config(flags=flags)))
    epochs: list[list[Epoch]] = [[] for _ in settings]
    for turn in range(1 + arguments.epochs):
        for i, setting in enumerate(settings):
            started = time.perf_counter()
            epoch = setting.epoch()
            said = f"{setting.stored}, {setting.job.plan.view}, epoch {turn}"
            print(f"{said}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
            if turn:
                epochs[i].append(epoch)
    for setting in settings:
        setting.close()
    return [row_of(setting, found) for setting, found in zip(settings, epochs, strict=True)]


# Telling --------------------------------------------------------------------------------------


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """By stored type, samples a second at few tokens over those at many."""
    return {
        few.stored: few.samples_per_second / many.samples_per_second
        for many, few in zip(rows[::2], rows[1::2], strict=True)
    }


def print_rows(rows: Sequence[Row]) -> None:
    columns = ("stored", "tokens", "batch", "samples/s", "waiting", "making batches", *STAGES)
    print("".join(f"{name:>16}" for name in columns))
    for row in rows:
        cells = (row.stored, f"{row.tokens:,}", str(row.batch_size))
        shares = (f"{100 * row.waiting_share:.2f} %", f"{100 * row.batch_share:.2f} %")
        rate = f"{row.samples_per_second:.2f}"
        seconds = (f"{row.seconds[stage]:.3f} s" for stage in STAGES)
        print("".join(f"{cell:>16}" for cell in (*cells, rate, *shares, *seconds)))
    for stored, ratio in ratios(rows).items():
        print(f"{stored}: {ratio:.1f} times as many samples a second at few tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the caches; kept")
    parser.add_argument("--stored", nargs="+", default=["float16", "int8"])
    parser.add_argument("--videos", type=int, default=100, help="to learn from, a window each")
    parser.add_argument("--val", type=int, default=10, help="to judge after each epoch")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--grid", type=int, default=14)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16, help="windows of a step at all tokens")
    parser.add_argument("--small-batch", type=int, default=16, help="windows of a step at CLS")
    parser.add_argument("--epochs", type=int, default=3, help="that count, after a first")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--preload", choices=("off", "ram", "gpu"), default="off")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = measure(arguments)
    machine = describe_machine(["torch", "numpy"])
    asked = {name: str(value) for name, value in vars(arguments).items() if name != "folder"}
    if arguments.json:
        found = {"machine": machine, "asked": asked, "ratios": ratios(rows)}
        json.dump({**found, "rows": [asdict(row) for row in rows]}, sys.stdout, indent=2)
        return
    print("; ".join(f"{name} {value}" for name, value in {**machine, **asked}.items()), end="\n\n")
    print_rows(rows)


if __name__ == "__main__":
    main()
