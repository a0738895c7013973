"""What went wrong, one small file a video under `failures/`, removed when the video succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from . import fields as f
from .keys import entry_key, fan

FAILURES = "failures"  # a folder of a cache
Stage = Literal["open", "decode", "encode", "write"]


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """One video's failure. `reason` is for a person; size and mtime tell whether the file changed
    since (both 0 when the file could not even be looked at). `time` is UTC, ISO 8601."""

    id: str
    stage: Stage
    reason: str
    source_name: str
    source_size: int
    source_mtime_ns: int
    time: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> FailureRecord:
        return cls(
            id=f.text(data, "id", name=name),
            stage=f.choice(data, "stage", get_args(Stage), name=name),
            reason=f.text(data, "reason", name=name),
            source_name=f.text(data, "source_name", name=name),
            source_size=f.integer(data, "source_size", name=name),
            source_mtime_ns=f.integer(data, "source_mtime_ns", name=name, minimum=-(1 << 63)),
            time=f.text(data, "time", name=name),
        )


def failure_path(root: Path, entry_id: str) -> Path:
    """The file of a video's failure in the cache at `root`."""
    key = entry_key(entry_id)
    return root / FAILURES / fan(key) / f"{key}.json"
