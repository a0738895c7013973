"""Training steps from tokens that are on the GPU already: speed and memory, against tokens.

    python benchmarks/gpu_train.py                     a GPU: ViS4mer and LST, 60 to 11,760 tokens
    python benchmarks/gpu_train.py --frames 4 --grids 1,2 --dim 64 --batch 2      anywhere, small

`--videos` minutes of random float16 tokens lie on the device, as `train-decoder --preload gpu` has
them; each step takes a batch of them, the whole of it being the one of `train-decoder`. Every row
is a decoder at a number of tokens: seconds are the median of `--rounds` rounds of `--steps` steps,
memory is what training takes at most beyond those tokens. `graph` rows are forward and backward
pass as a CUDA graph, which is what few tokens wait for otherwise: launches, one by one.

The paper measured its table on its authors' GPU; only ratios carry over. What a machine cannot
measure is a row with the reason, and goals that need a GPU are `not measured` without one.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common import describe_machine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from vis4mer.decode.bench.child import is_out_of_memory
from vis4mer.decode.bench.memory import free_bytes, least_bytes, memory_meter
from vis4mer.decode.bench.subjects import BenchSubject, parse_subjects
from vis4mer.decode.config import DecoderConfig, OptimizerConfig, TrainConfig
from vis4mer.decode.data.batch import TokenBatch, TokenShape
from vis4mer.decode.data.loader import LabelledBatch
from vis4mer.decode.device import Compute
from vis4mer.decode.report.published import published_cost
from vis4mer.decode.training.learner import Learner

OFFICIAL = "vis4mer:variant=official"
SUBJECTS = (
    f"{OFFICIAL},{OFFICIAL}:convolution=plain,{OFFICIAL}:convolution=fused,"
    "lst:attention=fused,lst:attention=materialised"
)
NUM_OUTPUTS = 4
WARM_UP = 3
GOAL_CLIPS, GOAL_GIGABYTES = 300, 5
GOAL_TOKENS, GOAL_BATCH, GOAL_DIM = 11_760, 16, 1024
FEW_TOKENS = 1_500
"""Up to so many tokens in a window a CUDA graph is measured too."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """mode: "step", all of a training step, or "graph". reason: why there are no figures.

    bytes: at most, beyond the tokens. notes: what was warned of on the way.
    """

    decoder: str
    num_tokens: int
    mode: str
    seconds: float | None = None
    clips_per_second: float | None = None
    bytes: int | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()
    paper_clips_per_second: float | None = None
    paper_gigabytes: float | None = None


class Resident:
    """Videos of random tokens on the device, (V, T, h, w, D) float16, and batches of them."""

    def __init__(
        self, shape: TokenShape, *, num_videos: int, batch_size: int, device: torch.device
    ) -> None:
        assert shape.grid is not None
        sizes = (num_videos, shape.frames, *shape.grid, shape.dim)
        self.patch = torch.empty(sizes, dtype=torch.float16, device=device)
        for video in self.patch:
            video.copy_(torch.randn(video.shape, device=device))
        self.shape = shape
        self._mask = torch.ones(batch_size, shape.frames, dtype=torch.bool, device=device)
        self._times = self._mask.double().cumsum(dim=1) - 1  # B T
        self._labels = torch.arange(num_videos, device=device) % NUM_OUTPUTS  # V
        self._random = random.Random(0)

    def rows(self) -> Tensor:
        """Which videos are next, (B,), chosen on the host and sent without waiting."""
        count = len(self._mask)
        rows = torch.tensor([self._random.randrange(len(self.patch)) for _ in range(count)])
        if self.patch.is_cuda:
            rows = rows.pin_memory()
        return rows.to(self.patch.device, non_blocking=True)

    def labels(self, rows: Tensor) -> Tensor:
        return self._labels[rows]

    def batch(self) -> LabelledBatch:
        rows = self.rows()
        tokens = self.around(self.patch[rows])
        return LabelledBatch(tokens=tokens, labels=self.labels(rows))

    def around(self, patch: Tensor) -> TokenBatch:
        """Full windows of such patch tokens (B, T, h, w, D)."""
        return TokenBatch(
            patch=patch,
            prefix=None,
            mask=self._mask,
            pts_seconds=self._times,
            lengths=(self.shape.frames,) * len(self._mask),
        )


def make_learner(
    subject: BenchSubject, shape: TokenShape, *, batch_size: int, compute: Compute
) -> Learner:
    config = TrainConfig(
        task="bench/gpu",
        decoder=DecoderConfig(name=subject.name, options=subject.options),
        optimizer=OptimizerConfig(schedule="constant"),
        batch_size=batch_size,
    )
    return Learner(
        config,
        shape=shape,
        kind="classification",
        num_outputs=NUM_OUTPUTS,
        steps_per_epoch=1,
        compute=compute,
    )


# CUDA graphs ------------------------------------------------------------------------------------


class OfPatches(nn.Module):
    """A decoder whose only input is a tensor, which is what a graph can be made of."""

    def __init__(self, model: nn.Module, resident: Resident, compute: Compute) -> None:
        super().__init__()
        self.model = model
        self._around = resident.around
        self._compute = compute

    def forward(self, patch: Tensor) -> Tensor:
        enabled = self._compute.dtype != torch.float32
        # A cast that autocast remembers would belong to one replay of the graph.
        with torch.autocast(
            self._compute.device.type, self._compute.dtype, enabled=enabled, cache_enabled=False
        ):
            outputs: Tensor = self.model(self._around(patch))  # B n_out
        return outputs


def graph_step(learner: Learner, resident: Resident, compute: Compute) -> Callable[[], object]:
    """A training step whose forward and backward pass are one CUDA graph each."""
    learner.model.train()
    module = OfPatches(learner.model, resident, compute)
    sample = resident.patch[resident.rows()]
    for _ in range(WARM_UP):  # whatever is tried and compiled at first use, before the capture
        torch.autograd.backward(module(sample).float().sum())
    learner.optimizer.zero_grad(set_to_none=True)
    graphed: Callable[[Tensor], Tensor] = torch.cuda.make_graphed_callables(module, (sample,))

    def step() -> None:
        rows = resident.rows()
        loss = cross_entropy(graphed(resident.patch[rows]).float(), resident.labels(rows))
        learner.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        learner.optimizer.step()

    return step


# Measuring --------------------------------------------------------------------------------------


def measure(
    subject: BenchSubject,
    resident: Resident,
    arguments: argparse.Namespace,
    compute: Compute,
    *,
    mode: str,
) -> Row:
    """One row; what cannot be measured says why."""
    shape = resident.shape
    paper = published_cost(subject.name, shape.num_tokens)
    about: dict[str, Any] = {
        "decoder": subject.label,
        "num_tokens": shape.num_tokens,
        "mode": mode,
        "paper_clips_per_second": paper and paper.samples_per_second,
        "paper_gigabytes": paper and paper.gigabytes,
    }
    if mode == "graph" and compute.device.type != "cuda":
        return Row(**about, reason="not measured: a CUDA graph needs a GPU")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            figures = _figures(subject, resident, arguments, compute, mode=mode)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return Row(**about, reason="out of memory")
        if mode != "graph":
            raise
        return Row(**about, reason=f"failed: {str(error).partition(chr(10))[0]}")
    finally:
        gc.collect()
        if compute.device.type == "cuda":
            torch.cuda.empty_cache()
    notes = tuple(str(each.message) for each in caught if each.category is RuntimeWarning)
    return Row(**about, **figures, notes=notes)


def _figures(
    subject: BenchSubject,
    resident: Resident,
    arguments: argparse.Namespace,
    compute: Compute,
    *,
    mode: str,
) -> dict[str, Any]:
    memory = memory_meter(compute.device)  # its baseline: the tokens are there, nothing else
    batch_size = arguments.batch
    learner = make_learner(subject, resident.shape, batch_size=batch_size, compute=compute)
    least = least_bytes(learner.model, batch_size=batch_size, itemsize=compute.dtype.itemsize)[1]
    free = free_on(compute.device)
    if free is not None and least > free:
        reason = f"skipped: needs {least / 1e9:.1f} GB at the least, {free / 1e9:.1f} are free"
        return {"reason": reason}
    if mode == "graph":
        step = graph_step(learner, resident, compute)
    else:

        def step() -> None:
            learner.step(resident.batch())

    for _ in range(WARM_UP):
        step()
    memory.restart()  # trials and compilers of the first steps are not what training takes
    seconds = median_seconds(
        step, steps=arguments.steps, rounds=arguments.rounds, device=compute.device
    )
    return {
        "seconds": seconds,
        "clips_per_second": batch_size / seconds,
        "bytes": memory.peak().bytes,
    }


def median_seconds(
    step: Callable[[], object], *, steps: int, rounds: int, device: torch.device
) -> float:
    """Of one step: the median over rounds, each of which waits for the device at its ends alone."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        times.append((time.perf_counter() - start) / steps)
    return statistics.median(times)


