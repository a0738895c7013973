"""A task's windows as an ordinary PyTorch dataset, for people who bring their own training loop.

It needs no torch: anything with a length and items is a dataset to `torch.utils.data.DataLoader`.

    cache = open_cache("lvu.zarr")
    dataset = cache.dataset("lvu/relationship", "train", tokens="60x14x14+cls")
    for batch in DataLoader(dataset, batch_size=8, shuffle=True, num_workers=4):
        batch["patch"]      # float16 (8, 60, 14, 14, D)
        batch["mask"]       # bool (8, 60), True where there is a frame

Letters: T frames of a window, h·w patch grid, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .tasks import SPLITS, Split, TaskRow
from .views import TokenView
from .windows import Window, evaluation_windows, frames_of_extent, spread_frames, window_length

if TYPE_CHECKING:
    from .cache import Cache


@dataclass(frozen=True, kw_only=True)
class LabelledWindow:
    """One item: some frames of an entry, [start, stop), and the row that labels them."""

    row: TaskRow
    window: Window


class WindowDataset:
    """Every window of every row of a split, in the order of the table.

    missing: ids of rows whose video is not in the cache. empty: ids of rows whose extent holds no
    frame of their video. Neither has items; whoever reports numbers says how many there were.
    """

    def __init__(
        self,
        cache: Cache,
        task: str,
        split: Split,
        *,
        tokens: str = "60x14x14",
        window_seconds: float = 60.0,
        stride_seconds: float | None = None,
    ) -> None:
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
        self.cache = cache
        self.table = cache.task(task)
        self.view = TokenView.parse(tokens)
        self.view.require(cache.spec)
        fps = cache.spec.sampling.fps
        segments = cache.spec.sampling.segments  # an entry of segments is one window
        self.window_frames = segments or _frames("window_seconds", window_seconds, fps=fps)
        self.stride_frames = _frames(
            "stride_seconds", window_seconds if stride_seconds is None else stride_seconds, fps=fps
        )
        self.num_frames = self.view.frames or self.window_frames
        if self.num_frames > self.window_frames:
            window = f"a window of {window_seconds:g} s at {fps:g} frames a second"
            raise UsageError(
                f"token view {self.view} asks for {self.num_frames} frames, but "
                f"{'an entry of segments' if segments else window} has {self.window_frames}"
            )
        rows = self.table.split(split)
        self.missing = tuple(row.id for row in rows if row.id not in cache)
        absent = set(self.missing)
        extents = [(row, self._extent(row)) for row in rows if row.id not in absent]
        self.empty = tuple(row.id for row, extent in extents if extent is None)
        self.items = tuple(
            LabelledWindow(row=row, window=window)
            for row, extent in extents
            if extent is not None
            for window in evaluation_windows(
                extent, length=self.window_frames, stride=self.stride_frames
            )
        )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window, padded with zeros after its last frame:

        patch (T, h, w, D), or (T, k, 1, D) of a view that selects patches, the same ones each time,
        unless the view is of CLS alone; prefix (T, 1, D), where the view has the CLS token; both
        float16, or float32 from bfloat16 and int8 caches. mask (T,) bool, True for frames. label:
        int64 class index, or float32 value. id: str. start_seconds: float, of the window, from the
        first frame. DamagedEntryError, never zeros for what cannot be read.
        """
        item = self.items[index]
        frames = spread_frames(item.window, length=self.window_frames, frames=self.num_frames)
        read = self.cache.read_view(item.row.id, self.view, frames)
        label = np.int64(item.row.label) if self.table.classes else np.float32(item.row.label)
        sample: dict[str, Any] = {
            "mask": np.arange(self.num_frames) < len(frames),  # T
            "label": label,
            "id": item.row.id,
            "start_seconds": item.window.start / self.cache.spec.sampling.fps,
        }
        for name, values in (("patch", read.patch), ("prefix", read.prefix)):
            if values is not None:
                sample[name] = self._padded(values)
        return sample

    def _extent(self, row: TaskRow) -> Window | None:
        num_frames = self.cache.record(row.id).num_frames
        if self.cache.spec.sampling.kind == "segments":  # which are cut from the extent already
            return Window(start=0, stop=num_frames)
        return frames_of_extent(row, num_frames=num_frames, fps=self.cache.spec.sampling.fps)

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        padded = np.zeros((self.num_frames, *values.shape[1:]), dtype=values.dtype)  # T …
        padded[: len(values)] = values
        return padded


def _frames(name: str, seconds: float, *, fps: float) -> int:
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{name} {seconds}: expected a positive number of seconds")
    return window_length(seconds, fps=fps)
