"""One training step of ViS4mer with AdamW: time and peak memory of a process of its own.

    python benchmarks/train_step.py            official; batch 1, 8, and 1 of 8 times the frames
    python benchmarks/train_step.py --batches 8 --longer 1 --variant paper

The cost a token is compared with that of batch 1 at the shorter length: CPU seconds, and memory
beyond what the process held before its first step.

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
from vis4mer.commands.shared import ask_for_large_pages
from vis4mer.decode.config import OptimizerConfig
from vis4mer.decode.data.batch import TokenBatch
from vis4mer.decode.decoders import build_decoder
from vis4mer.decode.training.optim import build_optimizer


@dataclass(frozen=True)
class Row:
    """One measurement. cpu_seconds: of all threads, a step; less shaken by a busy machine."""

    precision: str
    batch: int
    tokens: int
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
    options: dict[str, object] = {"variant": arguments.variant, "mixer": arguments.mixer}
    options["recompute"] = arguments.recompute
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
        tokens=arguments.frames * arguments.grid**2,
        seconds=statistics.median(wall[2:]),
        cpu_seconds=statistics.median(cpu[2:]),
        peak_megabytes=resident_peak_megabytes(),
        megabytes_before=before,
    )


def per_token(rows: list[Row]) -> list[dict[str, float | None]]:
    """Of each row: microseconds of CPU and bytes a token, and both over those of the first row of
    its precision."""
    found: list[dict[str, float | None]] = []
    first: dict[str, dict[str, float]] = {}
    for row in rows:
        tokens = row.batch * row.tokens
        costs = {
            "cpu_us_a_token": 1e6 * row.cpu_seconds / tokens,
            "bytes_a_token": 2**20 * (row.peak_megabytes - row.megabytes_before) / tokens,
        }
        start = first.setdefault(row.precision, costs)
        ratios = {
            f"{name}_ratio": cost / start[name] if start[name] else None
            for name, cost in costs.items()
        }
        found.append({**costs, **ratios})
    return found


def parsed(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--variant", choices=("official", "paper"), default="official")
    parser.add_argument("--mixer", default="s4")
    parser.add_argument("--convolution", choices=("blocks", "fft"))
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--longer", type=int, default=8, help="also batch 1 of so many times frames"
    )
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--grid", type=int, default=14)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bfloat16", "float32", "both"), default="both")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batch", type=int, help="with --in-process: the one to measure")
    parser.add_argument("--in-process", action="store_true", help="measure here, print JSON")
    return parser.parse_args(argv)


def measured_apart(given: list[str], precision: str, batch: int, frames: int) -> Row:
    """In a process of its own, with the arguments given here."""
    own = ["--in-process", "--precision", precision, "--batch", str(batch), "--frames", str(frames)]
    command = [sys.executable, __file__, *given, *own]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Row(**json.loads(output))


def main(argv: list[str] | None = None) -> None:
    given = sys.argv[1:] if argv is None else argv
    arguments = parsed(given)
    if arguments.in_process:
        json.dump(asdict(measure(arguments, arguments.precision)), sys.stdout)
        return
    ask_for_large_pages()  # as the command does
    sizes = [(batch, arguments.frames) for batch in arguments.batches]
    if arguments.longer > 1:
        sizes.append((1, arguments.longer * arguments.frames))
    both = arguments.precision == "both"
    rows = [
        measured_apart(given, precision, *size)
        for precision in (("bfloat16", "float32") if both else (arguments.precision,))
        for size in sizes
    ]
    about = {
        "decoder": f"{arguments.variant}, {arguments.mixer}, D = {arguments.dim}",
        "machine": f"{platform.processor() or platform.machine()}, {arguments.threads} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }
    costs = per_token(rows)
    if arguments.json:
        found = [asdict(row) | cost for row, cost in zip(rows, costs, strict=True)]
        json.dump({**about, "rows": found}, sys.stdout, indent=2)
        return
    print("; ".join(about.values()), end="\n\n")
    print(
        f"{'precision':<12}{'batch':>6}{'tokens':>8}{'s/step':>9}{'CPU s':>8}{'peak MB':>9}"
        f"{'before':>8}{'CPU/token':>11}{'MB/token':>10}"
    )
    for row, cost in zip(rows, costs, strict=True):
        ratios = "".join(
            f"{'-' if ratio is None else format(ratio, '.2f'):>{width}}"
            for ratio, width in (
                (cost["cpu_us_a_token_ratio"], 11),
                (cost["bytes_a_token_ratio"], 10),
            )
        )
        print(
            f"{row.precision:<12}{row.batch:>6}{row.tokens:>8}{row.seconds:>9.2f}"
            f"{row.cpu_seconds:>8.2f}{row.peak_megabytes:>9.0f}{row.megabytes_before:>8.0f}{ratios}"
        )


if __name__ == "__main__":
    main()
