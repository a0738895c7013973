"""What extracting and training cost, measured piece by piece here, and the sums for whole datasets.

    python benchmarks/costs.py [--videos FOLDER] [--backbone vit_large_patch16_224] [--device cpu]
        [--gpu-tflops 100,350] [--gpus 1,8,64] [--cores 16] [--json]

Measured: CPU time of reading a second of video and of resizing what is sampled, of generated clips
(720p, 30 frames a second, H.264) or of those in a folder; the backbone's time a frame; writing
entries and reading them back; requests of a push, a pull and of reading at a place, counted.
Computed: bytes and objects of an entry, and arithmetic operations of a frame. From those follow
hours, bytes and requests for LVU, COIN and a million minutes, by the formulas in docs/scaling.md.
A GPU's rate is what --gpu-tflops says that it sustains, unless --device measures one.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import reading as reading_benchmark
import torch
from common import describe_machine
from torch.utils.flop_counter import FlopCounterMode
from vis4mer.extract.backbones.loading import (
    Backbone,
    cache_spec,
    load_backbone,
    shape_of_backbone,
)
from vis4mer.extract.backbones.preprocess import resize_frames
from vis4mer.extract.readers import VideoError, get_reader
from vis4mer.extract.sampling import Every
from vis4mer.extract.sources import resolve_sources
from vis4mer.store.cache import Cache, create_cache
from vis4mer.store.records import SourceRecord, frame_cost
from vis4mer.store.remote.local import LocalPlace
from vis4mer.store.remote.mirror import cache_at
from vis4mer.store.remote.place import PlacedObject
from vis4mer.store.remote.shelf import Shelf
from vis4mer.store.sizing import entry_size
from vis4mer.store.spec import CacheSpec, Sampling
from vis4mer.store.transfer.pull import pull_cache
from vis4mer.store.transfer.push import push_cache

FPS = 1.0
WINDOW_FRAMES = 60
PACK_BYTES = 200_000_000
SPEC_VIDEOS = 8
GOPS = (48, 250)
PROFILES = {
    "float16": ("float16", ("patch", "prefix")),
    "int8": ("int8", ("patch", "prefix")),
    "float16, grid7": ("float16", ("prefix", "grid7")),
    "int8, grid7": ("int8", ("prefix", "grid7")),
}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """videos and their seconds together."""

    name: str
    videos: int
    seconds: float


# COIN's hours are those of its paper, of whole videos; its labels crop them to less.
DATASETS = (
    Dataset(name="LVU", videos=9_996, seconds=370 * 3600),
    Dataset(name="COIN", videos=11_827, seconds=476.6 * 3600),
    Dataset(name="1 M minutes", videos=1_000_000, seconds=60e6),
)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """read_seconds: CPU time of one second of video, with resizing what is sampled of it.
    encode_seconds, encode_cpu: of one frame, by the clock with everything that the device has, and
    CPU time of all cores together. gflops: of one frame. write_rate, read_rate: bytes a second by
    the clock. write_seconds: CPU time of a megabyte.
    """

    read_seconds: float
    encode_seconds: float
    encode_cpu: float
    gflops: float
    write_rate: float
    write_seconds: float
    read_rate: float


# Measuring --------------------------------------------------------------------------------------


def measure_reading(paths: Sequence[Path], backbone: Backbone) -> float:
    """CPU seconds of a second of video: packets, decoding, colours, resizing; files that cannot be
    read are passed by."""
    reader, cpu, seconds = get_reader("pyav"), 0.0, 0.0
    for path in paths:
        begun = time.process_time()
        try:
            with reader.open(path, moments=Every(fps=FPS)) as stream:
                for batch in stream:
                    resize_frames(batch.frames, backbone.preprocess)
        except VideoError:
            continue
        cpu += time.process_time() - begun
        seconds += stream.info.duration_seconds
    if not seconds:
        raise SystemExit("no video could be read")
    return cpu / seconds


def measure_encoding(backbone: Backbone, *, frames: int, repeats: int) -> tuple[float, float]:
    """Seconds of one frame by the clock, and of CPU: of the fastest batch, for the machine may be
    busy."""
    pixels = torch.zeros(frames, 3, *backbone.preprocess.size, dtype=torch.uint8)  # T 3 H W
    taken = []
    for _ in range(repeats + 1):  # the first is slower
        begun, cpu = time.perf_counter(), time.process_time()
        backbone.encode(pixels).patch.cpu()
        spent = time.perf_counter() - begun, time.process_time() - cpu
        taken.append((spent[0] / frames, spent[1] / frames))
    walls, cpus = zip(*taken[1:], strict=True)
    return min(walls), min(cpus)


def count_gflops(name: str) -> float:
    """Arithmetic operations of one frame, two a multiplication, by PyTorch's own counter."""
    backbone = shape_of_backbone(name)
    pixels = torch.empty(1, 3, *backbone.preprocess.size, device="meta")  # 1 3 H W
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.module(pixels)
    return counter.get_total_flops() / 1e9


