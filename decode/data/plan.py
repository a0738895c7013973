"""What is asked of a cache: a view and a window length, and the rows of a task that can be read.

Index arithmetic and bookkeeping only: reads records, never tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ...store.cache import Cache
from ...store.errors import UsageError
from ...store.files import canonical_json
from ...store.records import EntryRecord
from ...store.spec import CacheSpec, Sampling
from ...store.tasks import Split, TaskRow, TaskTable
from ...store.views import TokenView
from ...store.windows import Window, frames_of_extent, spread_frames, window_length
from ..config import Padding
from ..judging.coverage import Coverage
from .batch import TokenShape


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """A view and a window length in frames of one cache.

    length: frames a full window spans. shape.frames: how many of them the view keeps; shape.grid:
    (k, 1) where the view selects k patches of a frame. In a cache of segments a window is the whole
    entry: its length is their number, whatever the seconds. padding: see TrainConfig.
    """

    view: TokenView
    sampling: Sampling
    length: int
    shape: TokenShape
    padding: Padding = "masked"

    @classmethod
    def of(
        cls,
        spec: CacheSpec,
        *,
        tokens: str | None,
        window_seconds: float,
        padding: Padding = "masked",
    ) -> WindowPlan:
        """The plan for a cache; UsageError when it cannot give the view.

        tokens None: the stored patch grid without CLS, every frame of the window.
        """
        view = TokenView.parse(tokens) if tokens is not None else default_view(spec)
        view.require(spec)
        sampling = spec.sampling
        length = sampling.segments or window_length(window_seconds, fps=sampling.fps)
        if view.frames is not None and view.frames > length:
            raise UsageError(
                f"token view {view}: an entry of this cache is {length} segments; use at most "
                f"{length} of them"
                if sampling.kind == "segments"
                else f"token view {view}: a window of {window_seconds:g} s holds {length} frames "
                f"at {sampling.fps:g} fps; use fewer frames or a longer --window"
            )
        shape = TokenShape(
            frames=view.frames or length,
            grid=view.given_grid,
            num_prefix=int(view.cls),
            dim=spec.dim,
        )
        return cls(view=view, sampling=sampling, length=length, shape=shape, padding=padding)

    @property
    def fps(self) -> float:
        """Frames of an entry in a second, nominally; see `window_seconds` for true times."""
        return self.sampling.fps

    def frames(self, window: Window) -> list[int]:
        """The frames of a window that the view keeps, ascending."""
        return spread_frames(window, length=self.length, frames=self.shape.frames)

    def reads(self, spec: CacheSpec) -> tuple[int, tuple[str, ...]]:
        """What is read for a window: how many frames, of which arrays of a cache that holds no
        more than it was made with. Views of which it is the same can be cut from the same reads."""
        return self.shape.frames, self.view.arrays_read(spec, spec.arrays)

    def frames_for(self, kept: int) -> int:
        """The shortest extent, in frames, of which the view keeps `kept` >= 1 frames."""
        return (kept - 1) * self.length // self.shape.frames + 1

    def shortest_extent(self, min_frames: int) -> int:
        """The shortest extent, in frames, for a decoder that needs `min_frames` of a window; one,
        where zeros make every window a full one."""
        return 1 if self.padding == "zeros" else self.frames_for(min_frames)

    @property
    def padded_frames(self) -> int | None:
        """Frames that every window is filled up to with zeros; None where padding is masked."""
        return self.shape.frames if self.padding == "zeros" else None


def default_view(spec: CacheSpec) -> TokenView:
    """The largest patch grid that a cache holds, or CLS where it holds no patches."""
    grids = [grid for array in spec.arrays if (grid := spec.array_grid(array)) is not None]
    if not grids:
        return TokenView(grid=None, cls=True)
    return TokenView(grid=max(grids, key=lambda grid: grid[0] * grid[1]))


def window_seconds(record: EntryRecord, window: Window, sampling: Sampling) -> tuple[float, float]:
    """[start, end) of a window in seconds after the entry's first frame.

    Frame k stands for the time k / fps where frames are sampled at a rate; elsewhere the frames'
    own times say when it begins, and the mean step between them how long the last one lasts.
    """
    if sampling.kind == "fps":
        return window.start / sampling.fps, window.stop / sampling.fps
    first = record.pts_seconds[0]
    start = record.pts_seconds[window.start] - first
    if window.stop < record.num_frames:
        return start, record.pts_seconds[window.stop] - first
    return start, record.pts_seconds[-1] - first + _step_seconds(record)


def _step_seconds(record: EntryRecord) -> float:
    """Between the frames of an entry, in the mean; its duration where there is one frame."""
    if record.num_frames == 1:
        return record.duration_seconds
    span = record.pts_seconds[-1] - record.pts_seconds[0]
    return span / (record.num_frames - 1)


def typical_window_seconds(plan: WindowPlan, records: Iterable[EntryRecord]) -> float:
    """What a full window spans in time: the median over `records` where that varies."""
    if plan.sampling.kind == "fps":
        return plan.length / plan.fps
    return plan.length * float(np.median([_step_seconds(record) for record in records]))


Source = tuple[str, tuple[str, ...]]
"""A video, and the arrays that are read of it."""


def source_of(cache: Cache, entry_id: str, plan: WindowPlan) -> Source:
    """What a plan reads of a video, which may hold more arrays than others."""
    held = cache.record(entry_id).token_arrays
    return entry_id, plan.view.arrays_read(cache.spec, held)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Frames `extent` of the entry `id`: what is cut into windows."""

    id: str
    extent: Window


