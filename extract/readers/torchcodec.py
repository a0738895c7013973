"""Reading with torchcodec in its exact mode: selectable, an optional extra.

torchcodec is built against one torch and finds the system's FFmpeg when it is imported; where
either does not fit, importing this module fails. Exact mode scans the file's packets first and is
right except on MPEG-TS and AVI. Damage that FFmpeg conceals is not reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import torchcodec
from torchcodec.decoders import VideoDecoder

from ..sampling import Moments
from .base import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FRAMES,
    MAX_PIXELS,
    FrameBatch,
    OpenVideo,
    ReadMethod,
    VideoError,
    VideoInfo,
    clock_over,
)
from .container import check_size, open_container

# A target is a sum of floats; this is below one tick of any time base in use.
_ROUNDING_SECONDS = 1e-6


class TorchCodecReader:
    """Reads with torchcodec and the system's FFmpeg, one decoding thread a video."""

    name = "torchcodec"
    version: str = torchcodec.__version__

    def open(
        self, path: Path, *, moments: Moments, max_pixels: int = MAX_PIXELS
    ) -> TorchCodecStream:
        """Scan the file's packets; no frame is decoded yet."""
        return TorchCodecStream(Path(path), moments=moments, max_pixels=max_pixels)


class TorchCodecStream(OpenVideo):
    """One video; see `VideoStream` for what it promises."""

    damaged_frames = 0
    method: ReadMethod = "seek"

    def __init__(self, path: Path, *, moments: Moments, max_pixels: int) -> None:
        self._path = path
        self._decoder: VideoDecoder | None = None
        with open_container(path, max_pixels=max_pixels) as (container, stream):
            index, container_name = stream.index, container.format.name
            codec = stream.codec_context.codec.canonical_name
            coded = (stream.codec_context.width, stream.codec_context.height)
        try:
            self._decoder = decoder = VideoDecoder(
                path.absolute(),
                stream_index=index,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode="exact",
            )
            begin = float(decoder.metadata.begin_stream_seconds)
            end = float(decoder.metadata.end_stream_seconds)
        except _TORCHCODEC_ERRORS as error:
            raise VideoError(path, f"torchcodec cannot read it: {_what_it_says(error)}") from error
        clock = clock_over(
            path, moments, Fraction(end - begin), rounding=Fraction(_ROUNDING_SECONDS)
        )
        self._max_pixels = max_pixels
        self._targets = begin + clock.seconds()  # targets
        # A target just past the last frame's end, by rounding alone, still has that frame.
        self._targets = np.minimum(self._targets, end - 2 * _ROUNDING_SECONDS)
        self._info = VideoInfo(
            duration_seconds=end - begin,
            first_pts_seconds=begin,
            num_targets=clock.count,
            width=coded[0],
            height=coded[1],
            codec=codec,
            container=container_name,
        )

    def close(self) -> None:
        """Let go of the decoder and its file."""
        self._decoder = None

    def __iter__(self) -> Iterator[FrameBatch]:
        bytes_per_frame = 3 * self._info.width * self._info.height
        size = max(1, min(MAX_BATCH_FRAMES, MAX_BATCH_BYTES // bytes_per_frame))
        for first in range(0, len(self._targets), size):
            yield self._read(first, self._targets[first : first + size] + _ROUNDING_SECONDS)

    def _read(
        self, index: int, seconds: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> FrameBatch:
        if self._decoder is None:
            raise ValueError("the stream is closed")
        try:
            batch = self._decoder.get_frames_played_at(seconds.tolist())
        except _TORCHCODEC_ERRORS as error:
            reason = f"torchcodec cannot decode it: {_what_it_says(error)}"
            raise VideoError(self._path, reason) from error
        frames = batch.data.numpy()  # T H W 3
        check_size(self._path, frames.shape[2], frames.shape[1], max_pixels=self._max_pixels)
        pts_seconds = batch.pts_seconds.numpy().astype(np.float64)
        return FrameBatch(frames=frames, pts_seconds=pts_seconds, index=index)


# "decodeAVFrame, /build/src/SingleStreamDecoder.cpp:1436, ", before what is said
_SOURCE_LINE = re.compile(r"^\w+, \S+\.(cpp|h):\d+, ")
_TORCHCODEC_ERRORS = (RuntimeError, IndexError, ValueError)


def _what_it_says(error: Exception) -> str:
    """torchcodec's message without the native function and source line before it."""
    first = str(error).strip().partition("\n")[0]
    return _SOURCE_LINE.sub("", first) or type(error).__name__