def write_videos(cache: Cache, *, videos: int, frames: int, prefix: str = "v") -> None:
    """Entries of random tokens."""
    spec = cache.spec
    rng = np.random.default_rng(0)
    patches = spec.grid[0] * spec.grid[1]
    patch = rng.standard_normal((frames, patches, spec.dim), np.float32).astype(np.float16)
    tokens = {"patch": patch, "prefix": patch[:, : spec.num_prefix]}
    source = SourceRecord(name="v", size=1, mtime_ns=1, sha256="0" * 64)
    for number in range(videos):
        with cache.write_entry(f"{prefix}{number}", source=source) as entry:
            entry.append(tokens, np.arange(frames, dtype=float).tolist())
            entry.commit(duration_seconds=float(frames))


def measure_store(folder: Path, spec: CacheSpec, *, videos: int) -> tuple[float, float, float]:
    """(bytes written a second, CPU seconds a megabyte, bytes read a second), both with checksums;
    what was written is on the disk, what is read is still in memory."""
    cache = create_cache(folder / "rates.zarr", spec)
    num_bytes = videos * WINDOW_FRAMES * sum(frame_cost(spec, each) for each in spec.arrays)
    begun, cpu = time.perf_counter(), time.process_time()
    write_videos(cache, videos=videos, frames=WINDOW_FRAMES)
    write, cpu = time.perf_counter() - begun, time.process_time() - cpu
    begun = time.perf_counter()
    for entry_id in cache.ids():
        for array in spec.arrays:
            cache.read(entry_id, array)
    return num_bytes / write, cpu / num_bytes * 1e6, num_bytes / (time.perf_counter() - begun)


