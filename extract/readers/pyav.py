"""The default reader: PyAV, exact and lazy.

The packets' own times say which frames are wanted. For each run of packets that holds some, the
reader seeks to the keyframe it starts from, decodes to the last wanted frame and goes on to the
next run. In H.264 and HEVC, frames that no other frame refers to are not even decoded unless they
are wanted. Where this shortcut is not certain to give what plain decoding from start to end gives,
or fails to show a wanted frame, the reader decodes plainly instead.

Letters: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream as AVVideoStream
from numpy.typing import NDArray

from ..sampling import Moments, Segment, TargetClock, frames_for_targets, plan_segments
from .base import (
    MAX_DAMAGED_FRACTION,
    MAX_PIXELS,
    FrameBatch,
    OpenVideo,
    ReadMethod,
    VideoError,
    VideoInfo,
    clock_over,
)
from .batching import ShownFrame, batch_frames
from .container import check_size, explain, open_container
from .timeline import PacketSource, VideoPacket, read_timeline


class PyAVReader:
    """Reads with FFmpeg through PyAV, one decoding thread a video."""

    name = "pyav"
    version = av.__version__

    def open(self, path: Path, *, moments: Moments, max_pixels: int = MAX_PIXELS) -> PyAVStream:
        """Read the file's packets and plan which to decode; no frame is decoded yet."""
        return PyAVStream(Path(path), moments=moments, max_pixels=max_pixels)


