"""The peak memory of a training step of each setting, measured in a process of its own.

What a pass takes is shared by its runs, and says nothing of one of them. Here a setting's decoder,
its optimizer and one batch of random tokens are alone, as in `vis4mer bench`, and with lanes what
is remembered of the windows before: on a CPU the bytes that stay resident beyond the process's own,
on a GPU those that torch's allocator handed out.
`memory.json` keeps them by what was measured: seeds and tasks share a measurement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...store import fields as f
from ...store.errors import Vis4merError
from ...store.files import canonical_json, read_sealed, seal, write_atomic
from ..bench.worker import ChildWorker
from ..device import Compute
from ..runs.run import RunAbout

Request = Mapping[str, Any]
Measure = Callable[[Request], int]
OnMeasure = Callable[[int, int], None]  # measured, in all


def memory_request(about: RunAbout, *, device: str) -> Request:
    """What is measured for a run: its decoder at full windows, batch size and precision."""
    compute = Compute.of(device=device, precision=about.train.precision)
    request: dict[str, Any] = {
        "decoder": about.train.decoder.to_json(),
        "shape": asdict(about.plan.shape),
        "batch_size": about.train.batch_size,
        "device": str(compute.device),
        "precision": compute.precision,
    }
    if about.train.lanes:  # else unsaid: what is measured already keeps its key
        request["lanes"] = True
    return request


def training_step_bytes(request: Request) -> int:
    """Measure one; BenchMemoryError, BenchFailedError or UsageError where it cannot be."""
    worker = ChildWorker.start(request)
    try:
        worker.limit(None)
        worker.turn("train")
        return worker.peak().bytes
    finally:
        worker.close()


class MemoryBook:
    """What has been measured for a sweep in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "memory.json"
        self._known = self._read()

    def bytes_of(self, request: Request) -> int | None:
        """None where it is not measured, or could not be."""
        return self._known.get(_key(request))

    def measure(
        self,
        requests: Iterable[Request],
        *,
        measure: Measure = training_step_bytes,
        on_measure: OnMeasure | None = None,
    ) -> list[str]:
        """Measure what is not known yet, each kept at once. Returns why some could not be."""
        wanted = {_key(request): request for request in requests}
        missing = {key: r for key, r in wanted.items() if key not in self._known}
        reasons = []
        for done, (key, request) in enumerate(missing.items()):
            if on_measure is not None:
                on_measure(done, len(missing))
            try:
                self._known[key] = measure(request)
            except Vis4merError as error:
                reason = "there is not enough" if isinstance(error, MemoryError) else str(error)
                name = request["decoder"]["name"]
                reasons.append(f"{name}: its memory was not measured ({reason})")
            else:
                write_atomic(self._path, seal({"measured": self._known}))
        return reasons

    def _read(self) -> dict[str, int]:
        if not self._path.exists():
            return {}
        name = str(self._path)
        found = f.mapping(read_sealed(self._path), "measured", name=name)
        return {key: f.integer(found, key, name=name) for key in found}


def _key(request: Request) -> str:
    return hashlib.sha256(canonical_json(request)).hexdigest()
