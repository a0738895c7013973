"""What the axes of an array of tokens mean.

    (T, D)          one token a frame: a patch of a 1 × 1 grid, or with `--prefix 1` the CLS token
    (T, S, D)       S = prefix + h·w, prefix tokens first, patches row by row
    (T, h, w, D)    a patch grid

Letters: T frames, S tokens of a frame, h × w patch grid, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..spec import CacheSpec
from .arrays import RefusedArrayError

_EXPECTED = "expected (frames, width), (frames, tokens, width) or (frames, height, width, channels)"


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """prefix: tokens before the patches. grid: (h, w), None where there are no patches."""

    prefix: int
    grid: tuple[int, int] | None
    dim: int

    @classmethod
    def of_spec(cls, spec: CacheSpec) -> TokenLayout:
        grid = spec.grid if "patch" in spec.arrays else None
        return cls(prefix=spec.num_prefix, grid=grid, dim=spec.dim)

    @property
    def num_tokens(self) -> int:
        return self.prefix + (self.grid[0] * self.grid[1] if self.grid else 0)

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays that a cache of this layout holds."""
        return (*(("patch",) if self.grid else ()), *(("prefix",) if self.prefix else ()))

    def require(self, shape: tuple[int, ...]) -> None:
        """RefusedArrayError unless an array of this shape is laid out so."""
        found = layout_of(shape, prefix=self.prefix, grid=self.grid)
        if found != self:
            raise RefusedArrayError(
                f"shape {shape}, but the cache holds {self.num_tokens} tokens a frame "
                f"({self.describe()}), expected (frames, {self.num_tokens}, {self.dim})"
            )

    def describe(self) -> str:
        """Such as `1 prefix + 14x14, width 1024`."""
        parts = [f"{self.prefix} prefix"] if self.prefix else []
        parts += [f"{self.grid[0]}x{self.grid[1]}"] if self.grid else []
        return f"{' + '.join(parts)}, width {self.dim}"

    def split(self, block: NDArray[np.floating]) -> dict[str, NDArray[np.floating]]:
        """A block of frames as the arrays of an entry: patch (t, h·w, D), prefix (t, p, D)."""
        tokens = block.reshape(len(block), self.num_tokens, self.dim)  # t S D
        return {"patch": tokens[:, self.prefix :], "prefix": tokens[:, : self.prefix]}


def layout_of(
    shape: tuple[int, ...], *, prefix: int | None = None, grid: tuple[int, int] | None = None
) -> TokenLayout:
    """The layout of an array, what is not given being guessed where only one guess is square.

    Without `grid`, S − prefix must be a square; without both, S is a grid when it is a square, and
    else one CLS token before a grid. RefusedArrayError says what was expected.
    """
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise RefusedArrayError(f"shape {shape}, {_EXPECTED}, nothing of it empty")
    if len(shape) == 4:
        return _of_grid(shape, prefix=prefix, grid=grid)
    tokens = shape[1] if len(shape) == 3 else 1
    if prefix is None:
        prefix = _left_over(tokens, grid, shape) if grid else _guess_prefix(tokens, shape)
    patches = tokens - prefix
    if grid is None and patches > 0:
        side = math.isqrt(patches)
        if side * side != patches:
            raise RefusedArrayError(
                f"shape {shape}: {patches} patches after {prefix} prefix tokens are no square; "
                "give --grid HxW"
            )
        grid = (side, side)
    if prefix < 0 or patches != (grid[0] * grid[1] if grid else 0):
        parts = [f"{prefix} prefix"] if prefix > 0 else []
        parts += [f"a grid of {grid[0]}x{grid[1]}"] if grid else []
        raise RefusedArrayError(
            f"shape {shape}: {tokens} tokens a frame, expected {' + '.join(parts)}"
        )
    return TokenLayout(prefix=prefix, grid=grid, dim=shape[-1])


def _left_over(tokens: int, grid: tuple[int, int], shape: tuple[int, ...]) -> int:
    """Prefix tokens beside a grid; as many as patches are more likely a mistaken grid."""
    left = tokens - grid[0] * grid[1]
    if left >= grid[0] * grid[1]:
        raise RefusedArrayError(
            f"shape {shape}: beside a grid of {grid[0]}x{grid[1]} there would be {left} prefix "
            "tokens; give --prefix too if that is right"
        )
    return left


def _guess_prefix(tokens: int, shape: tuple[int, ...]) -> int:
    for prefix in (0, 1):
        if math.isqrt(tokens - prefix) ** 2 == tokens - prefix:
            return prefix
    raise RefusedArrayError(
        f"shape {shape}: neither {tokens} nor {tokens - 1} tokens are a square grid; "
        "give --prefix N or --grid HxW"
    )


def _of_grid(
    shape: tuple[int, ...], *, prefix: int | None, grid: tuple[int, int] | None
) -> TokenLayout:
    _, height, width, dim = shape
    if prefix:
        raise RefusedArrayError(
            f"shape {shape} is a patch grid, which has no {prefix} prefix tokens"
        )
    if grid is not None and grid != (height, width):
        raise RefusedArrayError(f"shape {shape}, expected (frames, {grid[0]}, {grid[1]}, channels)")
    if grid is None and width == dim != height:
        raise RefusedArrayError(
            f"shape {shape} looks like (frames, channels, height, width); move the channels to the "
            f"end, or give --grid {height}x{width} if it is right"
        )
    return TokenLayout(prefix=0, grid=(height, width), dim=dim)
