"""One training step of ViS4mer with AdamW: time and peak memory of a process of its own.

    python benchmarks/train_step.py                           official, batch 1, both precisions
    python benchmarks/train_step.py --batch 8 --variant paper

Every row is measured in a fresh process: seconds are the median over steps after the first two,
the peak is the process's largest resident size, with Python, torch and the tokens in it. Tokens
are random float16, as from a cache.

What `vis4mer bench` does not say: the memory of the whole process, that of Python and torch
included, from tokens in the type in which a cache holds them. It is what a machine must have to
train at all, and what the released implementation was measured by. To compare decoders, or token
views, use the bench: its figures are of the decoder alone, above what an idle process holds.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import cross_entropy
from vis4mer.decode.config import OptimizerConfig
from vis4mer.decode.data.batch import TokenBatch
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.training.optim import build_optimizer


@dataclass(frozen=True)
class Row:
    """One measurement. cpu_seconds: of all threads, a step; less shaken by a busy machine."""

    precision: str
    batch: int
    seconds: float
    cpu_seconds: float
    peak_megabytes: float
    megabytes_before: float


def resident_peak_megabytes() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def random_batch(arguments: argparse.Namespace) -> TokenBatch:
    side = arguments.grid
    shape = (arguments.batch, arguments.frames, side, side, arguments.dim)
    patch = torch.empty(shape, dtype=torch.float16)
    for window in patch:
        for frame in window:  # one at a time: the float32 draw is not to be part of the peak
            frame.copy_(torch.randn(frame.shape))
    mask = torch.ones(shape[:2], dtype=torch.bool)
    return TokenBatch(patch=patch, prefix=None, mask=mask, pts_seconds=mask.double())


def measure(arguments: argparse.Namespace, precision: str) -> Row:
    """In this process."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    batch = random_batch(arguments)
    options = {"variant": arguments.variant, "mixer": arguments.mixer}
    if arguments.convolution:
        options["convolution"] = arguments.convolution
    model = build_decoder("vis4mer", shape=batch.shape, num_outputs=4, options=options)
    optimizer = build_optimizer(model, OptimizerConfig())
    target = torch.zeros(arguments.batch, dtype=torch.long)
    before, wall, cpu = resident_peak_megabytes(), [], []
    for _ in range(2 + arguments.steps):
        start, cpu_start = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = cross_entropy(model(batch).float(), target)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    return Row(
        precision=precision,
        batch=arguments.batch,
        seconds=statistics.median(wall[2:]),
        cpu_seconds=statistics.median(cpu[2:]),
        peak_megabytes=resident_peak_megabytes(),
        megabytes_before=before,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", choices=("official", "paper"), default="official")
    parser.add_argument("--mixer", default="s4")
    parser.add_argument("--convolution", choices=("blocks", "fft"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--grid", type=int, default=14)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bfloat16", "float32", "both"), default="both")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--in-process", action="store_true", help="measure here, print JSON")
    arguments = parser.parse_args()
    if arguments.in_process:
        json.dump(asdict(measure(arguments, arguments.precision)), sys.stdout)
        return
    both = arguments.precision == "both"
    rows = []
    for precision in ("bfloat16", "float32") if both else (arguments.precision,):
        command = [sys.executable, *sys.argv, "--in-process", "--precision", precision]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(Row(**json.loads(output)))
    tokens = arguments.frames * arguments.grid**2
    about = {
        "decoder": f"{arguments.variant}, {arguments.mixer}, D = {arguments.dim}, L = {tokens}",
        "machine": f"{platform.processor() or platform.machine()}, {arguments.threads} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
    if arguments.json:
        json.dump({**about, "rows": [asdict(row) for row in rows]}, sys.stdout, indent=2)
        return
    print("; ".join(about.values()), end="\n\n")
    print(
        f"{'precision':<12}{'batch':>6}{'s/step':>10}{'CPU s/step':>12}{'peak MB':>10}{'before':>9}"
    )
    for row in rows:
        print(
            f"{row.precision:<12}{row.batch:>6}{row.seconds:>10.2f}{row.cpu_seconds:>12.2f}"
            f"{row.peak_megabytes:>10.0f}{row.megabytes_before:>9.0f}"
        )


if __name__ == "__main__":
    main()
