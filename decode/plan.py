"""What is asked of a cache: a view and a window length, and the rows of a task that can be read.

Index arithmetic and bookkeeping only: reads records, never tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..store.cache import Cache
from ..store.errors import UsageError
from ..store.spec import CacheSpec
from ..store.tasks import Split, TaskTable
from ..store.views import TokenView
from ..store.windows import Window, frames_of_extent, spread_frames, window_length
from .batch import TokenShape
from .metrics import Coverage


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """A view and a window length in frames of one cache.

    length: frames a full window spans. shape.frames: how many of them the view keeps.
    """

    view: TokenView
    fps: float
    length: int
    shape: TokenShape

    @classmethod
    def of(cls, spec: CacheSpec, *, tokens: str | None, window_seconds: float) -> WindowPlan:
        """The plan for a cache; UsageError when it cannot give the view.

        tokens None: the stored patch grid without CLS, every frame of the window.
        """
        view = TokenView.parse(tokens) if tokens is not None else default_view(spec)
        view.require(spec)
        length = window_length(window_seconds, fps=spec.sampling.fps)
        if view.frames is not None and view.frames > length:
            raise UsageError(
                f"token view {view}: a window of {window_seconds:g} s holds {length} frames at "
                f"{spec.sampling.fps:g} fps; use fewer frames or a longer --window"
            )
        shape = TokenShape(
            frames=view.frames or length, grid=view.grid, num_prefix=int(view.cls), dim=spec.dim
        )
        return cls(view=view, fps=spec.sampling.fps, length=length, shape=shape)

    def frames(self, window: Window) -> list[int]:
        """The frames of a window that the view keeps, ascending."""
        return spread_frames(window, length=self.length, frames=self.shape.frames)

    def frames_for(self, kept: int) -> int:
        """The shortest extent, in frames, of which the view keeps `kept` >= 1 frames."""
        return (kept - 1) * self.length // self.shape.frames + 1


def default_view(spec: CacheSpec) -> TokenView:
    """The largest patch grid that a cache holds, or CLS where it holds no patches."""
    grids = [grid for array in spec.arrays if (grid := spec.array_grid(array)) is not None]
    if not grids:
        return TokenView(grid=None, cls=True)
    return TokenView(grid=max(grids, key=lambda grid: grid[0] * grid[1]))


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Frames `extent` of the entry `id`: what is cut into windows."""

    id: str
    extent: Window


@dataclass(frozen=True, kw_only=True)
class Sample(Stretch):
    """A task row that can be used."""

    label: float


@dataclass(frozen=True, kw_only=True)
class SplitSamples:
    """The usable rows of a split, in the table's order, and what could not be used."""

    samples: tuple[Sample, ...]
    coverage: Coverage


def split_samples(
    cache: Cache, table: TaskTable, split: Split, *, min_frames: int = 1
) -> SplitSamples:
    """Match a split with the cache; rows that cannot be used are counted and listed.

    min_frames: of an extent that the decoder can take; see `WindowPlan.frames_for`.
    """
    samples: list[Sample] = []
    missing: list[str] = []
    empty: list[str] = []
    short: list[str] = []
    rows = table.split(split)
    for row in rows:
        if row.id not in cache:
            missing.append(row.id)
            continue
        num_frames = cache.record(row.id).num_frames
        extent = frames_of_extent(row, num_frames=num_frames, fps=cache.spec.sampling.fps)
        if extent is None:
            empty.append(row.id)
        elif extent.num_frames < min_frames:
            short.append(row.id)
        else:
            samples.append(Sample(id=row.id, extent=extent, label=row.label))
    coverage = Coverage(
        total=len(rows), missing=tuple(missing), empty=tuple(empty), short=tuple(short)
    )
    return SplitSamples(samples=tuple(samples), coverage=coverage)
