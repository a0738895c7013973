"""An array of tokens in some file, as every format hands it out. Knows no format.

Letters: T frames, S tokens of a frame, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheFormatError
from ..fields import as_number

Bounds = Iterable[tuple[int, int]]
Blocks = Iterator[NDArray[Any]]
OnProgress = Callable[[int, int, str], None]  # done, total, what is in hand
MAX_WHOLE_BYTES = 1 << 30
"""What can only be read whole (a compressed chunk, an array in Fortran order) may be so large."""

FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")


class RefusedArrayError(Exception):
    """A file or array cannot be taken; the message is the reason, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class FrameTimes:
    """pts_seconds: of each frame. duration_seconds: of the video."""

    pts_seconds: tuple[float, ...]
    duration_seconds: float


@dataclass(frozen=True, kw_only=True)
class TokenArray:
    """One array of an open file.

    name: inside the file, empty where the file is one array. dtype: a NumPy name, or `bfloat16`.
    blocks: values of consecutive [start, stop) along the first axis, from 0 and without gaps, of a
    floating type that holds them (float32 for bfloat16). entry_id: the video's id where the file
    says it. times: of the frames, where the file says them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[Bounds], Blocks]
    entry_id: str | None = None
    times: FrameTimes | None = None


OpenFile = Callable[[Path], AbstractContextManager[list[TokenArray]]]


def require_floats(dtype: str) -> None:
    """Tokens are floating-point numbers; anything else in a file is refused as no tokens."""
    if dtype not in FLOAT_TYPES:
        raise RefusedArrayError(f"values of type {dtype}, expected {', '.join(FLOAT_TYPES)}")


def frame_times(pts_seconds: object, duration_seconds: object) -> FrameTimes | None:
    """Times out of an untrusted file: finite numbers that never go back, in seconds; else None."""
    if not isinstance(pts_seconds, list):
        return None
    try:
        pts = tuple(as_number(pts, "pts_seconds", name="") for pts in pts_seconds)
        duration = as_number(duration_seconds, "duration_seconds", name="")
    except CacheFormatError:
        return None
    if not pts or duration <= 0 or any(later < earlier for earlier, later in pairwise(pts)):
        return None
    return FrameTimes(pts_seconds=pts, duration_seconds=duration)


def sliced(array: Any) -> Callable[[Bounds], Blocks]:
    """Blocks of whatever can be sliced: a memory map, an HDF5 dataset."""

    def blocks(bounds: Bounds) -> Blocks:
        for start, stop in bounds:
            yield np.asarray(array[start:stop])

    return blocks


def dtype_name(dtype: np.dtype[Any]) -> str:
    """`float64` whatever the byte order; records and objects by NumPy's own word."""
    return dtype.newbyteorder("=").name


def block_bounds(
    num_frames: int, *, frames: int, first: int | None = None
) -> Iterator[tuple[int, int]]:
    """[0, T) in pieces of `frames`; the first may have another size."""
    start = 0
    while start < num_frames:
        stop = min(num_frames, start + (first if first and not start else frames))
        yield start, stop
        start = stop
