"""How much CPU reading 60 frames of a one-minute video costs, reader by reader.

    python benchmarks/reading.py [--gops 12,48,250] [--repeats 5] [--json]

It writes 720p H.264 clips of a minute (30 frames a second, three B-frames) into a temporary folder
and samples them at one frame a second: by plain decoding of every frame, and by every reader that
is installed. Runs alternate, and medians are compared, so that a busy machine slows all alike.
Every reader's frames are compared with plain decoding's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from vis4mer.extract.readers import available_readers, get_reader
from vis4mer.extract.sampling import Every

WIDTH, HEIGHT, RATE, SECONDS = 1280, 720, 30, 60
PLAIN = "plain decoding"
Read = Callable[[Path], Iterator[np.ndarray]]


def write_clip(path: Path, *, gop: int, seconds: int = SECONDS) -> None:
    """A camera that drifts over a soft texture, with three things moving in it."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (HEIGHT // 16 + 8, WIDTH // 16 + 40, 3)).astype(np.uint8)
    field = coarse.repeat(16, 0).repeat(16, 1)
    field = (field // 4 + 90 + rng.integers(0, 12, field.shape)).astype(np.uint8)
    with av.open(str(path), "w") as output:
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=3"
        options = {"preset": "veryfast", "crf": "23", "x264-params": params}
        stream = output.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(seconds * RATE):
            left, top = index // 4 % 600, int(50 + 50 * np.sin(index / 40))
            frame = field[top : top + HEIGHT, left : left + WIDTH].copy()
            for thing in range(3):
                x = int(600 + 500 * np.sin(index / (20 + 9 * thing) + thing))
                y = int(300 + 250 * np.cos(index / (31 + 7 * thing)))
                frame[y : y + 90, x : x + 120] = (250, 60 * thing, 20)
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def read_plainly(path: Path) -> Iterator[np.ndarray]:
    """Decode every frame on one thread; keep the last one not after each second."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        held, k = None, 0
        for frame in container.decode(stream):
            while held is not None and k < frame.pts * stream.time_base:
                yield held.to_ndarray(format="rgb24", threads=1)
                k += 1
            held = frame
        if held is not None and k <= held.pts * stream.time_base:
            yield held.to_ndarray(format="rgb24", threads=1)


def read_with(name: str) -> Read:
    reader = get_reader(name)  # type: ignore[arg-type]

    def read(path: Path) -> Iterator[np.ndarray]:
        with reader.open(path, moments=Every(fps=1)) as video:
            for batch in video:
                yield from batch.frames

    return read


def cpu_seconds(read: Read, path: Path) -> float:
    """CPU time of the whole process, all threads, for one pass that throws the frames away."""
    start = time.process_time()
    for _ in read(path):
        pass
    return time.process_time() - start


def signature(read: Read, path: Path) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(frame)).hexdigest() for frame in read(path)]


def measure(path: Path, reads: dict[str, Read], *, repeats: int) -> dict[str, dict[str, object]]:
    expected = signature(reads[PLAIN], path)
    wrong = {}
    for name, read in reads.items():
        got = signature(read, path)
        wrong[name] = sum(a != b for a, b in zip(expected, got, strict=False)) + abs(
            len(expected) - len(got)
        )
    times: dict[str, list[float]] = {name: [] for name in reads}
    for _ in range(repeats):
        for name, read in reads.items():
            times[name].append(cpu_seconds(read, path))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "cpu_seconds": round(median[name], 3),
            "ratio_to_plain": round(median[name] / median[PLAIN], 3),
            "ratio_to_decord": round(median[name] / median["decord"], 3)
            if "decord" in median
            else None,
            "frames": len(expected),
            "different_frames": wrong[name],
        }
        for name in reads
    }


def machine() -> dict[str, object]:
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "av": av.__version__,
        "ffmpeg_libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        "readers": {s.name: s.version for s in available_readers() if s.version},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gops", default="12,48,250", help="distances of keyframes, in frames")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    arguments = parser.parse_args()
    reads: dict[str, Read] = {PLAIN: read_plainly}
    reads |= {s.name: read_with(s.name) for s in available_readers() if s.version}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for gop in map(int, arguments.gops.split(",")):
            path = Path(folder) / f"gop{gop}.mp4"
            write_clip(path, gop=gop)
            results[gop] = measure(path, reads, repeats=arguments.repeats)
    if arguments.json:
        print(json.dumps({"machine": machine(), "gops": results}, indent=1))
        return
    print(f"60 frames of one minute of 720p H.264, CPU seconds; {machine()}")
    print(
        f"{'GOP':>4} {'reader':<16} {'CPU s':>7} {'/ plain':>8} {'/ decord':>9} {'different':>10}"
    )
    for gop, rows in results.items():
        for name, row in rows.items():
            print(
                f"{gop:>4} {name:<16} {row['cpu_seconds']:>7.2f} {row['ratio_to_plain']:>8.2f} "
                f"{row['ratio_to_decord'] or 0:>9.2f} {row['different_frames']:>10}"
            )


if __name__ == "__main__":
    main()
