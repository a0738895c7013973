"""How well reading, backbone and writing overlap.

    python benchmarks/overlap.py VIDEOS_DIR [--backbone vit_tiny_patch16_224] [--repeats 3] [--json]

Each stage runs alone, in one thread, then all together, in turns; medians are compared.

all cores: the wall time of a run against the CPU seconds of the stages alone, shared evenly by the
cores (1.0 would be perfect). one core each: the backbone held to one core and reading to another,
against the slower of the two alone on its core (1.0 would be perfect). The run's clock starts when
the backbone is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import describe_machine
from torch import Tensor, nn
from vis4mer.extract.backbones.loading import Backbone, cache_spec, load_backbone
from vis4mer.extract.backbones.preprocess import resize_frames
from vis4mer.extract.planning.plan import hash_file
from vis4mer.extract.readers import Reader, VideoError, VideoStream, get_reader
from vis4mer.extract.sampling import Every, Moments
from vis4mer.extract.sources import VideoSource, resolve_sources
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.store.cache import create_cache
from vis4mer.store.records import SourceRecord

BATCH_SIZE = 8
PACKAGES = ("av", "torch", "timm", "numpy", "zarr")


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and seconds of CPU."""

    wall: float
    cpu: float


@dataclass
class PinnedReader:
    """A reader whose threads keep to one core."""

    reader: Reader
    core: int

    @property
    def name(self) -> str:
        return self.reader.name

    @property
    def version(self) -> str:
        return self.reader.version

    def open(self, path: Path, *, moments: Moments) -> VideoStream:
        os.sched_setaffinity(0, {self.core})
        return self.reader.open(path, moments=moments)


class PinnedModule(nn.Module):
    """A backbone whose threads keep to one core."""

    def __init__(self, module: nn.Module, core: int) -> None:
        super().__init__()
        self.module = module
        self.core = core

    def forward(self, pixels: Tensor) -> Tensor:
        os.sched_setaffinity(0, {self.core})
        return self.module(pixels)


def measured(work: Callable[[], object]) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def read_alone(videos: Sequence[VideoSource], reader: Reader, backbone: Backbone) -> list[int]:
    """Everything that a reading thread does; frames of each video."""
    counts = []
    for video in videos:
        hash_file(video.path)
        count = 0
        try:
            with reader.open(video.path, moments=Every(fps=1)) as stream:
                for batch in stream:
                    for start in range(0, batch.num_frames, BATCH_SIZE):
                        part = batch.frames[start : start + BATCH_SIZE]
                        count += len(resize_frames(part, backbone.preprocess))
        except VideoError:
            pass
        counts.append(count)
    return counts


def encode_alone(frames: int, backbone: Backbone) -> None:
    pixels = torch.zeros(BATCH_SIZE, 3, *backbone.preprocess.size, dtype=torch.uint8)
    for _ in range(0, frames, BATCH_SIZE):
        tokens = backbone.encode(pixels)
        tokens.patch.half().numpy()
        tokens.prefix.half().numpy()


def write_alone(counts: Sequence[int], backbone: Backbone) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_entries(counts, backbone, Path(folder) / "c.zarr")


def write_entries(counts: Sequence[int], backbone: Backbone, path: Path) -> None:
    cache = create_cache(path, cache_spec(backbone))
    source = SourceRecord(name="x", size=1, mtime_ns=1, sha256="0" * 64)
    patches = backbone.grid[0] * backbone.grid[1]
    patch = np.ones((BATCH_SIZE, patches, backbone.dim), np.float16)
    prefix = np.ones((BATCH_SIZE, backbone.num_prefix, backbone.dim), np.float16)
    for i, count in enumerate(counts):
        if count:
            with cache.write_entry(str(i), source=source) as entry:
                for first in range(0, count, BATCH_SIZE):
                    n = min(BATCH_SIZE, count - first)
                    tokens = {"patch": patch[:n], "prefix": prefix[:n]}
                    entry.append(tokens, range(first, first + n))
                entry.commit(duration_seconds=float(count))


def run_all(
    videos: Sequence[VideoSource],
    backbone: Backbone,
    reader: Reader,
    *,
    workers: int | None = None,
    backbone_threads: int | None = None,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = create_cache(Path(folder) / "c.zarr", cache_spec(backbone))
        fill_cache(
            videos,
            cache,
            backbone,
            reader,
            batch_size=BATCH_SIZE,
            workers=workers,
            backbone_threads=backbone_threads,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    cores = sorted(os.sched_getaffinity(0))
    videos = resolve_sources([str(options.videos)])
    backbone = load_backbone(options.backbone, weights="random:0", device="cpu")
    reader = get_reader("pyav")
    pinned = replace(backbone, module=PinnedModule(backbone.module, cores[0]))
    pinned = replace(pinned, weights_sha256=backbone.weights_sha256)
    pinned_reader = PinnedReader(reader, cores[-1])
    torch.set_num_threads(1)
    counts: list[int] = []
    costs: dict[str, list[Cost]] = {
        name: [] for name in ("reading", "backbone", "writing", "all cores", "one core each")
    }

    def read() -> None:
        counts[:] = read_alone(videos, reader, backbone)

    for _ in range(options.repeats):
        costs["reading"].append(measured(read))
        costs["backbone"].append(measured(lambda: encode_alone(sum(counts), backbone)))
        costs["writing"].append(measured(lambda: write_alone(counts, backbone)))
        costs["all cores"].append(measured(lambda: run_all(videos, backbone, reader)))
        costs["one core each"].append(
            measured(lambda: run_all(videos, pinned, pinned_reader, workers=1, backbone_threads=1))
        )
    report(costs, frames=sum(counts), cores=len(cores), options=options)


def report(
    costs: dict[str, list[Cost]], *, frames: int, cores: int, options: argparse.Namespace
) -> None:
    wall = {name: statistics.median(cost.wall for cost in all_) for name, all_ in costs.items()}
    cpu = {name: statistics.median(cost.cpu for cost in all_) for name, all_ in costs.items()}
    stages = ("reading", "backbone", "writing")
    alone = sum(cpu[stage] for stage in stages)
    together = wall["all cores"] / (alone / cores)
    apart = wall["one core each"] / max(wall["reading"], wall["backbone"])
    if options.json:
        result = {
            "machine": describe_machine(PACKAGES),
            "backbone": options.backbone,
            "frames": frames,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "all_cores_ratio": together,
            "one_core_each_ratio": apart,
        }
        print(json.dumps(result, indent=2))
        return
    print(f"{options.backbone}, {frames} frames, {cores} cores, median of {options.repeats}")
    print(f"{'':15} {'wall s':>8} {'CPU s':>8}")
    for name in costs:
        print(f"{name:15} {wall[name]:8.2f} {cpu[name]:8.2f}")
    print(f"all cores: {together:.3f} × (CPU seconds of the stages alone / {cores}), goal ≤ 1.1")
    print(f"one core each: {apart:.3f} × the slower of the two alone, goal ≤ 1.15")


if __name__ == "__main__":
    main()
