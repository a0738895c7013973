"""Whether a long video needs more memory than a short one.

    python benchmarks/memory.py LONG_VIDEO [--backbone vit_tiny_patch16_224] [--json]

The video, and its own first minute (cut without encoding anew), are extracted in fresh
processes, in turns, and the peaks of resident memory are compared. The whole may need more by its
sampled frames of one batch, as they are decoded, and by nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import av
from common import describe_machine

BATCH_SIZE = 8
SHORT_SECONDS = 60
PACKAGES = ("av", "torch", "timm", "numpy", "zarr")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def extract(video: str, backbone_name: str) -> dict[str, float]:
    """Peaks of one extraction in this process, and what one batch of its frames weighs."""
    from vis4mer.extract.backbones.loading import cache_spec, load_backbone
    from vis4mer.extract.readers import get_reader
    from vis4mer.extract.sampling import Every
    from vis4mer.extract.sources import resolve_sources
    from vis4mer.extract.stages.pipeline import fill_cache
    from vis4mer.store.cache import create_cache

    backbone = load_backbone(backbone_name, weights="random:0", device="cpu")
    reader = get_reader("pyav")
    loaded = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        cache = create_cache(Path(folder) / "c.zarr", cache_spec(backbone))
        summary = fill_cache(
            resolve_sources([video]), cache, backbone, reader, batch_size=BATCH_SIZE
        )
    with reader.open(Path(video), moments=Every(fps=1)) as stream:
        frame_bytes = stream.info.width * stream.info.height * 3
    return {
        "frames": summary.frames,
        "loaded_mb": loaded,
        "peak_mb": peak_megabytes(),
        "batch_mb": BATCH_SIZE * frame_bytes / 2**20,
    }


def cut(video: str, short: str, *, seconds: float) -> None:
    """Copy the packets of a video's beginning."""
    with av.open(video) as source, av.open(short, "w") as target:
        stream = source.streams.best("video")
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is None or packet.dts * stream.time_base > seconds:
                break
            packet.stream = copied
            target.mux(packet)


def measure(video: str, backbone: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", video, "--backbone", backbone]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(extract(options.video, options.backbone)))
        return
    long = options.video
    with tempfile.TemporaryDirectory() as folder:
        short = str(Path(folder) / f"first{Path(long).suffix}")
        cut(long, short, seconds=SHORT_SECONDS)
        runs = [
            [measure(video, options.backbone) for video in (long, short)]
            for _ in range(options.repeats)
        ]
    medians = [
        {key: statistics.median(run[i][key] for run in runs) for key in runs[0][i]} for i in (0, 1)
    ]
    rise = medians[0]["peak_mb"] - medians[1]["peak_mb"]
    if options.json:
        named = dict(zip(("long", "short"), medians, strict=True))
        print(
            json.dumps({"machine": describe_machine(PACKAGES), **named, "rise_mb": rise}, indent=2)
        )
        return
    print(f"{options.backbone}, batches of {BATCH_SIZE}, median of {options.repeats}")
    for name, found in zip((long, short), medians, strict=True):
        print(
            f"{Path(name).name}: {found['frames']:.0f} frames, peak {found['peak_mb']:.0f} MB "
            f"({found['loaded_mb']:.0f} MB with the backbone loaded)"
        )
    print(f"rise {rise:.0f} MB, goal ≤ {medians[0]['batch_mb']:.0f} MB, its frames of one batch")


if __name__ == "__main__":
    main()
