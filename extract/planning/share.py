"""Which videos one of several workers begins with: its share.

A share follows from the ids alone, so that workers agree on it without a word, also when their
lists of videos differ, and one that is started again has the share it had. It is an order of work
and never a lock: what keeps a video from being done twice is its claim.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ...store.errors import UsageError
from ..sources import VideoSource

_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_TASK, _FIRST, _LAST, _STEP = (f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "STEP"))


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of worker `number`, from 1, of `count`.

    helps: when it is done, go on with what the others have not begun; otherwise this is all.
    """

    number: int
    count: int
    helps: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            expected = (
                f"1/{self.count} to {self.count}/{self.count}" if self.count else "such as 3/20"
            )
            raise UsageError(f"--worker {self.number}/{self.count}: expected {expected}")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, video_id: str) -> bool:
        """Is this video in the share? By the SHA-256 of its id, so that shares are about equal."""
        digest = hashlib.sha256(video_id.encode()).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def split(self, videos: Sequence[VideoSource]) -> tuple[list[VideoSource], list[VideoSource]]:
        """The videos of the share, and those to help with afterwards, each in the order given."""
        own = [video for video in videos if self.has(video.id)]
        others = [video for video in videos if not self.has(video.id)] if self.helps else []
        return own, others

    def part(self, number: int, count: int) -> Share:
        """The share of process `number`, from 1, of the `count` that this worker consists of: a
        part of its own."""
        return replace(
            self, number=self.number + (number - 1) * self.count, count=self.count * count
        )


def parse_share(
    text: str, *, helps: bool = True, environment: Mapping[str, str] = os.environ
) -> Share:
    """`3/20`, or `slurm` for this task of a SLURM array. UsageError for anything else.

    Task IDs from MIN to MAX in steps are the workers; the share of an ID that the array leaves out
    (`--array=1,3,7`) is done by those that help.
    """
    if text == "slurm":
        return _slurm_share(environment, helps=helps)
    found = _SHARE.fullmatch(text)
    if found is None:
        raise UsageError(f"--worker {text}: expected NUMBER/COUNT such as 3/20, or slurm")
    return Share(number=int(found[1]), count=int(found[2]), helps=helps)


def _slurm_share(environment: Mapping[str, str], *, helps: bool) -> Share:
    task, first, last = (_integer(environment, name) for name in (_TASK, _FIRST, _LAST))
    step = max(1, _integer(environment, _STEP, default=1))
    if not first <= task <= last:
        raise UsageError(f"--worker slurm: {_TASK} is {task}, expected {first} to {last}")
    return Share(number=(task - first) // step + 1, count=(last - first) // step + 1, helps=helps)


def _integer(environment: Mapping[str, str], name: str, *, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text):
        given = repr(text) if text else "not set"
        raise UsageError(
            f"--worker slurm: {name} is {given}, expected a whole number as SLURM sets it in the "
            "tasks of an array (sbatch --array); elsewhere say --worker NUMBER/COUNT"
        )
    return int(text)
