"""Small real video files for tests: many codecs, containers, time lines, and kinds of damage.

Every picture carries its own number as bright and dark blocks that survive compression, so a test
can say which frame it was given without trusting any decoder's timestamps.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
NUMBER_BITS = 8
MILLISECOND = Fraction(1, 1000)


def picture(number: int) -> np.ndarray:
    """uint8 (HEIGHT, WIDTH, 3): `number` in the top third, a texture that moves below."""
    texture = np.random.default_rng(7).integers(60, 200, (HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
    frame = texture[:, np.arange(WIDTH) + number * 2 % WIDTH].copy()
    block, rows = WIDTH // NUMBER_BITS, HEIGHT // 3
    for bit in range(NUMBER_BITS):
        frame[:rows, bit * block : (bit + 1) * block] = 230 if number >> bit & 1 else 20
    return frame


def number_of(frame: np.ndarray) -> int:
    """Which `picture` a decoded, upright frame shows."""
    block, rows = frame.shape[1] // NUMBER_BITS, frame.shape[0] // 3
    number = 0
    for bit in range(NUMBER_BITS):
        patch = frame[4 : rows - 4, bit * block + 2 : (bit + 1) * block - 2]
        number |= int(patch.mean() > 125) << bit
    return number


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A written file. times[i] is when picture numbers[i] begins to be shown, in seconds.

    The coded pictures have to be turned by `degrees_clockwise` to stand upright.
    """

    path: Path
    times: tuple[Fraction, ...]
    numbers: tuple[int, ...]
    last_duration: Fraction
    degrees_clockwise: int = 0

    def number_at(self, time: Fraction) -> int:
        """The definition of sampling: the last picture that begins no later than `time`."""
        return max((t, n) for t, n in zip(self.times, self.numbers, strict=True) if t <= time)[1]

    def targets(self, fps: Fraction) -> list[Fraction]:
        """Every moment first + k / fps before the end of the last picture."""
        moments, end = [self.times[0]], self.times[-1] + self.last_duration
        while moments[-1] + 1 / fps < end:
            moments.append(moments[-1] + 1 / fps)
        return moments


