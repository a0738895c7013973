"""How much of a device's matrix rate a backbone reaches: ViT-L/16 at 224 in bf16, by default.

    python benchmarks/gpu_extract.py [--device cuda] [--backbone NAME] [--batch-size 32] [--json]
    python benchmarks/gpu_extract.py --device cpu --backbone vit_tiny_patch16_224@32 --frames 16

matrix rate: a large product in bf16, the fastest of several rounds, measured on the same device.
kernels: the backbone on frames that lie on the device already; its tokens stay there. stage: the
backbone stage of a run as it is, from decoded frames in host memory (at the backbone's size, as
reading hands them on) to tokens in host memory. Both plain and compiled. share: the floating-point
operations of the products and the attention, by count, against the matrix rate; the goal is 0.55
for the stage on a GPU. Weights are random, which takes as long. Reading and writing are not in it:
`overlap.py` and `store_reads.py` measure those.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import describe_machine
from torch import nn
from vis4mer.extract.backbones.compiling import compile_backbone
from vis4mer.extract.backbones.loading import Backbone, load_backbone
from vis4mer.extract.sources import VideoSource
from vis4mer.extract.stages.buffers import OrderedBuffer, WeightedBuffer
from vis4mer.extract.stages.encoding import BackboneStage
from vis4mer.extract.stages.items import End, FramePart, TokenPart, VideoJob
from vis4mer.extract.stages.progress import Tally
from vis4mer.extract.stages.stopping import StopSignal
from vis4mer.store.records import SourceRecord

PACKAGES = ("torch", "timm", "numpy")
BACKBONE = "vit_large_patch16_224.augreg_in21k"
GOAL = 0.55
PART_FRAMES = 12  # no divisor of a batch: parts of several videos meet in one


@dataclass(frozen=True)
class Row:
    """One way to run the backbone. reason: why there are no figures."""

    way: str
    compiled: bool
    frames_per_second: float | None = None
    tflops: float | None = None
    share: float | None = None
    reason: str = ""


def vit_flops(module: nn.Module) -> int:
    """Floating-point operations of a frame in a timm ViT: two for each multiply-add of the patch
    embedding, the linear layers and the two products of attention."""
    model = module.model
    tokens, patches, dim = model.pos_embed.shape[1], model.patch_embed.num_patches, model.embed_dim
    height, width = model.patch_embed.patch_size
    total = 2 * patches * 3 * height * width * dim
    for block in model.blocks:
        hidden = block.mlp.fc1.out_features
        total += 2 * tokens * (4 * dim * dim + 2 * dim * hidden)  # q k v, projection; MLP
        total += 2 * 2 * tokens * tokens * dim  # scores, values
    return total


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    wait_for(device)
    begun = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - begun


def matrix_tflops(device: torch.device, *, size: int, rounds: int, products: int) -> float:
    """The rate of (size, size) @ (size, size) in bf16, the fastest round."""
    a = torch.randn(size, size, device=device).to(torch.bfloat16)
    b = torch.randn(size, size, device=device).to(torch.bfloat16)

    def multiply() -> None:
        for _ in range(products):
            torch.mm(a, b)

    multiply()
    best = min(seconds_of(multiply, device) for _ in range(rounds))
    return 2 * size**3 * products / best / 1e12


def kernels_seconds(backbone: Backbone, *, batch: int, frames: int) -> float:
    """Seconds for so many frames, whole batches, that lie on the device."""
    shape = (batch, *backbone.preprocess.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(backbone.device)
    pixels = pixels.permute(0, 3, 1, 2)  # B 3 H W, channels-last as frames are

    def encode() -> None:
        for _ in range(frames // batch):
            backbone.encode(pixels)

    encode()
    return seconds_of(encode, backbone.device)


def stage_seconds(backbone: Backbone, *, batch: int, frames: int, threads: int) -> float:
    """Seconds of the backbone stage for so many frames, whole batches."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (PART_FRAMES, *backbone.preprocess.size, 3), dtype=np.uint8)
    pixels = torch.from_numpy(noise).permute(0, 3, 1, 2)  # T 3 H W
    source = SourceRecord(name="v", size=1, mtime_ns=1, sha256="0" * 64)
    queue: WeightedBuffer[FramePart | End] = WeightedBuffer(2 * batch * threads)
    tokens: OrderedBuffer[list[TokenPart | End]] = OrderedBuffer(2 * threads)
    stage = BackboneStage(
        backbone,
        batch_size=batch,
        stored_dtype="float16",
        frames=queue,
        tokens=tokens,
        stop=StopSignal(),
        tally=Tally(num_videos=1, threads={"reading": 1, "backbone": threads, "writing": 1}),
    )

    def feed() -> None:
        for first in range(0, frames, PART_FRAMES):
            count = min(PART_FRAMES, frames - first)
            job = VideoJob(VideoSource(id=str(first), path=Path("v"), name="v"), source)
            times = np.arange(count, dtype=np.float64)
            queue.put(FramePart(job, pixels[:count], times), weight=count)
        queue.close()

    def run() -> None:
        others = [threading.Thread(target=work) for work in (feed, *[stage.run] * threads)]
        for other in others:
            other.start()
        received = 0
        while received < frames:
            parts = tokens.get()
            assert parts is not None
            received += sum(len(part.pts_seconds) for part in parts)
        for other in others:
            other.join()

    return seconds_of(run, backbone.device)


