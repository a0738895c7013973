"""Token views: what part of the cached tokens a decoder is given, written as one word.

    60x14x14        60 frames a window, the 14 × 14 patch grid
    60x14x14+cls    the same with the CLS token before each frame's patches (197 tokens)
    60x7x7          average-pooled to 7 × 7; read pooled where the cache holds `grid7`
    14x14, cls      every sampled frame of the window
    60xcls          60 frames, CLS alone
    60x14x14@random0.5   half of every frame's patches, at random; see TokenSelection
    60x14x14@stride2     every second patch; +cls, where there is one, stands before the @

Fewer frames, a pooled copy and CLS alone are read with fewer bytes. A selection is not: frames are
read whole, and it makes a decoder's work cheaper, not the reading.

Knows how to say and to pool a view, not where its bytes lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .spec import CacheSpec
from .token_selection import TokenSelection

_PATTERN = re.compile(
    r"(?:(?P<frames>\d{1,6})x)?(?:(?P<h>\d{1,3})x(?P<w>\d{1,3})(?P<plus>\+cls)?"
    r"(?:@(?P<selection>[a-z]+[0-9.]+))?|(?P<cls>cls))",
    re.ASCII,
)
_EXPECTED = (
    "expected FRAMESxHxW such as 60x14x14, with +cls for the CLS token and @random0.5 or @stride2 "
    "for a part of the patches, or 60xcls, HxW, cls"
)


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """frames: per window, None for every sampled one. grid: (h, w), None for no patches.

    selection: which of the grid's patches are kept, None for all.
    """

    frames: int | None = None
    grid: tuple[int, int] | None
    cls: bool = False
    selection: TokenSelection | None = None

    def __post_init__(self) -> None:
        if self.grid is None and not self.cls:
            raise UsageError("a token view needs patches, the CLS token or both")
        if self.frames == 0 or (self.grid is not None and min(self.grid) < 1):
            raise UsageError(f"token view {self}: frames, height and width must be at least 1")
        if self.selection is not None:
            self._check_selection(self.selection)

    def _check_selection(self, selection: TokenSelection) -> None:
        num_patches = self.grid[0] * self.grid[1] if self.grid else 0
        if not num_patches:
            raise UsageError(f"@{selection} selects patches, and this token view has none")
        if (selection.step or 1) > num_patches:
            raise UsageError(
                f"token view {self}: a frame has {num_patches} patches, so the step is at most "
                f"{num_patches}; leave out whole frames with a smaller FRAMES"
            )

    @classmethod
    def parse(cls, text: str) -> TokenView:
        """Read the word; UsageError shows the forms."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise UsageError(f"token view {text!r:.80}: {_EXPECTED}")
        frames = int(match["frames"]) if match["frames"] else None
        if any(match[size] and not int(match[size]) for size in ("frames", "h", "w")):
            raise UsageError(f"token view {text}: frames, height and width must be at least 1")
        if match["cls"]:
            return cls(frames=frames, grid=None, cls=True)
        grid = (int(match["h"]), int(match["w"]))
        selection = TokenSelection.parse(match["selection"]) if match["selection"] else None
        return cls(frames=frames, grid=grid, cls=bool(match["plus"]), selection=selection)

    def __str__(self) -> str:
        frames = [str(self.frames)] if self.frames else []
        if self.grid is None:
            return "x".join([*frames, "cls"])
        grid = "x".join([*frames, *map(str, self.grid)])
        chosen = f"@{self.selection}" if self.selection else ""
        return grid + ("+cls" if self.cls else "") + chosen

    @property
    def given_grid(self) -> tuple[int, int] | None:
        """(h, w) of a frame's patches as a decoder is given them: those that a selection keeps are
        a column (k, 1), whose neighbours are neighbours in raster order."""
        if self.grid is None or self.selection is None:
            return self.grid
        return (self.selection.count(self.grid[0] * self.grid[1]), 1)

    def places(self, key: str, frames: Sequence[int]) -> NDArray[np.int64] | None:
        """Which of the grid's patches a selection keeps of each frame: (t, k); None for all.

        key: what a random draw depends on beside the frame's number: the video's id, or in training
        also the seed, the epoch and the window.
        """
        if self.grid is None or self.selection is None:
            return None
        return self.selection.places(key, frames, self.grid[0] * self.grid[1])

    def require(self, spec: CacheSpec) -> None:
        """UsageError unless a cache of this spec can give the view."""
        if self.cls and (spec.num_prefix == 0 or "prefix" not in spec.arrays):
            raise UsageError(f"token view {self}: the cache holds no CLS token ({spec.backbone})")
        if self.grid is not None:
            self.stored_array(spec, spec.arrays)

    def arrays_read(self, spec: CacheSpec, arrays: tuple[str, ...]) -> tuple[str, ...]:
        """All of `arrays` that the view is read from: `prefix`, its `stored_array`, or both."""
        patches = () if self.grid is None else (self.stored_array(spec, arrays),)
        return ("prefix", *patches) if self.cls else patches

    def stored_array(self, spec: CacheSpec, arrays: tuple[str, ...]) -> str:
        """The cheapest of `arrays` that gives the view's grid: its own pooled copy, or `patch`."""
        array = self.find_array(spec, arrays)
        if array is not None:
            return array
        raise UsageError(
            f"token view {self}: the cache holds {', '.join(arrays)} "
            f"(full grid {spec.grid[0]}x{spec.grid[1]}), which cannot give it"
        )

    def find_array(self, spec: CacheSpec, arrays: Sequence[str]) -> str | None:
        """`stored_array`, or None where there is no such array."""
        if self.grid is None:
            raise ValueError("a view without patches reads no grid")
        for array in arrays:
            if array != "prefix" and spec.array_grid(array) == self.grid:
                return array
        fits = self.grid[0] <= spec.grid[0] and self.grid[1] <= spec.grid[1]
        return "patch" if fits and "patch" in arrays else None


def pool_grid(
    tokens: NDArray[np.floating], grid: tuple[int, int], pooled: tuple[int, int]
) -> NDArray[np.float32]:
    """Adaptive average pooling of a patch grid: (T, h·w, D) to float32 (T, h'·w', D).

    Output cell i of n over m inputs averages inputs floor(i·m/n) to ceil((i+1)·m/n), half-open:
    plain 2 × 2 averages for 14 → 7, overlapping ones for 14 → 5 (as torch's AdaptiveAvgPool2d).
    """
    frames, _, dim = tokens.shape
    cells = tokens.reshape(frames, *grid, dim).astype(np.float32, copy=False)  # T h w D
    rows = _pool_axis(cells, axis=1, size=pooled[0])  # T h' w D
    return _pool_axis(rows, axis=2, size=pooled[1]).reshape(frames, -1, dim)  # T h'·w' D


def _pool_axis(cells: NDArray[np.float32], *, axis: int, size: int) -> NDArray[np.float32]:
    length = cells.shape[axis]
    if size == length:
        return cells
    spans = [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
    before = (slice(None),) * axis
    averages = [cells[(*before, slice(lo, hi))].mean(axis=axis) for lo, hi in spans]
    return np.stack(averages, axis=axis)
