"""How much of a split could be used, and which videos could not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...store import fields as f
from ...store.errors import CacheFormatError
from ...store.wording import some_of


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a split could be used.

    missing: ids without an entry. empty: without a frame in their extent. short: with fewer frames
    than the decoder needs.
    """

    total: int
    missing: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    short: tuple[str, ...] = ()

    @property
    def present(self) -> int:
        return self.total - len(self.missing) - len(self.empty) - len(self.short)

    @property
    def complete(self) -> bool:
        return self.present == self.total

    def describe(self, split: str) -> str:
        """Such as `41/42 test videos, missing: a, b`."""
        text = f"{self.present}/{self.total} {split} videos"
        reasons = {
            "missing": self.missing,
            "without frames": self.empty,
            "too short for the decoder": self.short,
        }
        for reason, ids in reasons.items():
            if ids:
                text += f", {reason}: {some_of(ids, most=10)}"
        return text

    def to_json(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "missing": list(self.missing),
            "empty": list(self.empty),
            "short": list(self.short),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, name: str) -> Coverage:
        coverage = cls(
            total=f.integer(data, "total", name=name),
            missing=f.texts(data, "missing", name=name),
            empty=f.texts(data, "empty", name=name),
            short=f.texts(data, "short", name=name),
        )
        if coverage.present < 0:
            lacking = coverage.total - coverage.present
            raise CacheFormatError(
                f"{name}: field 'total' is {coverage.total}, expected at least the {lacking} "
                "videos that are lacking"
            )
        return coverage
