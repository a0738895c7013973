"""One decoder in a process of its own: `python -P -m vis4mer.decode.bench.child`.

Each line of standard input is a question in JSON, each line of standard output its answer:

    {"decoder": …, "shape": …, …}                 → {"num_parameters": …, "least_bytes": …, …}
    {"do": "limit", "max_bytes": 1000 or null}    → {"limit_bytes": …}
    {"do": "turn", "work": "forward" or "train"}  → {"seconds": …, "cpu_seconds": …}
    {"do": "peak"}                                → {"bytes": …, "reserved": …}, and starts anew

An answer {"refused": …} or {"out_of_memory": …} is the last one. The training step is that of
`train-decoder` itself; asked for `"lanes": true`, which `vis4mer bench` never does, each goes on
from the one before, and before the first as many are done as fill the decoder's memory. Knows
nothing of the processes beside it.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from ...store import fields as f
from ...store.errors import UsageError
from ..config import DecoderConfig, OptimizerConfig, Precision, TrainConfig
from ..data.batch import TokenBatch, TokenShape
from ..data.loader import Carried, LabelledBatch
from ..device import Compute
from ..training.learner import Learner
from ..typed import convert
from .memory import least_bytes, memory_meter, weight_bytes

TURN_SECONDS = 0.2
"""A turn repeats its work for so long: threads of the process before may still be spinning."""

NUM_OUTPUTS = 4
_NAME = "the request of a bench"


class Bench:
    """A decoder with its optimizer and a batch of random tokens, ready to be timed."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        precision = convert(f.text(request, "precision", name=_NAME), Precision, field="precision")
        self._compute = Compute.of(
            device=f.text(request, "device", name=_NAME), precision=precision
        )
        _load_libraries(self._compute)
        self.memory = memory_meter(self._compute.device)
        shape = _shape(f.mapping(request, "shape", name=_NAME))
        batch_size = f.integer(request, "batch_size", name=_NAME, minimum=1)
        config = TrainConfig(
            task="bench/cost",
            decoder=DecoderConfig.from_json(f.mapping(request, "decoder", name=_NAME)),
            optimizer=OptimizerConfig(schedule="constant"),
            batch_size=batch_size,
            lanes=request.get("lanes") is True,
        )
        self._learner = Learner(
            config,
            shape=shape,
            kind="classification",
            num_outputs=NUM_OUTPUTS,
            steps_per_epoch=1,
            compute=self._compute,
        )
        self._learner.model.require_trainable()
        self._batch = random_batch(shape, batch_size=batch_size, compute=self._compute)
        self._lanes = config.lanes
        self._unfilled = self._learner.model.windows_to_fill if config.lanes else 0
        self._works: Mapping[str, Callable[[], object]] = {
            "forward": self._forward,
            "train": self._train,
        }
        self.memory.restart()  # what building took for a moment is not what computing takes

    def about(self) -> dict[str, Any]:
        """What is known before anything is computed. least_bytes: what each work will take at
        least beyond the baseline, 0 where that cannot be told."""
        model, held = self._learner.model, self.memory.held()
        learning = 3 * weight_bytes(model)  # gradients and AdamW's two moments
        least = least_bytes(
            model, batch_size=len(self._batch.labels), itemsize=self._compute.dtype.itemsize
        )
        return {
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "least_bytes": {
                "forward": held + least[0] if least[0] else 0,
                "train": held + learning + least[1] if least[1] else 0,
            },
            "machine": _machine(self._compute.device),
        }

    def turn(self, work: str) -> dict[str, float]:
        """One turn: the mean seconds of a call, on the clock and of all threads together."""
        call = self._works[work]
        if self._on_gpu:
            call()  # the others' turns have emptied this process's share of the GPU
        self._wait()
        start, cpu_start, calls = time.perf_counter(), time.process_time(), 0
        while not calls or time.perf_counter() - start < TURN_SECONDS:
            call()
            self._wait()
            calls += 1
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        if self._on_gpu:
            torch.cuda.empty_cache()
        return {"seconds": seconds / calls, "cpu_seconds": cpu_seconds / calls}

    def _train(self) -> None:
        for _ in range(self._unfilled):
            self._step_on()
        self._unfilled = 0
        self._step_on()

    def _step_on(self) -> None:
        """One training step; in lanes the next one goes on from it, as where others start anew."""
        self._learner.step(self._batch)
        if self._lanes:
            starts = torch.zeros_like(self._batch.labels, dtype=torch.bool)  # B
            self._batch = replace(self._batch, carried=Carried(rows=None, starts=starts))

    @torch.no_grad()
    def _forward(self) -> Tensor:
        model = self._learner.model.eval()
        with self._compute.autocast():
            outputs: Tensor = model(self._batch.tokens)  # B n_out
        return outputs

    @property
    def _on_gpu(self) -> bool:
        return self._compute.device.type == "cuda"

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._compute.device)


