"""Opening a video file safely: known containers only, local files only, bounded pictures.

Every reader opens files through this module first, so that a bad file gives the same one-line
reason whichever reader was asked for. It knows containers and streams; it decodes no frame.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Discard, Disposition
from av.video.stream import VideoStream as AVVideoStream

from .base import VideoError
from .truncation import MP4_FIRST_BOXES, top_level_boxes

MP4, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"

SEEKABLE_CONTAINERS = (MP4, MATROSKA)
"""FFmpeg's names of the containers whose packets state pts and keyframes reliably."""

OTHER_CONTAINERS = ("avi", "mpegts", "mpeg", "flv", "asf", "ogg")

KNOWN_CONTAINERS = (*SEEKABLE_CONTAINERS, *OTHER_CONTAINERS)

_EXPECTED = "expected MP4/MOV, Matroska/WebM, AVI, MPEG-TS/PS, FLV, ASF or Ogg"

# FFmpeg follows playlists (ffconcat, HLS, …) to whatever paths and addresses they name. The lists
# are checked after probing and before a demuxer reads anything.
_DEMUXER_OPTIONS = {
    "format_whitelist": ",".join(KNOWN_CONTAINERS),
    "protocol_whitelist": "file",
}


@contextmanager
def open_container(
    path: Path, *, max_pixels: int
) -> Iterator[tuple[InputContainer, AVVideoStream]]:
    """The file's container and its best video stream, closed again on leaving.

    Raises VideoError when it is no readable file, no known container, holds no video, or when its
    pictures are larger than `max_pixels`.
    """
    with _open_file(path, max_pixels=max_pixels) as container:
        stream = _best_video(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width < 1 or height < 1:
            raise VideoError(path, "its video stream states no picture size: it is damaged")
        check_size(path, width, height, max_pixels=max_pixels)
        for other in container.streams:
            if other.index != stream.index:
                other.discard = Discard.all
        yield container, stream


def check_size(path: Path, width: int, height: int, *, max_pixels: int) -> None:
    """Raise VideoError when a picture of this size is more than a caller accepts."""
    if width * height > max_pixels:
        raise VideoError(
            path,
            f"its frames have {width}×{height} = {width * height:,} pixels, expected at most "
            f"{max_pixels:,}: scale it down, or allow more with max_pixels",
        )


def explain(error: FFmpegError) -> str:
    """FFmpeg's own words for an error, without the number and the file name."""
    return (error.strerror or type(error).__name__).rstrip(".")


def _open_file(path: Path, *, max_pixels: int) -> InputContainer:
    check_file(path)
    try:
        # The prefix keeps a file called "concat:…" or "http:…" a file. Metadata in an unknown
        # encoding is no reason to refuse a video. The bound on pixels holds while FFmpeg probes;
        # decoders round sizes up, hence twice.
        return av.open(
            f"file:{path}",
            options={"max_pixels": str(2 * max_pixels), "threads": "1"},
            container_options=_DEMUXER_OPTIONS,
            metadata_errors="replace",
        )
    except UnicodeEncodeError as error:
        raise VideoError(path, "its name is not valid UTF-8: rename it") from error
    except FFmpegError as error:
        raise VideoError(path, _why_unreadable(path, error)) from error


def check_file(path: Path) -> None:
    """Raise VideoError unless `path` is a regular, readable file with something in it."""
    try:
        # Opening a pipe would wait for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise VideoError(path, "there is no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"the file cannot be opened: {reason}") from error
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(path, "is a directory, expected a video file")
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(path, "is not a regular file, expected a video file")
    if status.st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")


def _best_video(container: InputContainer, path: Path) -> AVVideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, AVVideoStream) or stream.disposition & Disposition.attached_pic:
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(path, f"it has no video stream, only: {found}")
    if stream.codec_context is None:
        raise VideoError(path, "there is no decoder for its video codec: convert it")
    return stream


def _why_unreadable(path: Path, error: FFmpegError) -> str:
    """What is most likely wrong with a file that FFmpeg would not open."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            boxes = top_level_boxes(path) if head[4:8] in MP4_FIRST_BOXES else []
    except OSError as failure:
        return f"the file cannot be read: {failure.strerror}"
    if head.startswith(b"ffconcat"):
        return f"a list of other files (ffconcat), which is never followed; {_EXPECTED}"
    if boxes and b"moov" not in boxes:
        return (
            "an MP4 file without its index (no moov box): it was cut off while being written or "
            "copied; get a complete copy"
        )
    if boxes:
        return f"a damaged MP4 file: {explain(error)}"
    if _is_text(head):
        return f"a text file, not a video; {_EXPECTED}"
    return f"not a video container that is read here ({explain(error)}); {_EXPECTED}"


def _is_text(head: bytes) -> bool:
    """Whether the file begins like text: valid UTF-8 without control characters."""
    try:
        text = head[:1024].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head[:1024]) - 4:  # a character cut at the end is still text
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)
