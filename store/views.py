"""Token views: what part of the cached tokens a decoder is given, written as one word.

    60x14x14        60 frames a window, the 14 × 14 patch grid
    60x14x14+cls    the same with the CLS token before each frame's patches (197 tokens)
    60x7x7          average-pooled to 7 × 7; read pooled where the cache holds `grid7`
    14x14, cls      every sampled frame of the window
    60xcls          60 frames, CLS alone

Knows how to say and to pool a view, not where its bytes lie.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError
from .spec import CacheSpec

_PATTERN = re.compile(
    r"(?:(?P<frames>\d{1,6})x)?(?:(?P<h>\d{1,3})x(?P<w>\d{1,3})(?P<plus>\+cls)?|(?P<cls>cls))",
    re.ASCII,
)
_EXPECTED = "expected FRAMESxHxW such as 60x14x14, with +cls for the CLS token, or 60xcls, HxW, cls"


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """frames: per window, None for every sampled one. grid: (h, w), None for no patches."""

    frames: int | None = None
    grid: tuple[int, int] | None
    cls: bool = False

    def __post_init__(self) -> None:
        if self.grid is None and not self.cls:
            raise UsageError("a token view needs patches, the CLS token or both")
        if self.frames == 0 or (self.grid is not None and min(self.grid) < 1):
            raise UsageError(f"token view {self}: frames, height and width must be at least 1")

    @classmethod
    def parse(cls, text: str) -> TokenView:
        """Read the word; UsageError shows the forms."""
        match = _PATTERN.fullmatch(text)
        if not match:
            raise UsageError(f"token view {text!r}: {_EXPECTED}")
        frames = int(match["frames"]) if match["frames"] else None
        if match["cls"]:
            return cls(frames=frames, grid=None, cls=True)
        grid = (int(match["h"]), int(match["w"]))
        return cls(frames=frames, grid=grid, cls=bool(match["plus"]))

    def __str__(self) -> str:
        frames = [str(self.frames)] if self.frames else []
        if self.grid is None:
            return "x".join([*frames, "cls"])
        return "x".join([*frames, *map(str, self.grid)]) + ("+cls" if self.cls else "")

    def require(self, spec: CacheSpec) -> None:
        """UsageError unless a cache of this spec can give the view."""
        if self.cls and (spec.num_prefix == 0 or "prefix" not in spec.arrays):
            raise UsageError(f"token view {self}: the cache holds no CLS token ({spec.backbone})")
        if self.grid is not None:
            self.stored_array(spec, spec.arrays)

    def stored_array(self, spec: CacheSpec, arrays: tuple[str, ...]) -> str:
        """The cheapest of `arrays` that gives the view's grid: its own pooled copy, or `patch`."""
        if self.grid is None:
            raise ValueError("a view without patches reads no grid")
        for array in arrays:
            if array != "prefix" and spec.array_grid(array) == self.grid:
                return array
        fits = self.grid[0] <= spec.grid[0] and self.grid[1] <= spec.grid[1]
        if fits and "patch" in arrays:
            return "patch"
        raise UsageError(
            f"token view {self}: the cache holds {', '.join(arrays)} "
            f"(full grid {spec.grid[0]}x{spec.grid[1]}), which cannot give it"
        )


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
    averages = [cells.take(range(lo, hi), axis=axis).mean(axis=axis) for lo, hi in spans]
    return np.stack(averages, axis=axis)