def measure(options: argparse.Namespace) -> dict[str, object]:
    backbone = load_backbone(
        options.backbone, weights="random:0", device=options.device, compute_dtype="bfloat16"
    )
    device, batch = backbone.device, options.batch_size
    frames = max(1, options.frames // batch) * batch
    threads = 1 if device.type == "cpu" else 2
    matrix = matrix_tflops(device, size=options.size, rounds=5, products=4)
    flops = vit_flops(backbone.module)
    ways: list[tuple[bool, Backbone | None, str]] = [(False, backbone, "")]
    if options.compile:
        compiled, note = compile_backbone(backbone, batch_frames=batch)
        ways.append((True, compiled if note is None else None, note or ""))
    rows = []
    for is_compiled, chosen, reason in ways:
        for way in ("kernels", "stage"):
            if chosen is None:
                rows.append(Row(way, is_compiled, reason=reason))
                continue
            if way == "kernels":
                taken = [kernels_seconds(chosen, batch=batch, frames=frames) for _ in range(3)]
            else:
                taken = [
                    stage_seconds(chosen, batch=batch, frames=frames, threads=threads)
                    for _ in range(3)
                ]
            rate = frames / min(taken)
            tflops = rate * flops / 1e12
            rows.append(Row(way, is_compiled, rate, tflops, tflops / matrix))
    return {
        "machine": describe_machine(PACKAGES),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "backbone": backbone.name,
        "batch_size": batch,
        "frames": frames,
        "gflops_per_frame": flops / 1e9,
        "matrix_tflops": matrix,
        "rows": [asdict(row) for row in rows],
        "goal": goal_met(rows, on_gpu=device.type == "cuda"),
    }


def goal_met(rows: Sequence[Row], *, on_gpu: bool) -> str:
    """met, missed, or not measured: the goal is about a GPU."""
    shares = [row.share for row in rows if row.way == "stage" and row.share is not None]
    if not on_gpu or not shares:
        return "not measured"
    return "met" if max(shares) >= GOAL else "missed"


def report(found: dict[str, object]) -> None:
    print(f"{found['machine']}\n{found['device']}: {found['matrix_tflops']:.2f} TFLOP/s in bf16")
    print(
        f"{found['backbone']}, {found['gflops_per_frame']:.1f} GFLOP a frame, batches of "
        f"{found['batch_size']}, {found['frames']} frames"
    )
    print(f"{'':22} {'frames/s':>9} {'TFLOP/s':>9} {'share':>7}")
    for row in found["rows"]:
        name = f"{row['way']}{', compiled' if row['compiled'] else ''}"
        if row["reason"]:
            print(f"{name:22} {row['reason']}")
            continue
        print(f"{name:22} {row['frames_per_second']:9.1f} {row['tflops']:9.2f} {row['share']:7.1%}")
    print(f"stage on a GPU at {GOAL:.0%} of the matrix rate: {found['goal']}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default=BACKBONE, help="one of timm's plain ViTs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--frames", type=int, default=4096)
    parser.add_argument("--size", type=int, default=8192, help="of the large product")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args(arguments)
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        report(found)


if __name__ == "__main__":
    main()
