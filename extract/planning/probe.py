"""How fast extraction will be here: a few batches and a few seconds of video, tried and timed.

The backbone runs with random weights of its shape, which take as long as trained ones. Reading is
tried on up to three of the videos. What comes out holds while the machine does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ...store.spec import Sampling
from ..backbones.loading import Backbone
from ..backbones.preprocess import resize_frames
from ..readers.base import Reader, VideoError
from ..sampling import moments_of
from ..sources import VideoSource
from ..stages.cores import usable_cores

PROBED_VIDEOS = 3
READ_SECONDS = 2.0  # for each of them
ENCODE_SECONDS = 2.0  # and one batch at least
_GPU_BATCH_FRAMES = 32
_CPU_BATCH_FRAMES = 2  # CPU time a frame hardly depends on the batch, and large models are slow


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """Rates in frames of video a second: of the backbone, and of reading with all its threads
    (None when there is no video to try).

    clip_frames: of video in one frame of tokens. on_cpu: the backbone and the readers share cores.
    """

    device: str
    workers: int
    clip_frames: int
    on_cpu: bool
    backbone_frames_per_second: float
    reading_frames_per_second: float | None

    @property
    def frames_per_second(self) -> float:
        """Of the whole pipeline: the slower of the two, or on a CPU both after one another."""
        backbone, reading = self.backbone_frames_per_second, self.reading_frames_per_second
        if reading is None:
            return backbone
        if self.on_cpu:
            return 1 / (1 / backbone + 1 / reading)
        return min(backbone, reading)

    @property
    def bottleneck(self) -> str:
        reading = self.reading_frames_per_second
        slower = reading is not None and reading < self.backbone_frames_per_second
        return "reading" if slower else "backbone"

    def hours(self, num_frames: int) -> float:
        """For so many frames of tokens."""
        return num_frames * self.clip_frames / self.frames_per_second / 3600


def probe_rates(
    backbone: Backbone,
    videos: Sequence[VideoSource],
    reader: Reader,
    *,
    sampling: Sampling,
    batch_size: int | None = None,
    workers: int | None = None,
) -> ProbeResult:
    """Try the backbone, and reading some of `videos`; takes seconds, on a CPU perhaps a minute.

    batch_size, workers: as for the run.
    """
    on_cpu = backbone.device.type == "cpu"
    threads = workers or usable_cores()
    rates = [
        rate
        for video in _spread(videos)
        if (rate := _reading_rate(video, backbone, reader, sampling, threads)) is not None
    ]
    encoding = _cpu_rate(backbone) if on_cpu else _gpu_rate(backbone, batch_size)
    return ProbeResult(
        device=str(backbone.device),
        workers=threads,
        clip_frames=backbone.clip_frames,
        on_cpu=on_cpu,
        backbone_frames_per_second=encoding,
        reading_frames_per_second=len(rates) / sum(1 / rate for rate in rates) if rates else None,
    )


def _spread(videos: Sequence[VideoSource]) -> list[VideoSource]:
    """Some of them from the first to the last."""
    count = min(PROBED_VIDEOS, len(videos))
    return [videos[i * (len(videos) - 1) // max(1, count - 1)] for i in range(count)]


def _reading_rate(
    video: VideoSource, backbone: Backbone, reader: Reader, sampling: Sampling, threads: int
) -> float | None:
    """Frames a second that `threads` such threads read and resize; None when it cannot be read.

    One thread is timed: so many of them are faster by their number until the cores are busy.
    """
    moments = moments_of(sampling, start_seconds=video.start_seconds, end_seconds=video.end_seconds)
    begun = _Clock()
    count = 0
    try:
        with reader.open(video.path, moments=moments) as stream:
            opened = _Clock()
            for batch in stream:
                resize_frames(batch.frames, backbone.preprocess)
                count += batch.num_frames
                if opened.wall() > READ_SECONDS:
                    break
            else:
                opened = begun  # read to its end, so that opening it counts too
    except VideoError:  # the plan, or the run, says what is wrong with it
        return None
    return min(threads * count / opened.wall(), usable_cores() * count / opened.cpu()) or None


class _Clock:
    """Seconds since it was made: of the wall, and of the cores that this process has used."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def wall(self) -> float:
        return max(1e-9, time.perf_counter() - self._wall)

    def cpu(self) -> float:
        return max(1e-9, time.process_time() - self._cpu)


def _cpu_rate(backbone: Backbone) -> float:
    """As in a run, every core encodes batches of its own, with one thread each."""
    cores, frames = usable_cores(), max(_CPU_BATCH_FRAMES, backbone.clip_frames)
    encode = _encoder(backbone, frames)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if backbone.clip_frames == 1:
            _encoder(backbone, 1)()  # the first is slower
        with ThreadPoolExecutor(cores) as pool:
            begun = _Clock()
            running = [pool.submit(_repeat, encode, begun) for _ in range(cores)]
            batches = sum(each.result() for each in running)
            return batches * frames / begun.wall()
    finally:
        torch.set_num_threads(before)


def _gpu_rate(backbone: Backbone, batch_size: int | None) -> float:
    clip = backbone.clip_frames
    frames = max(1, (batch_size or max(_GPU_BATCH_FRAMES, clip)) // clip) * clip
    encode = _encoder(backbone, frames)
    for _ in range(2):  # kernels are chosen and memory is taken
        encode()
    begun = _Clock()
    return _repeat(encode, begun) * frames / begun.wall()


def _repeat(encode: Callable[[], None], begun: _Clock) -> int:
    """Encode until the time is over, once at least; how many batches."""
    batches = 0
    while not batches or begun.wall() < ENCODE_SECONDS:
        encode()
        batches += 1
    return batches


def _encoder(backbone: Backbone, frames: int) -> Callable[[], None]:
    """Encodes one batch and waits for its tokens on the host."""
    pixels = torch.zeros(frames, 3, *backbone.preprocess.size, dtype=torch.uint8)  # B·F 3 H W

    def encode() -> None:
        tokens = backbone.encode(pixels)
        tokens.patch.cpu()
        tokens.prefix.cpu()

    return encode