class _NotExactError(Exception):
    """The attempt under way cannot promise what plain decoding gives; no wrong frame was shown."""


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A decoded frame answers every target that is not answered yet, up to `stop` (exclusive)."""

    frame: VideoFrame
    pts: int
    stop: int


class PyAVStream(OpenVideo):
    """One video; see `VideoStream` for what it promises.

    Three attempts, each going on where the one before gave up: seeking, plain decoding that stops
    at the first sign of damage, and plain decoding that counts damage and carries on.
    """

    def __init__(self, path: Path, *, moments: Moments, max_pixels: int) -> None:
        self._path = path
        self._max_pixels = max_pixels
        self._damaged = 0
        self._reformatter = VideoReformatter()
        with ExitStack() as stack:
            container, stream = stack.enter_context(open_container(path, max_pixels=max_pixels))
            self._timeline = timeline = read_timeline(container, stream, path=path)
            duration = (timeline.end - timeline.first) * timeline.time_base
            clock = clock_over(path, moments, duration)
            self._clock = TargetClock.of(clock, first=timeline.first, time_base=timeline.time_base)
            self._num_targets = clock.count
            self._info = VideoInfo(
                duration_seconds=float(duration),
                first_pts_seconds=float(timeline.first * timeline.time_base),
                num_targets=self._num_targets,
                width=stream.codec_context.width,
                height=stream.codec_context.height,
                codec=stream.codec_context.codec.canonical_name,
                container=container.format.name,
            )
            self._method: ReadMethod = "seek" if timeline.is_seekable else "sequential"
            # Seeking relies on what demuxing taught this container about the file.
            self._opened = (container, stream)
            self._count_damage(timeline.missing + timeline.damaged)
            self._resources = stack.pop_all()

    @property
    def damaged_frames(self) -> int:
        return self._damaged

    @property
    def method(self) -> ReadMethod:
        return self._method

    def close(self) -> None:
        self._resources.close()

    def __iter__(self) -> Iterator[FrameBatch]:
        with closing(self._shown_frames()) as shown:
            yield from batch_frames(shown, num_targets=self._num_targets)

    def _shown_frames(self) -> Generator[ShownFrame, None, None]:
        answered = 0
        for attempt in self._attempts():
            try:
                with closing(attempt()) as answers:
                    for answer in answers:
                        # A later attempt starts over; what is answered already stays answered.
                        if answer.stop > answered:
                            yield self._show(answer, num_targets=answer.stop - answered)
                            answered = answer.stop
            except _NotExactError:
                continue
            return

    def _attempts(self) -> Iterator[Callable[[], Generator[_Answer, None, None]]]:
        if self._timeline.is_seekable:
            yield self._by_seeking
        self._method = "sequential"
        yield self._plainly
        yield self._plainly_despite_damage

    def _show(self, answer: _Answer, *, num_targets: int) -> ShownFrame:
        width, height = answer.frame.width, answer.frame.height
        check_size(self._path, width, height, max_pixels=self._max_pixels)
        try:
            picture = upright_rgb(answer.frame, self._reformatter)
        except FFmpegError as error:
            raise VideoError(
                self._path,
                f"its pixel format {answer.frame.format.name} cannot be converted to RGB "
                f"({explain(error)})",
            ) from error
        return ShownFrame(
            picture=picture,
            pts_seconds=float(answer.pts * self._timeline.time_base),
            num_targets=num_targets,
        )

    # ── attempt 1: seek ───────────────────────────────────────────────────────────────────────

    def _by_seeking(self) -> Generator[_Answer, None, None]:
        container, stream = self._opened
        decoder = _strict(stream.codec_context)
        timeline = self._timeline
        stops = self._targets_of_packets()
        plan = plan_segments(list(stops), pts=timeline.pts, is_keyframe=timeline.is_keyframe)
        for segment in plan:
            wanted = iter(segment.wanted)
            position = next(wanted)
            for frame in self._decode_segment(container, stream, decoder, segment):
                if frame.pts is None or frame.pts < timeline.pts[position]:
                    continue
                if frame.pts > timeline.pts[position] or frame.is_corrupt:
                    raise _NotExactError
                yield _Answer(frame=frame, pts=frame.pts, stop=stops[position])
                position = next(wanted, -1)
                if position < 0:
                    break
            if position >= 0:
                raise _NotExactError

    def _targets_of_packets(self) -> dict[int, int]:
        """Position of each wanted packet → one past the last target that its frame answers."""
        timeline = self._timeline
        chosen = frames_for_targets(
            timeline.pts[timeline.shown], clock=self._clock, num_targets=self._num_targets
        )  # targets
        stops: dict[int, int] = {}
        stop = 0
        for index, same in groupby(chosen.tolist()):
            stop += sum(1 for _ in same)
            stops[int(timeline.shown[index])] = stop
        return stops

    def _decode_segment(
        self,
        container: InputContainer,
        stream: AVVideoStream,
        decoder: VideoCodecContext,
        segment: Segment,
    ) -> Iterator[VideoFrame]:
        may_skip, wanted = _says_what_is_referred_to(decoder), frozenset(segment.wanted)
        try:
            for position, packet in self._packets_from(container, stream, segment.start):
                if may_skip:
                    decoder.skip_frame = "DEFAULT" if position in wanted else "NONREF"
                try:
                    yield from decoder.decode(packet)
                except FFmpegError:
                    # Decoded after the keyframe but shown before it, a frame refers to what lies
                    # before: it fails here, and nothing that is shown later refers to it.
                    if packet.pts is None or packet.pts >= self._timeline.pts[segment.start]:
                        raise
                if position + 1 >= segment.stop:
                    break
            yield from decoder.decode(None)
        except FFmpegError as error:
            raise _NotExactError from error

    def _packets_from(
        self, container: InputContainer, stream: AVVideoStream, start: int
    ) -> Iterator[tuple[int, VideoPacket]]:
        """The packets from the keyframe at `start` on, each checked to be the expected one.

        Seeking also empties the decoder, so that nothing of the segment before is left in it.
        """
        pts = self._timeline.pts
        container.seek(int(pts[start]), stream=stream)
        position = -1
        for packet in container.demux(stream):
            if packet.size == 0:
                break
            if position < 0:
                position = self._position_of(packet, latest=start)
            if position >= len(pts) or packet.pts != pts[position] or packet.is_corrupt:
                raise _NotExactError
            yield position, packet
            position += 1

    def _position_of(self, packet: VideoPacket, *, latest: int) -> int:
        """Where a seek has landed: a keyframe, at or before the one that was asked for."""
        matches = np.flatnonzero(self._timeline.pts == packet.pts)
        if len(matches) != 1 or matches[0] > latest or not self._timeline.is_keyframe[matches[0]]:
            raise _NotExactError
        return int(matches[0])

    # ── attempts 2 and 3: decode from start to end ────────────────────────────────────────────

    def _plainly(self) -> Generator[_Answer, None, None]:
        with self._reopened() as (container, stream):
            source = PacketSource(container, stream)
            decoder = _strict(stream.codec_context)
            yield from self._last_not_after(self._decode_strictly(source, decoder), is_strict=True)

    def _decode_strictly(
        self, source: PacketSource, decoder: VideoCodecContext
    ) -> Iterator[VideoFrame]:
        try:
            for packet in source:
                if packet.is_corrupt:
                    raise _NotExactError
                yield from decoder.decode(packet)
            yield from decoder.decode(None)
        except FFmpegError as error:
            raise _NotExactError from error

    def _plainly_despite_damage(self) -> Generator[_Answer, None, None]:
        with self._reopened() as (container, stream), self._reopened() as (_, second):
            frames = self._decode_counting(
                PacketSource(container, stream),
                _single_threaded(stream.codec_context),
                _strict(second.codec_context),
            )
            yield from self._last_not_after(frames, is_strict=False)

    def _decode_counting(
        self, source: PacketSource, decoder: VideoCodecContext, critic: VideoCodecContext
    ) -> Iterator[VideoFrame]:
        """Decode with concealment, while a strict decoder beside it says which packets are damaged.

        A decoder that conceals damage reports little of it, so the larger count is believed.
        """
        before = self._damaged
        concealed = criticised = 0
        for packet in chain(source, (None,)):
            frames, failed = _try_decode(decoder, packet)
            _, criticism = _try_decode(critic, packet)
            # A packet that came out of the container damaged is in the count already.
            if packet is None or not packet.is_corrupt:
                concealed += failed + sum(frame.is_corrupt for frame in frames)
                criticised += criticism
            self._count_damage(before + max(concealed, criticised) - self._damaged)
            yield from frames

    def _last_not_after(
        self, frames: Iterator[VideoFrame], *, is_strict: bool
    ) -> Iterator[_Answer]:
        """The definition itself: every frame is shown from its pts until the next frame's."""
        held: VideoFrame | None = None
        held_pts = 0
        for frame, pts in self._with_pts(frames):
            if pts is None or (held is not None and pts < held_pts):
                if is_strict:
                    raise _NotExactError
                self._count_damage(1)
                continue
            if held is not None:
                stop = min(self._clock.num_before(pts), self._num_targets)
                yield _Answer(frame=held, pts=held_pts, stop=stop)
                if stop == self._num_targets:
                    return
            held, held_pts = frame, pts
        if held is None:
            if is_strict:
                raise _NotExactError
            raise VideoError(
                self._path, f"none of its {self._timeline.num_frames} frames can be decoded"
            )
        yield _Answer(frame=held, pts=held_pts, stop=self._num_targets)

    def _with_pts(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[VideoFrame, int | None]]:
        if not self._timeline.by_slot:
            yield from (
                (frame, frame.pts if frame.pts is not None else frame.dts) for frame in frames
            )
            return
        slots = self._timeline.pts[self._timeline.shown].tolist()
        yield from zip(frames, slots, strict=False)

    @contextmanager
    def _reopened(self) -> Iterator[tuple[InputContainer, AVVideoStream]]:
        with open_container(self._path, max_pixels=self._max_pixels) as opened:
            yield opened

    def _count_damage(self, num_frames: int) -> None:
        """Add to the count; raise VideoError when too much of the video is damaged to be used."""
        self._damaged += num_frames
        total = self._timeline.num_frames
        if self._damaged > MAX_DAMAGED_FRACTION * total:
            missing = self._timeline.missing
            cut = f" ({missing} lie beyond the end of the file)" if missing else ""
            raise VideoError(
                self._path,
                f"at least {self._damaged} of its {total} frames are damaged{cut}, more than the "
                f"{MAX_DAMAGED_FRACTION:.0%} that is accepted; get an undamaged copy",
            )


