"""Judging by several processes: each looks at some of the videos, and all learn what was said.

Whole videos are split, so that every timeline is read once and a memory that is carried through one
stays where it is. What decoders say is summed into tables of all windows, in which each process has
filled the rows of its own videos: the sum with zeros is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...store.cache import Cache
from ...store.windows import Window
from ..data.plan import WindowPlan
from ..data.preload import Held
from ..data.timelines import judged_windows
from ..device import Compute
from ..judging.judge import (
    Candidate,
    Judged,
    JudgedWindow,
    OnVideo,
    Verdict,
    judge_all,
    not_finite,
)
from .ranks import Ranks


def judge_split(
    candidates: Sequence[Candidate],
    cache: Cache,
    plan: WindowPlan,
    compute: Compute,
    *,
    num_outputs: Sequence[int],
    ranks: Ranks,
    stride_seconds: float,
    workers: int,
    on_video: OnVideo | None = None,
    held: Held | None = None,
) -> list[tuple[Verdict, ...]]:
    """As `judge_all`, in every process. num_outputs: of the models, by candidate."""
    own_ids = _own_ids(candidates, ranks)
    own = [
        replace(one, stretches=[s for s in one.stretches if s.id in own_ids]) for one in candidates
    ]
    judging = [one for one in own if one.stretches]
    found = iter(
        judge_all(
            judging,
            cache,
            plan,
            compute,
            stride_seconds=stride_seconds,
            workers=workers,
            on_video=on_video,
            held=held,
        )
    )
    said = [next(found) if one.stretches else () for one in own]
    verdicts = []
    for i, candidate in enumerate(candidates):
        whole = _Table.of(candidate, plan, stride_seconds=stride_seconds, width=num_outputs[i])
        verdicts.append(
            tuple(
                whole.verdict(said[i][k] if said[i] else None, own_ids, ranks)
                for k in range(len(candidate.models))
            )
        )
    return verdicts


def _own_ids(candidates: Sequence[Candidate], ranks: Ranks) -> frozenset[str]:
    """Every so many of the videos in the order of their ids."""
    ids = sorted({stretch.id for one in candidates for stretch in one.stretches})
    return frozenset(ids[ranks.share.index :: ranks.share.count])


@dataclass(frozen=True, kw_only=True)
class _Table:
    """All windows of a candidate's stretches, a row each. width: outputs of a row."""

    candidate: Candidate
    windows: Sequence[Sequence[Window]]  # by stretch
    width: int

    @classmethod
    def of(
        cls, candidate: Candidate, plan: WindowPlan, *, stride_seconds: float, width: int
    ) -> _Table:
        windows = [
            judged_windows(stretch, plan, stride_seconds=stride_seconds)
            for stretch in candidate.stretches
        ]
        return cls(candidate=candidate, windows=windows, width=width)

    def verdict(self, own: Verdict | None, own_ids: frozenset[str], ranks: Ranks) -> Verdict:
        """What a model says of all windows. own: of those videos, None where there are none."""
        table = np.concatenate(
            [np.zeros((len(windows), self.width)) for windows in self.windows]
        )  # ΣW n_out
        here = [i for i, s in enumerate(self.candidate.stretches) if s.id in own_ids]
        rows = self._rows()
        for place, i in enumerate(here):
            # Where any output is not finite the whole part says so: none of it will be used.
            table[rows[i]] = own.outputs(place) if isinstance(own, Judged) else np.nan
        table = ranks.sum_table(table)
        num_bytes = ranks.sum_count(own.bytes_read if isinstance(own, Judged) else 0)
        return self._read(table, num_bytes)

    def _rows(self) -> list[slice]:
        """By stretch."""
        ends = np.cumsum([0, *map(len, self.windows)]).tolist()
        return [slice(a, b) for a, b in pairwise(ends)]

    def _read(self, table: NDArray[np.float64], num_bytes: int) -> Verdict:
        judged = []
        for stretch, windows, rows in zip(
            self.candidate.stretches, self.windows, self._rows(), strict=True
        ):
            for outputs in table[rows]:
                if not np.isfinite(outputs).all():
                    return not_finite(stretch, outputs)
            judged.append(
                tuple(
                    JudgedWindow(window=window, outputs=outputs)
                    for window, outputs in zip(windows, table[rows], strict=True)
                )
            )
        return Judged(windows=tuple(judged), bytes_read=num_bytes)