class CountingPlace(LocalPlace):
    """A directory that counts what an object store would be asked for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: Counter[str] = Counter()
        self._depth = threading.local()
        self._counting = threading.Lock()

    def _count(self, request: str) -> None:
        with self._counting:
            self.requests[request] += 1

    def size(self, key: str) -> int | None:
        if not getattr(self._depth, "inner", False):
            self._count("HEAD")
        return super().size(key)

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._count("GET")
        return self._within(
            lambda: super(CountingPlace, self).read(key, start=start, length=length)
        )

    def fetch(
        self, key: str, target: BinaryIO, *, start: int = 0, length: int | None = None
    ) -> None:
        self._count("GET")
        fetch = super().fetch
        self._within(lambda: fetch(key, target, start=start, length=length))

    def put(self, key: str, source: bytes | Path, *, only_new: bool = False) -> bool:
        self._count("PUT")
        return super().put(key, source, only_new=only_new)

    def list(self, prefix: str) -> Iterator[PlacedObject]:
        self._count("LIST")
        listing = super().list
        return iter(self._within(lambda: [*listing(prefix)]))

    def _within(self, work: Any) -> Any:
        """Work of the directory itself, which is one request however it is done."""
        self._depth.inner = True
        try:
            return work()
        finally:
            self._depth.inner = False


def count_requests(folder: Path, spec: CacheSpec) -> dict[str, dict[str, float]]:
    """Requests a video of each way to move or read a cache: the difference of two sizes."""
    small = _requests(folder / "few", spec, videos=SPEC_VIDEOS)
    large = _requests(folder / "many", spec, videos=2 * SPEC_VIDEOS)
    return {
        way: {
            kind: (large[way][kind] - number) / SPEC_VIDEOS
            for kind, number in sorted((large[way] | Counter()).items())
            for number in [small[way][kind]]
        }
        for way in large
    }


def _requests(folder: Path, spec: CacheSpec, *, videos: int) -> dict[str, Counter[str]]:
    cache = create_cache(folder / "source", spec)
    write_videos(cache, videos=videos, frames=WINDOW_FRAMES)
    cache.write_catalog()
    found = {}
    for name, pack_bytes in (("loose", None), ("packed", PACK_BYTES)):
        place = CountingPlace(folder / name)
        push_cache(cache.path, place, pack_bytes=pack_bytes)
        found[f"push, {name}"] = Counter(place.requests)
        place.requests.clear()
        pull_cache(place, folder / f"{name}.zarr")
        found[f"pull, {name}"] = Counter(place.requests)
        place.requests.clear()
        remote = cache_at(place, shelf=Shelf(folder / f"{name} shelf"))
        for entry_id in remote.ids():
            remote.read(entry_id, spec.arrays[0])
        found[f"read, {name}"] = Counter(place.requests)
    return found


# The sums ---------------------------------------------------------------------------------------


def sizes(spec: CacheSpec) -> list[dict[str, Any]]:
    """An entry of a window, by profile; exact but for timestamps and names."""
    found = []
    for name, (dtype, arrays) in PROFILES.items():
        way = replace(spec, stored_dtype=dtype, arrays=_of(spec, arrays))
        size = entry_size(way, WINDOW_FRAMES)
        found.append(
            {
                "profile": name,
                "bytes a frame": sum(frame_cost(way, array) for array in way.arrays),
                "bytes a minute": size.num_bytes,
                "objects": size.num_objects,
            }
        )
    return found


def _of(spec: CacheSpec, arrays: Sequence[str]) -> tuple[str, ...]:
    """Those arrays; of a small backbone the pooled one is smaller too."""
    side = min(7, *(max(1, s - 1) for s in spec.grid))
    return tuple(f"grid{side}" if array == "grid7" else array for array in arrays)


def extraction(
    dataset: Dataset, costs: Costs, spec: CacheSpec, *, tflops: float, gpus: int, cores: int
) -> dict[str, Any]:
    """What so many GPUs of that rate with so many CPU cores each take; see docs/scaling.md."""
    frames = dataset.seconds * FPS
    rate = tflops * 1e3 / costs.gflops  # frames a second
    stored = frames * sum(frame_cost(spec, array) for array in spec.arrays)
    gpu_hours = frames / rate / 3600
    core_hours = (dataset.seconds * costs.read_seconds + stored * costs.write_seconds / 1e6) / 3600
    hours = {"GPU": gpu_hours / gpus, "CPU cores": core_hours / (gpus * cores)}
    limit = max(hours, key=hours.__getitem__)
    return {
        "dataset": dataset.name,
        "TFLOP/s": tflops,
        "GPUs": gpus,
        "GPU-hours": gpu_hours,
        "core-hours": core_hours,
        "cores a GPU": core_hours / gpu_hours,
        "TB": stored / 1e12,
        "hours": hours[limit],
        "limit": limit,
        "GB/s written": stored / 1e9 / (hours[limit] * 3600),
    }


def storage(dataset: Dataset, size: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a dataset in one profile, and objects, which are also the requests that store it:
    loose, or in packs with a record for each video."""
    num_bytes = dataset.seconds * FPS * size["bytes a frame"]
    return {
        "dataset": dataset.name,
        "profile": size["profile"],
        "TB": num_bytes / 1e12,
        "objects, loose": dataset.videos * size["objects"],
        "objects, packed": dataset.videos + math.ceil(num_bytes / PACK_BYTES),
    }


