"""How well reading, backbone and writing overlap.

    python benchmarks/overlap.py [VIDEOS_DIR] [--backbones NAME,NAME] [--repeats 3] [--json]

Without a directory it makes 82 clips: one of 363 s, one of 40 s, 80 of 3 s. Each stage runs alone
in one thread that is held to a core, then all of them together, in turns.

one core each: reading held to one core and the backbone to another, in one thread each; the pace
of the run as a part of the pace of its slowest stage alone (goal: at least 0.9, 1 is perfect; a
little more is noise), and, for a machine that others use too, the same from what they cannot
spoil: the share of the run in which that stage worked, times its CPU seconds alone to those in the
run. Writing has no core of its own where there are only two. all cores: the wall
time of a run with its own choice of threads against the CPU seconds of the stages alone, shared
evenly by the cores (goal: at most 1.1). The fastest of the repeats counts, for a shared machine
only ever slows things down. The run's clock starts when the backbone is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from clips import LONG, NUM_SHORT, write_mixture
from common import describe_machine
from torch import Tensor, nn
from vis4mer.extract.backbones.loading import Backbone, cache_spec, load_backbone
from vis4mer.extract.backbones.preprocess import resize_frames
from vis4mer.extract.planning.plan import hash_file
from vis4mer.extract.readers import get_reader
from vis4mer.extract.readers.base import Reader, VideoError, VideoStream
from vis4mer.extract.sampling import Every, Moments
from vis4mer.extract.sources import VideoSource, resolve_sources
from vis4mer.extract.stages.pipeline import fill_cache
from vis4mer.extract.stages.progress import ExtractSummary
from vis4mer.store.cache import create_cache
from vis4mer.store.records import SourceRecord

BATCH_SIZE = 8
PACKAGES = ("torch", "timm", "av", "numpy", "zarr")
# Reading decides with the first, the backbone with the second.
BACKBONES = "vit_tiny_patch16_224@64,vit_tiny_patch16_224"
STAGES = ("reading", "backbone", "writing")


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


@contextlib.contextmanager
def held_to(core: int) -> Iterator[None]:
    """This thread on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


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
        with (
            contextlib.suppress(VideoError),
            reader.open(video.path, moments=Every(fps=1)) as stream,
        ):
            for batch in stream:
                for start in range(0, batch.num_frames, BATCH_SIZE):
                    part = batch.frames[start : start + BATCH_SIZE]
                    count += len(resize_frames(part, backbone.preprocess))
        counts.append(count)
    return counts


def encode_alone(frames: int, backbone: Backbone) -> None:
    pixels = torch.zeros(BATCH_SIZE, 3, *backbone.preprocess.size, dtype=torch.uint8)
    for _ in range(0, frames, BATCH_SIZE):
        tokens = backbone.encode(pixels)
        tokens.patch.half().numpy()
        tokens.prefix.half().numpy()


def write_alone(counts: Sequence[int], backbone: Backbone, path: Path) -> None:
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
    path: Path,
    *,
    threads: int | None = None,
) -> ExtractSummary:
    """A whole run; threads: of reading and of the backbone."""
    return fill_cache(
        videos,
        create_cache(path, cache_spec(backbone)),
        backbone,
        reader,
        batch_size=BATCH_SIZE,
        workers=threads,
        backbone_threads=threads,
        profile=path.with_suffix(".json"),
    )


