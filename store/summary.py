"""What a cache holds, in a few figures: the answer to `vis4mer cache info`.

Computed from records and tables alone; reads no tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cache import Cache
from .records import frame_cost
from .spec import CacheSpec


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """Counts and sizes of a cache.

    frame_bytes: stored bytes of one frame, by array. made_by: for each kind of provenance, how many
    videos each value made; more than one value is worth a look before figures are compared.
    """

    path: Path
    spec: CacheSpec
    num_videos: int
    num_frames: int
    duration_seconds: float
    num_bytes: int
    num_failures: int
    damaged_videos: int
    frame_bytes: Mapping[str, int]
    tasks: tuple[str, ...]
    made_by: Mapping[str, Mapping[str, int]]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return {**data, "path": str(self.path), "spec": self.spec.to_json()}

    def lines(self, *, human_bytes: Callable[[float], str]) -> list[tuple[str, str]]:
        """The summary as (name, value) lines for people."""
        spec = self.spec
        grid = "x".join(map(str, spec.grid))
        lines = [
            ("cache", f"{self.path} (format 1, fingerprint {spec.fingerprint})"),
            ("videos", f"{self.num_videos}, {self.duration_seconds / 3600:.2f} h"),
            ("frames", f"{self.num_frames} ({spec.sampling.describe()}), read by {spec.reader}"),
            ("size", human_bytes(self.num_bytes)),
            ("failures", f"{self.num_failures} (`vis4mer cache ls --failures`)"),
            ("damaged", f"{self.damaged_videos} videos have damaged frames"),
            ("backbone", f"{spec.backbone}, weights {_weights(spec)}"),
            ("input", f"{_input(spec)}, computed in {spec.compute_dtype}"),
            ("tokens", f"{grid} + {spec.num_prefix} prefix, width {spec.dim}, {spec.stored_dtype}"),
        ]
        for array, count in self.frame_bytes.items():
            lines.append((f"  {array}", f"{human_bytes(count)} a frame"))
        lines.append(("tasks", ", ".join(self.tasks) or "none"))
        for kind, values in self.made_by.items():
            shown = ", ".join(
                f"{value} ({count} videos)" if len(values) > 1 else value
                for value, count in values.items()
            )
            lines.append((kind, shown + (" — not all alike" if len(values) > 1 else "")))
        return lines


def summarise(cache: Cache) -> CacheSummary:
    """Add up all records of a cache."""
    records = [cache.record(entry_id) for entry_id in cache.ids()]
    made_by: dict[str, Counter[str]] = {}
    for record in records:
        for kind, value in record.provenance.items():
            made_by.setdefault(kind, Counter())[value] += 1
    return CacheSummary(
        path=cache.path,
        spec=cache.spec,
        num_videos=len(records),
        num_frames=sum(record.num_frames for record in records),
        duration_seconds=sum(record.duration_seconds for record in records),
        num_bytes=sum(record.num_bytes for record in records),
        num_failures=len(cache.failures()),
        damaged_videos=sum(record.damaged_frames > 0 for record in records),
        frame_bytes={array: frame_cost(cache.spec, array) for array in cache.spec.arrays},
        tasks=tuple(cache.tasks()),
        made_by={kind: dict(values) for kind, values in made_by.items()},
    )


def _weights(spec: CacheSpec) -> str:
    shown = f"{spec.weights} (sha256 {spec.weights_sha256[:12]}…)"
    if spec.weights.startswith("random"):
        return f"{shown}: RANDOM, not trained: for trying the pipeline only"
    return shown


def _input(spec: CacheSpec) -> str:
    if spec.preprocess is None:
        return "not known how it was prepared"
    return f"{'x'.join(map(str, spec.preprocess.size))} {spec.preprocess.resize}"
