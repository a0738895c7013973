"""Reading with decord: selectable, fast, and not exact on every kind of file.

decord seeks by frame number and does not say when it lands wrong: with open groups of pictures,
HEVC, edit lists and MPEG-TS it can return other frames than were asked for, and it reports no
damage. Its frames are taken as they come. A reader that stays alive decodes ahead without bound,
so one is opened for every chunk of frames and deleted right after. It must not be used in a forked
process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import decord
import numpy as np
from decord import DECORDError
from numpy.typing import NDArray

from ..sampling import Moments
from .base import MAX_PIXELS, FrameBatch, OpenVideo, ReadMethod, VideoError, VideoInfo, clock_over
from .batching import ShownFrame, batch_frames
from .container import check_size, open_container

MAX_CHUNK_BYTES = 128 * 2**20
"""Opening costs time and some memory that decord never returns, so a chunk is several batches."""

MAX_SECONDS = 1e9
"""A time beyond this is decord's way of saying that it knows none."""

_ROUNDING = Fraction(1, 1_000_000)  # seconds that a duration of floats may be off


class DecordReader:
    """Reads with decord and its own FFmpeg 4.1, one decoding thread a video."""

    name = "decord"
    version: str = decord.__version__

    def __init__(self) -> None:
        # Its FFmpeg writes to the terminal; what matters of it comes back as an error.
        decord.logging.set_level(decord.logging.QUIET)

    def open(self, path: Path, *, moments: Moments, max_pixels: int = MAX_PIXELS) -> DecordStream:
        """Read the file's frame times; no frame is decoded yet."""
        return DecordStream(Path(path), moments=moments, max_pixels=max_pixels)


class DecordStream(OpenVideo):
    """One video; see `VideoStream` for what it promises, and above for what decord does not."""

    damaged_frames = 0
    method: ReadMethod = "seek"

    def __init__(self, path: Path, *, moments: Moments, max_pixels: int) -> None:
        self._path = path
        with open_container(path, max_pixels=max_pixels) as (container, stream):
            context, container_name = stream.codec_context, container.format.name
            coded = (context.width, context.height)
            codec = context.codec.canonical_name
        begins, ends = self._frame_times()
        self._begins = begins
        duration = max(float(ends.max() - begins[0]), 0.0)
        clock = clock_over(path, moments, Fraction(duration), rounding=_ROUNDING)
        # decord's times are float32: a frame that begins at a target may seem to begin after it.
        targets = begins[0] + clock.seconds()
        targets += np.spacing(targets.astype(np.float32)).astype(np.float64)
        self._indices = np.maximum(np.searchsorted(begins, targets, side="right") - 1, 0)
        self._max_pixels = max_pixels
        self._info = VideoInfo(
            duration_seconds=duration,
            first_pts_seconds=float(begins[0]),
            num_targets=clock.count,
            width=coded[0],
            height=coded[1],
            codec=codec,
            container=container_name,
        )

    def close(self) -> None:
        """Nothing stays open between chunks."""

    def __iter__(self) -> Iterator[FrameBatch]:
        return batch_frames(self._shown_frames(), num_targets=len(self._indices))

    def _shown_frames(self) -> Iterator[ShownFrame]:
        runs = [(index, sum(1 for _ in same)) for index, same in groupby(self._indices.tolist())]
        coded_bytes = 3 * self._info.width * self._info.height
        chunk = max(1, MAX_CHUNK_BYTES // coded_bytes)
        for first in range(0, len(runs), chunk):
            part = runs[first : first + chunk]
            frames = self._decode([index for index, _ in part])  # T H W 3
            check_size(self._path, frames.shape[2], frames.shape[1], max_pixels=self._max_pixels)
            for picture, (index, num_targets) in zip(frames, part, strict=True):
                yield ShownFrame(
                    picture=picture,
                    pts_seconds=float(self._begins[index]),
                    num_targets=num_targets,
                )

    def _frame_times(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """When each frame begins and ends, in seconds and in ascending order: float64 (frames,)."""
        try:
            reader = decord.VideoReader(
                str(self._path.absolute()), ctx=decord.cpu(0), num_threads=1
            )
            times = reader.get_frame_timestamp(range(len(reader)))
        except _DECORD_ERRORS as error:
            raise VideoError(
                self._path, f"decord cannot read it: {_what_it_says(error)}"
            ) from error
        if len(times) == 0 or not (np.abs(times) < MAX_SECONDS).all():
            raise VideoError(self._path, "decord finds no usable frame times in it")
        times = np.asarray(times, dtype=np.float64)  # frames 2
        return np.sort(times[:, 0]), times[:, 1]

    def _decode(self, indices: list[int]) -> NDArray[np.uint8]:
        """The frames of these numbers: uint8 (T, H, W, 3)."""
        try:
            reader = decord.VideoReader(
                str(self._path.absolute()), ctx=decord.cpu(0), num_threads=1
            )
            batch = reader.get_batch(indices)
            del reader
            frames: NDArray[np.uint8] = batch.asnumpy()
        except _DECORD_ERRORS as error:
            raise VideoError(
                self._path, f"decord cannot decode it: {_what_it_says(error)}"
            ) from error
        return frames


# DECORDError derives from Exception alone.
_DECORD_ERRORS = (DECORDError, RuntimeError, IndexError, ValueError, StopIteration)


# "[04:50:07] /build/src/threaded_decoder.cc:218: ", before what is said
_SOURCE_LINE = re.compile(r"(\[\d+:\d+:\d+\] )?\S+\.(cc|h):\d+: ")
_OWN_PATH = re.compile(r"^\[/[^\]]*\] ")


def _what_it_says(error: Exception) -> str:
    """decord's message without the native source lines and stack trace that surround it."""
    said = _SOURCE_LINE.sub("", str(error).split("Stack trace")[0])
    said = _OWN_PATH.sub("", said)
    return " ".join(said.split()) or type(error).__name__