def measure(videos: Sequence[VideoSource], name: str, *, repeats: int) -> dict[str, object]:
    """All costs with one backbone."""
    cores = sorted(os.sched_getaffinity(0))
    backbone, reader = load_backbone(name, weights="random:0", device="cpu"), get_reader("pyav")
    pinned = replace(backbone, module=PinnedModule(backbone.module, cores[0]))
    pinned_reader = PinnedReader(reader, cores[-1])
    counts = read_alone(videos, reader, backbone)
    encode_alone(BATCH_SIZE, backbone)  # the first is slower
    costs: dict[str, list[Cost]] = {}
    summaries: list[ExtractSummary] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            works: dict[str, tuple[int | None, Callable[[], object]]] = {
                "reading": (cores[-1], lambda: read_alone(videos, reader, backbone)),
                "backbone": (cores[0], lambda: encode_alone(sum(counts), backbone)),
                "writing": (None, lambda r=root: write_alone(counts, backbone, r / "writing")),
                "all cores": (None, lambda r=root: run_all(videos, backbone, reader, r / "all")),
                "one core each": (
                    None,
                    lambda r=root: summaries.append(
                        run_all(videos, pinned, pinned_reader, r / "each", threads=1)
                    ),
                ),
            }
            for work, (core, run) in works.items():
                with held_to(core) if core is not None else contextlib.nullcontext():
                    costs.setdefault(work, []).append(measured(run))
    return result(costs, summaries, name=name, frames=sum(counts), cores=len(cores))


def result(
    costs: dict[str, list[Cost]],
    summaries: Sequence[ExtractSummary],
    *,
    name: str,
    frames: int,
    cores: int,
) -> dict[str, object]:
    """The fastest of the repeats, and the two ratios that are the statement."""
    best = {work: min(repeats, key=lambda cost: cost.wall) for work, repeats in costs.items()}
    slowest = max(STAGES, key=lambda stage: best[stage].wall)
    each = min(summaries, key=lambda summary: summary.seconds)
    return {
        "backbone": name,
        "frames": frames,
        "costs": {work: asdict(cost) for work, cost in best.items()},
        "repeats": {work: [cost.wall for cost in all_] for work, all_ in costs.items()},
        "slowest_stage": slowest,
        "one_core_each_efficiency": best[slowest].wall / best["one core each"].wall,
        "one_core_each_efficiency_by_cpu": by_cpu(each, best),
        "one_core_each_busy_share": each.busy_share,
        "all_cores_ratio": best["all cores"].wall
        / (sum(best[stage].cpu for stage in STAGES) / cores),
    }


def by_cpu(summary: ExtractSummary, alone: Mapping[str, Cost]) -> float:
    """The pace of the slowest stage in a run to its pace alone, if it had its core to itself."""
    assert summary.profile is not None
    stage = max(summary.profile.stages, key=lambda stage: alone[stage.stage].cpu)
    return stage.busy_share * alone[stage.stage].cpu / stage.cpu_seconds


def report(results: Sequence[dict[str, object]]) -> None:
    for found in results:
        print(f"\n{found['backbone']}: {found['frames']} frames")
        print(f"{'':15} {'wall s':>8} {'CPU s':>8} {'frames/s':>9}")
        for work, cost in found["costs"].items():
            rate = found["frames"] / cost["wall"]
            print(f"{work:15} {cost['wall']:8.2f} {cost['cpu']:8.2f} {rate:9.1f}")
        busy = ", ".join(
            f"{stage} {part:.0%}" for stage, part in found["one_core_each_busy_share"].items()
        )
        print(
            f"one core each: {found['one_core_each_efficiency']:.3f} × {found['slowest_stage']} "
            f"alone (by CPU {found['one_core_each_efficiency_by_cpu']:.3f}), goal ≥ 0.9; "
            f"busy: {busy}"
        )
        print(
            f"all cores: {found['all_cores_ratio']:.3f} × (CPU seconds of the stages alone / "
            "cores), goal ≤ 1.1"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="?")
    parser.add_argument("--backbones", default=BACKBONES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-short", type=int, default=NUM_SHORT, help="short clips to make")
    parser.add_argument("--longest", type=int, default=LONG, help="seconds of the longest clip")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.videos is None:
            options.videos = Path(folder) / "videos"
            write_mixture(options.videos, num_short=options.num_short, longest=options.longest)
        videos = resolve_sources([str(options.videos)])
        results = [
            measure(videos, name, repeats=options.repeats) for name in options.backbones.split(",")
        ]
    machine = describe_machine(PACKAGES)
    if options.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
        return
    print(machine)
    report(results)


if __name__ == "__main__":
    main()