def write_clip(
    path: Path,
    *,
    codec: str = "libx264",
    container: str | None = None,
    num_frames: int = 40,
    degrees_clockwise: int = 0,
    times: Sequence[int] | None = None,
    rate: int = 10,
    gop: int = 12,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    with_audio: bool = False,
    clock_shift: Fraction = Fraction(0),
    sink: io.RawIOBase | None = None,
) -> Clip:
    """Encode `num_frames` pictures, at `rate` or at `times` (milliseconds).

    The pictures are coded lying, so that turning them by `degrees_clockwise` puts them upright.

    `clock_shift` states by how much the container is known to move the whole time line.
    """
    milliseconds = (
        list(times) if times is not None else [1000 * i // rate for i in range(num_frames)]
    )
    gaps = [b - a for a, b in pairwise(milliseconds)]
    shown_for = [*gaps, gaps[-1] if gaps else 1000 // rate]
    # A variable rate needs the fine clock; a fixed rate needs ticks that MPEG-4 can state.
    time_base = MILLISECOND if times is not None else Fraction(1, rate)
    with av.open(
        sink or str(path), "w", format=container, options=container_options or {}
    ) as output:
        stream = output.add_stream(
            codec, rate=rate if times is None else 1000, options=options or {}
        )
        stream.width, stream.height = (
            (WIDTH, HEIGHT) if not degrees_clockwise % 180 else (HEIGHT, WIDTH)
        )
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        audio = _add_audio(output) if with_audio else None
        for number, millisecond in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(np.rot90(picture(number), degrees_clockwise // 90)),
                format="rgb24",
            )
            frame.pts, frame.time_base = int(millisecond * MILLISECOND / time_base), time_base
            frame.duration = int(shown_for[number] * MILLISECOND / time_base)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if audio is not None:
            _encode_silence(output, audio, seconds=milliseconds[-1] / 1000 + 1 / rate)
    return Clip(
        path=path,
        times=tuple(clock_shift + m * MILLISECOND for m in milliseconds),
        numbers=tuple(range(len(milliseconds))),
        last_duration=shown_for[-1] * MILLISECOND,
        degrees_clockwise=degrees_clockwise,
    )


def _add_audio(output: av.container.OutputContainer) -> av.AudioStream:
    audio = output.add_stream("aac", rate=8000)
    audio.layout = "mono"
    return audio


def _encode_silence(
    output: av.container.OutputContainer, audio: av.AudioStream, *, seconds: float
) -> None:
    for index in range(int(seconds * 8000) // 1024):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 8000, 1024 * index
        output.mux(audio.encode(frame))
    output.mux(audio.encode(None))


# ── media that every reader is tried on ───────────────────────────────────────────────────────

X264 = {"preset": "veryfast", "crf": "12"}
IRREGULAR = (0, 40, 90, 100, 480, 500, 510, 1490, 1510, 2000, 2001, 2990, 3400, 3410, 3999, 4000)


def write_h264(
    path: Path, *, gop: int = 12, b_frames: int = 2, params: str = "", **more: object
) -> Clip:
    x264 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={b_frames}:b-adapt=0:{params}"
    return write_clip(path, options={**X264, "x264-params": x264.rstrip(":")}, **more)  # type: ignore[arg-type]


def _hevc(path: Path, params: str) -> Clip:
    x265 = f"keyint=12:min-keyint=12:scenecut=0:bframes=3:log-level=none:{params}"
    return write_clip(
        path, codec="libx265", options={"preset": "ultrafast", "crf": "12", "x265-params": x265}
    )


def _trimmed(path: Path) -> Clip:
    """An edit list that starts in the middle of a group of pictures: its frames 0–6 are hidden."""
    whole = write_h264(path.with_suffix(".whole.mp4"), gop=10, b_frames=0)
    hidden = 7
    with av.open(str(whole.path)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None:
                continue
            shift = int(Fraction(hidden, 10) / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            output.mux(packet)
    whole.path.unlink()
    return Clip(
        path=path,
        times=whole.times[: -hidden or None],
        numbers=whole.numbers[hidden:],
        last_duration=whole.last_duration,
    )


def _late_start(path: Path) -> Clip:
    return write_h264(path, times=[2500 + 100 * i for i in range(40)])


def _fragmented(path: Path) -> Clip:
    options = {"movflags": "frag_keyframe+empty_moov"}
    return write_h264(path, container_options=options, clock_shift=REORDER_DELAY)


def _rotated(degrees_clockwise: int) -> Callable[[Path], Clip]:
    def make(path: Path) -> Clip:
        clip = write_h264(path, degrees_clockwise=degrees_clockwise)
        rotate(path, degrees_clockwise)
        return clip

    return make


class _Pipe(io.RawIOBase):
    """A file that can only be written on, so that a muxer cannot go back to fill in a duration."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        return self._file.write(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _no_duration(path: Path) -> Clip:
    with _Pipe(path) as pipe:
        return write_clip(
            path, codec="libvpx", container="webm", b_frames=0, options=VPX, sink=pipe
        )


# Without an edit list the first decode time is zero, and two B-frames delay what is shown.
REORDER_DELAY = Fraction(2, 10)
VPX = {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "2M"}

MEDIA: dict[str, tuple[str, Callable[[Path], Clip]]] = {
    "h264": (".mp4", write_h264),
    "h264-no-b": (".mp4", lambda p: write_h264(p, b_frames=0)),
    "h264-one-gop": (".mp4", lambda p: write_h264(p, gop=250)),
    "h264-b-pyramid": (".mp4", lambda p: write_h264(p, b_frames=3, params="b-pyramid=normal")),
    "h264-open-gop": (".mp4", lambda p: write_h264(p, b_frames=3, params="open-gop=1")),
    "h264-intra-refresh": (".mp4", lambda p: write_h264(p, b_frames=0, params="intra-refresh=1")),
    "h264-irregular": (".mp4", lambda p: write_h264(p, times=IRREGULAR, gop=5)),
    "h264-late-start": (".mp4", _late_start),
    "h264-trimmed": (".mp4", _trimmed),
    "h264-fragmented": (".mp4", _fragmented),
    "h264-with-audio": (".mp4", lambda p: write_h264(p, with_audio=True)),
    "h264-one-frame": (".mp4", lambda p: write_h264(p, num_frames=1)),
    "h264-mkv": (".mkv", lambda p: write_h264(p, b_frames=3, params="open-gop=1")),
    "h264-ts": (".ts", lambda p: write_h264(p, clock_shift=REORDER_DELAY)),
    "h264-avi": (".avi", write_h264),
    "hevc": (".mp4", lambda p: _hevc(p, "open-gop=0")),
    "hevc-open-gop": (".mp4", lambda p: _hevc(p, "open-gop=1")),
    "hevc-layers": (".mp4", lambda p: _hevc(p, "open-gop=0:temporal-layers=3")),
    "mpeg4-avi": (".avi", lambda p: write_clip(p, codec="mpeg4", b_frames=0, options={"q": "2"})),
    "vp8": (".webm", lambda p: write_clip(p, codec="libvpx", b_frames=0, options=VPX)),
    "vp8-alt-ref": (
        ".webm",
        lambda p: write_clip(
            p,
            codec="libvpx",
            b_frames=0,
            options={"auto-alt-ref": "1", "lag-in-frames": "12", "crf": "4", "b": "2M"},
        ),
    ),
    "vp9": (".webm", lambda p: write_clip(p, codec="libvpx-vp9", b_frames=0, options=VPX)),
    "vp8-no-duration": (".webm", _no_duration),
    "rotated-90": (".mp4", _rotated(90)),
    "rotated-180": (".mp4", _rotated(180)),
    "rotated-270": (".mp4", _rotated(270)),
}
"""name → (suffix, how it is written)."""


@dataclass
class Shelf:
    """Media by name, each written once."""

    folder: Path
    _clips: dict[str, Clip] = field(default_factory=dict)

    def clip(self, name: str) -> Clip:
        if name not in self._clips:
            suffix, make = MEDIA[name]
            self._clips[name] = make(self.folder / f"{name}{suffix}")
        return self._clips[name]


# ── changes to files ──────────────────────────────────────────────────────────────────────────


def rotate(path: Path, degrees_clockwise: int) -> None:
    """Make players turn the picture, by writing the display matrix into the track header."""
    a, b, c, d = {
        0: (1, 0, 0, 1),
        90: (0, 1, -1, 0),
        180: (-1, 0, 0, -1),
        270: (0, -1, 1, 0),
    }[degrees_clockwise]
    data = bytearray(path.read_bytes())
    # version and flags, times, id, duration, layer, volume: 40 bytes lie before the matrix
    matrix = data.index(b"tkhd") + 4 + 40
    one, unit = 1 << 16, 1 << 30
    struct.pack_into(">9i", data, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, unit)
    path.write_bytes(data)


def zero_middle(path: Path, *, fraction: float = 0.05) -> None:
    """Overwrite a part of the file, just after its middle, with zeros (MP4: of its pictures)."""
    data = bytearray(path.read_bytes())
    start, size = 0, len(data)
    if path.suffix == ".mp4":
        start = data.index(b"mdat") + 4
        size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    begin, length = start + size // 2, max(1, int(size * fraction))
    data[begin : begin + length] = bytes(length)
    path.write_bytes(data)


def cut(path: Path, *, keep: float) -> None:
    """Keep only the first part of the file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def write_audio_only(path: Path) -> None:
    with av.open(str(path), "w") as output:
        _encode_silence(output, _add_audio(output), seconds=1)


# ── reading, slowly and obviously ─────────────────────────────────────────────────────────────


def decode_everything(path: Path) -> list[tuple[Fraction, np.ndarray]]:
    """Every frame that plain decoding shows, in the decoder's order: (time, RGB as coded)."""
    shown = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):
                shown += [
                    (frame.pts * stream.time_base, frame.to_ndarray(format="rgb24"))
                    for frame in packet.decode()
                ]
    return shown