def training(spec: CacheSpec, *, clips_per_second: Sequence[float]) -> list[dict[str, Any]]:
    """Bytes of a window by view and stored type, and what so many windows a second ask for."""
    found = []
    for name, (dtype, arrays) in PROFILES.items():
        way = replace(spec, stored_dtype=dtype, arrays=_of(spec, arrays))
        array = way.arrays[0] if way.arrays[0] != "prefix" else way.arrays[1]
        window = WINDOW_FRAMES * frame_cost(way, array)
        rates = {f"GB/s at {rate:g} windows/s": rate * window / 1e9 for rate in clips_per_second}
        found.append({"profile": name, "array": array, "MB a window": window / 1e6, **rates})
    return found


# ------------------------------------------------------------------------------------------------


def generated(folder: Path, *, seconds: int) -> list[Path]:
    paths = [folder / f"gop{gop}.mp4" for gop in GOPS]
    for path, gop in zip(paths, GOPS, strict=True):
        reading_benchmark.write_clip(path, gop=gop, seconds=seconds)
    return paths


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    backbone = load_backbone(asked.backbone, weights="random:0", device=asked.device)
    spec = cache_spec(backbone, sampling=Sampling(fps=FPS), reader="pyav")
    if asked.videos:
        paths = [source.path for source in resolve_sources([asked.videos])]
    else:
        paths = generated(folder, seconds=asked.seconds)
    write_rate, write_seconds, read_rate = measure_store(folder, spec, videos=asked.entries)
    encode_seconds, encode_cpu = measure_encoding(
        backbone, frames=asked.frames, repeats=asked.repeats
    )
    costs = Costs(
        read_seconds=measure_reading(paths, backbone),
        encode_seconds=encode_seconds,
        encode_cpu=encode_cpu,
        gflops=count_gflops(asked.backbone),
        write_rate=write_rate,
        write_seconds=write_seconds,
        read_rate=read_rate,
    )
    requests = count_requests(folder, cache_spec_of_requests(spec))
    given = [float(each) for each in asked.gpu_tflops.split(",")]
    here = costs.gflops / costs.encode_seconds / 1e3
    rates = given if asked.device == "cpu" else [here]
    entry_sizes = sizes(spec)
    return {
        "machine": describe_machine(("torch", "timm", "av", "numpy")),
        "device": asked.device,
        "costs": {**asdict(costs), "tflops": here},
        "entry of a minute": entry_sizes,
        "requests a video": requests,
        "extraction": [
            extraction(each, costs, spec, tflops=rate, gpus=gpus, cores=asked.cores)
            for each in DATASETS
            for rate in rates
            for gpus in map(int, asked.gpus.split(","))
        ],
        "storage": [storage(d, size) for d in DATASETS for size in entry_sizes],
        "training": training(spec, clips_per_second=(1, 30, 300)),
    }


def cache_spec_of_requests(spec: CacheSpec) -> CacheSpec:
    """Requests do not depend on the width, so few bytes are enough to count them."""
    return replace(spec, dim=8, grid=(2, 2), arrays=("patch", "prefix"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--videos", help="a folder of clips; default: two that are generated")
    parser.add_argument("--seconds", type=int, default=60, help="of a generated clip")
    parser.add_argument("--backbone", default="vit_large_patch16_224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=8, help="of a batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--entries", type=int, default=8, help="written and read, a minute each")
    parser.add_argument("--gpu-tflops", default="100,350", help="that a GPU is taken to sustain")
    parser.add_argument("--gpus", default="1,8,64")
    parser.add_argument("--cores", type=int, default=16, help="CPU cores beside each GPU")
    parser.add_argument("--folder", type=Path, help="where files are made; default a temporary one")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="vis4mer-costs-", dir=asked.folder) as name:
        found = measure(asked, Path(name))
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    for title in ("machine", "costs", "requests a video"):
        print(f"{title}: {found[title]}")
    for title in ("entry of a minute", "extraction", "storage", "training"):
        print_table(title, found[title])


def print_table(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table in Markdown."""
    print(f"\n{title}\n\n| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}")
    for row in rows:
        print(f"| {' | '.join(_shown(value) for value in row.values())} |")


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