def random_batch(shape: TokenShape, *, batch_size: int, compute: Compute) -> LabelledBatch:
    """Windows without padding, as a loader hands them to the training step."""

    def draw(*sizes: int) -> Tensor:
        lead = (batch_size, shape.frames)
        return torch.randn(*lead, *sizes, shape.dim, device=compute.device, dtype=compute.dtype)

    mask = torch.ones(batch_size, shape.frames, dtype=torch.bool, device=compute.device)
    tokens = TokenBatch(
        patch=draw(*shape.grid) if shape.grid else None,
        prefix=draw(shape.num_prefix) if shape.num_prefix else None,
        mask=mask,
        pts_seconds=mask.double().cumsum(dim=1) - 1,
        lengths=(shape.frames,) * batch_size,
    )
    labels = torch.arange(batch_size, device=compute.device) % NUM_OUTPUTS  # B
    return LabelledBatch(tokens=tokens, labels=labels)


def main() -> None:
    """Answer until there are no more questions."""
    answers = _own_output()
    with suppress(OSError):  # should memory end nonetheless, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    bench: Bench | None = None
    for line in sys.stdin:
        try:
            question = json.loads(line)
            if bench is None:
                bench = Bench(question)
                answer: Mapping[str, Any] = bench.about()
            else:
                answer = _answer(bench, question)
        except UsageError as error:
            answer = {"refused": str(error)}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            answer = {"out_of_memory": str(error).partition("\n")[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer.keys() & {"refused", "out_of_memory"}:
            return


def _answer(bench: Bench, question: Mapping[str, Any]) -> Mapping[str, Any]:
    match question["do"]:
        case "turn":
            return bench.turn(question["work"])
        case "peak":
            peak = bench.memory.peak()
            bench.memory.restart()
            return asdict(peak)
        case "limit":
            return {"limit_bytes": bench.memory.limit(question["max_bytes"])}
        case other:
            raise UsageError(f"a bench is asked {other!r}, expected limit, turn or peak")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on a CPU (by the allocator's words) or a GPU."""
    known = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return known or "can't allocate memory" in str(error)


def _shape(data: Mapping[str, Any]) -> TokenShape:
    grid = None if data.get("grid") is None else f.integers(data, "grid", name=_NAME)
    return TokenShape(
        frames=f.integer(data, "frames", name=_NAME),
        grid=None if grid is None else (grid[0], grid[1]),
        num_prefix=f.integer(data, "num_prefix", name=_NAME),
        dim=f.integer(data, "dim", name=_NAME),
    )


def _own_output() -> IO[str]:
    """Standard output for answers alone: what libraries print goes where errors go."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _load_libraries(compute: Compute) -> None:
    """A small training step, so that what any step loads and starts is part of the baseline."""
    layer = nn.Linear(64, 64).to(compute.device)
    optimizer = torch.optim.AdamW(layer.parameters())
    with compute.autocast():
        loss = layer(torch.randn(1024, 64, device=compute.device)).square().mean()
    torch.autograd.backward(loss)
    optimizer.step()


def _machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