@dataclass(frozen=True, kw_only=True)
class Sample(Stretch):
    """A task row that can be used. group: the row's, or its id where it has none."""

    label: float
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class SplitSamples:
    """The usable rows of a split, in the table's order, and what could not be used."""

    samples: tuple[Sample, ...]
    coverage: Coverage


def data_digest(splits: Mapping[Split, SplitSamples]) -> str:
    """SHA-256 of all usable rows: their ids, labels, splits and extents."""
    rows = [
        [split, s.id, s.label, s.extent.start, s.extent.stop]
        for split, chosen in splits.items()
        for s in chosen.samples
    ]
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def split_samples(
    cache: Cache, table: TaskTable, split: Split, *, min_frames: int = 1
) -> SplitSamples:
    """Match a split with the cache; rows that cannot be used are counted and listed.

    min_frames: of an extent that the decoder can take; see `WindowPlan.shortest_extent`. Raises
    CacheFormatError where the record of one is damaged.
    """
    samples: list[Sample] = []
    missing: list[str] = []
    empty: list[str] = []
    short: list[str] = []
    rows = table.split(split)
    found = cache.records(
        dict.fromkeys(row.id for row in rows),
        otherwise=f"the {split} videos of {table.reference} would not be all that there are",
    )
    held = {record.id: record for record in found}
    for row in rows:
        if row.id not in held:
            missing.append(row.id)
            continue
        extent = _extent(row, held[row.id], cache.spec.sampling)
        if extent is None:
            empty.append(row.id)
        elif extent.num_frames < min_frames:
            short.append(row.id)
        else:
            group = group_of(row)
            samples.append(Sample(id=row.id, extent=extent, label=row.label, group=group))
    coverage = Coverage(
        total=len(rows), missing=tuple(missing), empty=tuple(empty), short=tuple(short)
    )
    return SplitSamples(samples=tuple(samples), coverage=coverage)


def group_of(row: TaskRow) -> str:
    """What must not be shared between splits: the row's group, or its video."""
    return row.id if row.group is None else row.group


def _extent(row: TaskRow, record: EntryRecord, sampling: Sampling) -> Window | None:
    """The frames a row speaks of. Segments are cut from its extent already: all of them."""
    if sampling.kind == "segments":
        return Window(start=0, stop=record.num_frames)
    return frames_of_extent(row, num_frames=record.num_frames, fps=sampling.fps)
