"""The packets of a video stream, read once without decoding: times, keyframes, what is missing.

Headers lie about rates and frame counts; packets do not. What is learnt here decides which frames
are asked for and where decoding has to begin. Nothing here decodes.

Letters: P packets, in decode order.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream as AVVideoStream
from numpy.typing import NDArray

from ..sampling import end_of_last, is_reachable
from .base import VideoError
from .container import MATROSKA, MP4, SEEKABLE_CONTAINERS
from .truncation import missing_matroska_bytes

VideoPacket: TypeAlias = "Packet[AVVideoStream]"

MAX_DEMUX_ERRORS = 16
"""A demuxer that fails this often in a row has come to the end of what it can find."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One stream as its packets state it.

    pts: int64 (P,), ticks of `time_base` seconds; see `by_slot`.
    is_keyframe: bool (P,). A keyframe that is not shown is still a place to start decoding.
    shown: int64, positions of the packets that are shown, in the order they are shown.
    end: tick at which the last frame stops being shown.
    missing: frames that lie beyond the end of the file, which was cut off (an estimate for
        Matroska, which states bytes and not frames).
    damaged: packets that the demuxer knows to be damaged, and places where it lost its way.
    is_seekable: whether frames may be found by seeking: pts are complete, unique and trusted.
    by_slot: the container states no presentation times; `pts` are its slots in decode order, and
        the frames, in the order the decoder shows them, fill the slots in ascending order.
    """

    time_base: Fraction
    pts: NDArray[np.int64]
    is_keyframe: NDArray[np.bool_]
    shown: NDArray[np.int64]
    end: int
    missing: int
    damaged: int
    is_seekable: bool
    by_slot: bool

    @property
    def first(self) -> int:
        """When the first frame is shown, in ticks."""
        return int(self.pts[self.shown[0]])

    @property
    def num_frames(self) -> int:
        """Frames that should be shown, missing ones included."""
        return len(self.shown) + self.missing


class PacketSource:
    """The packets of one stream in file order; damage of the container is counted and passed."""

    def __init__(self, container: InputContainer, stream: AVVideoStream) -> None:
        self._container = container
        self._stream = stream
        self.demux_errors = 0

    def __iter__(self) -> Iterator[VideoPacket]:
        in_a_row = 0
        while in_a_row < MAX_DEMUX_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    in_a_row = 0
                    if packet.size:  # the empty packet at the end only asks decoders to drain
                        yield packet
                return
            except FFmpegError:
                in_a_row += 1
                self.demux_errors += 1


def read_timeline(container: InputContainer, stream: AVVideoStream, *, path: Path) -> Timeline:
    """Demux the whole stream once. Raises VideoError when it holds no packet with a time."""
    by_slot = _has_slots_only(container, stream)
    pts, keyframe, discard = array("q"), array("b"), array("b")
    last_pts, last_duration, num_untimed, num_corrupt = -(2**63), 0, 0, 0
    source = PacketSource(container, stream)
    for packet in source:
        time = packet.dts if by_slot or packet.pts is None else packet.pts
        num_untimed += packet.pts is None
        num_corrupt += packet.is_corrupt
        if time is None:
            continue
        pts.append(time)
        keyframe.append(packet.is_keyframe)
        discard.append(packet.is_discard)
        if not packet.is_discard and time >= last_pts:
            last_pts, last_duration = time, packet.duration or 0
    if not pts or stream.time_base is None:
        raise VideoError(path, "its video stream holds no packet with a time")
    ticks, is_keyframe = np.array(pts, np.int64), np.array(keyframe, np.bool_)
    shown = _shown_in_order(ticks, is_keyframe, ~np.array(discard, np.bool_))
    if not len(shown):
        raise VideoError(path, "every frame of its video stream is marked as not to be shown")
    trusted = container.format.name in SEEKABLE_CONTAINERS and not source.demux_errors
    return Timeline(
        time_base=stream.time_base,
        pts=ticks,
        is_keyframe=is_keyframe,
        shown=shown,
        end=end_of_last(ticks[shown], last_duration=last_duration),
        missing=_count_missing(container, stream, path=path, num_present=len(ticks)),
        damaged=num_corrupt + source.demux_errors,
        is_seekable=trusted and not num_untimed and len(np.unique(ticks)) == len(ticks),
        by_slot=by_slot,
    )


def _shown_in_order(
    pts: NDArray[np.int64], is_keyframe: NDArray[np.bool_], is_shown: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Positions of the frames a decoder will show, by time; equal times keep decode order."""
    reachable = is_reachable(pts, is_keyframe)
    # Damaged streams state no keyframe at all; then only decoding tells what can be shown.
    candidates = np.flatnonzero(is_shown & reachable if reachable.any() else is_shown)
    return np.asarray(candidates[np.argsort(pts[candidates], kind="stable")])


def _has_slots_only(container: InputContainer, stream: AVVideoStream) -> bool:
    """Whether pts are a guess: AVI has none, and for these codecs FFmpeg ignores the reordering."""
    context = stream.codec_context
    return container.format.name == "avi" and context.codec.canonical_name in ("h264", "hevc")


def _count_missing(
    container: InputContainer, stream: AVVideoStream, *, path: Path, num_present: int
) -> int:
    file_bytes = path.stat().st_size
    if container.format.name == MP4:
        return sum(entry.pos >= file_bytes for entry in stream.index_entries)
    if container.format.name == MATROSKA:
        return round(num_present * missing_matroska_bytes(path) / file_bytes)
    return 0
