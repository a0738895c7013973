"""Labels that speak of more than a video holds: pure comparison of seconds.

A label that ends after its file is cut there without a word when it is read, and one that starts
after it speaks of nothing. Knows neither files nor caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...store.tasks import TaskTable

BEYOND_SECONDS = 1.0
"""Annotations are often in whole seconds: an end that is later by no more is the file's own."""


@dataclass(frozen=True, kw_only=True)
class LabelBeyond:
    """One labelled part, [start_seconds, end_seconds) of video `id`, that its file does not hold.

    end_seconds: None where the label goes to the end. unusable: nothing of it is in the file.
    """

    id: str
    start_seconds: float
    end_seconds: float | None
    file_seconds: float

    @property
    def unusable(self) -> bool:
        return self.start_seconds >= self.file_seconds

    def describe(self) -> str:
        """Such as `a.mp4: label ends at 60 s, the file at 6.0 s`."""
        if self.unusable:
            return (
                f"{self.id}: label starts at {self.start_seconds:g} s, the file ends at "
                f"{self.file_seconds:.1f} s: unusable"
            )
        end, file_end = self.end_seconds, self.file_seconds
        return f"{self.id}: label ends at {end:g} s, the file at {file_end:.1f} s"


def labels_beyond(
    tables: Iterable[TaskTable], file_seconds: Mapping[str, float]
) -> tuple[LabelBeyond, ...]:
    """Every part once, however many tasks name it. file_seconds: by id, of the files known."""
    parts = (
        (row.id, row.start_seconds, row.end_seconds)
        for table in tables
        for row in table.rows
        if row.id in file_seconds
    )
    return parts_beyond((*part, file_seconds[part[0]]) for part in dict.fromkeys(parts))


def parts_beyond(
    parts: Iterable[tuple[str, float | None, float | None, float]],
) -> tuple[LabelBeyond, ...]:
    """Those of (id, start_seconds, end_seconds, seconds of the file) that go beyond it."""
    found = (
        LabelBeyond(
            id=video_id, start_seconds=start or 0.0, end_seconds=end, file_seconds=file_seconds
        )
        for video_id, start, end, file_seconds in parts
    )
    return tuple(
        each
        for each in found
        if each.unusable
        or (each.end_seconds is not None and each.end_seconds > each.file_seconds + BEYOND_SECONDS)
    )