def upright_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """The frame as uint8 (H, W, 3), turned as the file asks; a view, no copy of the pixels."""
    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
    plane = rgb.planes[0]
    picture: NDArray[np.uint8] = np.ndarray(
        (rgb.height, rgb.width, 3),
        np.uint8,
        buffer=memoryview(plane),
        strides=(plane.line_size, 3, 1),
    )  # H W 3
    # Degrees counter-clockwise. A display matrix that is no rotation gives nonsense: leave it.
    degrees = frame.rotation if abs(frame.rotation) <= 180 else 0
    return np.rot90(picture, k=round(degrees / 90))


def _single_threaded(context: VideoCodecContext) -> VideoCodecContext:
    """A second thread a video costs 15–35 % more CPU; videos are read side by side instead."""
    context.thread_count = 1
    context.thread_type = "NONE"
    return context


def _strict(context: VideoCodecContext) -> VideoCodecContext:
    """A decoder that reports damage (bad data, a missing reference) instead of concealing it."""
    context.options = {**context.options, "err_detect": "explode"}
    return _single_threaded(context)


def _says_what_is_referred_to(context: VideoCodecContext) -> bool:
    """Whether frames that the bitstream marks as not referred to can be left out safely.

    H.264 marks them outright. HEVC marks them within a temporal layer only, so it must have no
    more than one; byte 21 of its configuration record (ISO/IEC 14496-15, 8.3.3.1.2) tells.
    """
    if context.codec.canonical_name == "h264":
        return True
    record = context.extradata or b""
    has_record = context.codec.canonical_name == "hevc" and len(record) > 21 and record[0] == 1
    return has_record and record[21] >> 3 & 7 == 1


def _try_decode(
    decoder: VideoCodecContext, packet: VideoPacket | None
) -> tuple[list[VideoFrame], bool]:
    """The frames that a packet (None: the end) gives, and whether the decoder reported damage."""
    try:
        return decoder.decode(packet), False
    except FFmpegError:
        return [], True