def free_on(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_bytes()


def run(arguments: argparse.Namespace) -> list[Row]:
    compute = Compute.of(device=arguments.device, precision=arguments.precision)
    subjects = parse_subjects(arguments.decoders)
    rows = []
    for grid in arguments.grids:
        shape = TokenShape(
            frames=arguments.frames, grid=(grid, grid), num_prefix=0, dim=arguments.dim
        )
        torch.manual_seed(0)
        resident = Resident(
            shape,
            num_videos=arguments.videos,
            batch_size=arguments.batch,
            device=compute.device,
        )
        for subject in subjects:
            modes = ["step", "graph"] if shape.num_tokens <= FEW_TOKENS else ["step"]
            for mode in modes:
                print(f"{subject.label}, {shape.num_tokens} tokens, {mode}", file=sys.stderr)
                rows.append(measure(subject, resident, arguments, compute, mode=mode))
        del resident
    return rows


# Showing ----------------------------------------------------------------------------------------


def goals(rows: Sequence[Row], arguments: argparse.Namespace, *, on_gpu: bool) -> dict[str, str]:
    """What was to be reached, and what was found; `not measured` at another size or on a CPU."""
    at_size = on_gpu and (arguments.batch, arguments.dim) == (GOAL_BATCH, GOAL_DIM)
    found = next(
        (
            row
            for row in rows
            if (row.decoder, row.num_tokens, row.mode) == (OFFICIAL, GOAL_TOKENS, "step")
        ),
        None,
    )
    speed = memory = "not measured"
    if at_size and found is not None and found.seconds is not None:
        speed, memory = f"{found.clips_per_second:.0f}", f"{(found.bytes or 0) / 1e9:.1f} GB"
    size = f"official, {GOAL_TOKENS:,} tokens, batch {GOAL_BATCH}, D = {GOAL_DIM}, on a GPU"
    return {
        f"{size}: at least {GOAL_CLIPS} clips/s": speed,
        f"{size}: at most {GOAL_GIGABYTES} GB beyond the data": memory,
    }


def print_rows(rows: Sequence[Row]) -> None:
    print(
        f"{'decoder':<46}{'tokens':>7}  {'mode':<6}{'s/step':>9}{'clips/s':>9}{'GB':>7}"
        f"{'paper':>8}{'GB':>7}"
    )
    for row in rows:
        start = f"{row.decoder:<46}{row.num_tokens:>7}  {row.mode:<6}"
        if row.seconds is None or row.bytes is None:
            print(f"{start}  {row.reason}")
            continue
        print(
            f"{start}{row.seconds:>9.4f}{row.clips_per_second:>9.1f}{row.bytes / 1e9:>7.2f}"
            f"{_cell(row.paper_clips_per_second):>8}{_cell(row.paper_gigabytes):>7}"
        )
        for note in row.notes:
            print(f"    {note}")


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decoders", default=SUBJECTS, help="as for `vis4mer bench`")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument(
        "--grids",
        type=lambda text: [int(side) for side in text.split(",")],
        default=[1, 5, 7, 14],
        help="sides of the frames' grids (default: 1,5,7,14)",
    )
    parser.add_argument("--dim", type=int, default=GOAL_DIM)
    parser.add_argument("--batch", type=int, default=GOAL_BATCH)
    parser.add_argument("--videos", type=int, default=32, help="how many lie on the device")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(given)
    rows = run(arguments)
    compute = Compute.of(device=arguments.device, precision=arguments.precision)
    on_gpu = compute.device.type == "cuda"
    about = {
        **describe_machine(["torch", "triton"]),
        "device": torch.cuda.get_device_name(compute.device) if on_gpu else "cpu",
        "precision": compute.precision,
        "batch": arguments.batch,
        "dim": arguments.dim,
        "videos": arguments.videos,
    }
    reached = goals(rows, arguments, on_gpu=on_gpu)
    if arguments.json:
        result = {"about": about, "rows": [asdict(row) for row in rows], "goals": reached}
        json.dump(result, sys.stdout, indent=2)
        return
    print("; ".join(f"{name} {value}" for name, value in about.items()), end="\n\n")
    print_rows(rows)
    print()
    for goal, value in reached.items():
        print(f"{goal}: {value}")
    if not on_gpu:
        print(
            "Not measured here, for want of a GPU: the goals, CUDA graphs, the fused convolution."
        )


if __name__ == "__main__":
    main()
